"""The models that visitors share: bounded, made again from their recipe, each private one its owner's."""

import gc
import threading
import time
import weakref
from dataclasses import replace

import pytest

from page.server.queue import Busy, Job, Jobs, Line, TooLong, about
from page.workers.workbench import Visitor, Workbench, machine_memory, memory_share
from pruning import Calibration, Neurons, PruningError, Recipe
from pruning.calibration import cache
from pruning.errors import Cancelled
from pruning.progress import Progress
from tests.helpers import models

ADA, BOB = Visitor("ada:1"), Visitor("bob:2")
OWN_TEXT = "The keeper climbed the stairs and lit the lamp at dusk. " * 60


@pytest.fixture
def bench(monkeypatch):
    """A workbench with room for everything; its bases are small random models, public ones unless
    their name says otherwise."""

    def load(name, **settings):
        loaded = models.loaded("llama")
        source = replace(loaded.source, name=name, public="private" not in name)
        return replace(loaded, model=models.tiny("llama"), source=source)

    monkeypatch.setattr("pruning.loading.load.load", load)
    return Workbench(max_bytes=10**9)


def recipe(fraction, base="public", **values):
    return Recipe(base=base, steps=[Neurons(fraction=fraction, criterion="l2", repair=False)], **values)


def test_a_recipe_is_made_once_for_everyone(bench):
    assert bench.pruned(recipe(0.25), ADA) is bench.pruned(recipe(0.25), BOB)


def test_what_was_let_go_comes_back_the_same_from_its_recipe(bench):
    first = {
        name: value.clone() for name, value in bench.pruned(recipe(0.25), ADA).model.state_dict().items()
    }
    bench.max_bytes = 1
    bench.pruned(recipe(0.5), ADA)
    made = []
    again = bench.pruned(recipe(0.25), ADA, made.append)
    assert made
    assert all((value == first[name]).all() for name, value in again.model.state_dict().items())


def test_shared_tensors_are_counted_once(bench):
    base = bench.base("public", ADA)
    alone = bench.bytes
    pruned = bench.pruned(recipe(0.25), ADA)
    shared = {p.data_ptr() for p in base.model.parameters()}
    own = sum(p.nbytes for p in pruned.model.parameters() if p.data_ptr() not in shared)
    assert bench.bytes == alone + own


def test_the_least_recently_used_goes_first(bench):
    bench.base("public", ADA)
    references = {f: weakref.ref(bench.pruned(recipe(f), ADA).model) for f in (0.25, 0.5)}
    bench.pruned(recipe(0.25), ADA)
    bench.max_bytes = bench.bytes
    bench.pruned(recipe(0.75), ADA)
    gc.collect()
    assert references[0.25]() is not None
    assert references[0.5]() is None
    assert bench.bytes <= bench.max_bytes


def test_a_model_in_use_stays(bench):
    held = bench.pruned(recipe(0.25), ADA)
    bench.max_bytes = 1
    bench.pruned(recipe(0.5), ADA)
    bench.pruned(recipe(0.75), ADA)
    made = []
    assert bench.pruned(recipe(0.25), ADA, made.append) is held
    assert not made


def test_a_private_model_is_its_owners_and_goes_with_them(bench):
    private = recipe(0.25, base="private")
    made = bench.pruned(private, ADA)
    assert bench.pruned(private, ADA) is made
    assert bench.pruned(private, BOB) is not made
    bench.forget("ada")
    assert bench.pruned(private, ADA) is not made


def test_nobody_without_a_name_finds_a_private_model(bench):
    assert bench.base("private", Visitor()) is not bench.base("private", Visitor())


def test_another_right_in_the_same_session_is_another_owner(bench):
    assert bench.base("private", Visitor("ada:1")) is not bench.base("private", Visitor("ada:2"))


def test_an_own_text_is_its_owners_and_leaves_nothing_behind(bench):
    own = recipe(0.25, calibration=Calibration.own(OWN_TEXT, tokens=256))
    own = own.model_copy(update={"steps": (Neurons(fraction=0.25, criterion="activation"),)})
    made = bench.pruned(own, ADA)
    assert bench.pruned(own, BOB) is not made
    assert cache.total_bytes() > 0
    bench.forget("ada")
    bench.forget("bob")
    assert cache.total_bytes() == 0


def test_forgetting_one_visitor_keeps_what_was_computed_for_others_and_on_bundled_texts(bench):
    def reads_again(text, visitor):
        reports = []
        bench.influences("public", text, 0, visitor, reports.append)
        return any(report.text == "Watching the layers, windows" for report in reports)

    adas = Calibration.own(OWN_TEXT, tokens=256)
    bobs = Calibration.own(OWN_TEXT.upper(), tokens=256)
    bundled = Calibration(text="story", tokens=256)
    for text, visitor in ((adas, ADA), (bobs, BOB), (bundled, ADA)):
        assert reads_again(text, visitor)
    bench.forget("ada")
    assert not reads_again(bobs, BOB)
    assert not reads_again(bundled, BOB)
    assert reads_again(adas, ADA)


def test_what_is_private_is_dropped_when_nobody_asks_for_it_any_more(bench, monkeypatch):
    made = bench.base("private", ADA)
    monkeypatch.setattr("page.workers.workbench.IDLE", 0.0)
    time.sleep(0.01)
    assert bench.base("private", ADA) is not made


def test_waiting_for_the_models_can_be_stopped(bench):
    entered, leave = threading.Event(), threading.Event()

    def other():
        with bench.working():
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(20)

    def stop(progress):
        raise Cancelled("Stopped.")

    try:
        with pytest.raises(Cancelled), bench.working(stop):
            pass
    finally:
        leave.set()
        thread.join()


@pytest.mark.parametrize("text", ["0", "-1", "2", "nan", "much"])
def test_a_share_of_memory_is_a_share(monkeypatch, text):
    monkeypatch.setenv("SECATEUR_MEMORY_SHARE", text)
    with pytest.raises(PruningError, match="SECATEUR_MEMORY_SHARE"):
        memory_share()


def test_the_share_of_memory_can_be_set(monkeypatch):
    monkeypatch.setenv("SECATEUR_MEMORY_SHARE", "0.25")
    assert Workbench().max_bytes == int(machine_memory() * 0.25)


def turn_of(line, job):
    """Take the turn of a job that is first in line."""
    assert list(line.turn(job)) == []


def test_jobs_are_served_in_turn_and_hear_their_place():
    line = Line(longest=3)
    first, second, third = Job(line), Job(line), Job(line)
    turn_of(line, first)
    places = [next(line.turn(job)) for job in (second, third)]
    assert places == [1, 2]
    first.finish()
    turn_of(line, second)
    assert next(line.turn(third)) == 1


def test_a_job_that_gives_way_goes_on_behind_those_who_wait_and_keeps_its_time():
    line = Line(longest=1)
    first, second = Job(line, seconds=0.4), Job(line)
    *_, result = first.watch(lambda tell: "texts")
    assert result == ("texts",)
    assert next(line.turn(second)) == 1
    first.give_way()
    turn_of(line, second)
    watched = first.watch(lambda tell: tell(Progress("Measuring")) or "measures")
    assert "1 other" in next(watched).text
    time.sleep(0.5)
    second.finish()
    *_, result = watched
    assert result == ("measures",)


def test_who_waits_hears_about_how_long():
    line = Line(longest=3)
    first, second = Job(line), Job(line)
    turn_of(line, first)
    watched = second.watch(lambda tell: None)
    assert next(watched).text == "Waiting for your turn: 1 other is before you"
    time.sleep(0.1)
    first.give_way()
    *_, result = watched
    assert result == (None,)
    assert 0.1 <= line.seconds(1) < 10
    watched = Job(line).watch(lambda tell: None)
    assert next(watched).text == "Waiting for your turn: 2 others are before you, about 10 seconds"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, ""), (1, ", about 10 seconds"), (44, ", about 40 seconds"), (100, ", about 2 minutes")],
)
def test_a_wait_is_told_in_words(seconds, words):
    assert about(seconds) == words


def test_a_job_gives_way_at_no_cost_where_nobody_waits():
    line = Line(longest=1)
    job = Job(line)
    turn_of(line, job)
    job.give_way()
    turn_of(line, job)


def test_a_full_line_takes_no_more():
    line = Line(longest=1)
    first, second = Job(line), Job(line)
    turn_of(line, first)
    assert next(line.turn(second)) == 1
    with pytest.raises(Busy, match="already waiting"):
        next(line.turn(Job(line)))
    second.finish()
    assert next(line.turn(Job(line))) == 1


def test_who_is_stopped_while_waiting_leaves_the_line_at_once():
    line, jobs = Line(longest=3), Jobs()
    turn_of(line, Job(line))
    job = jobs.start("ada", line)
    watched = job.watch(lambda tell: None)
    assert "1 other" in next(watched)
    start = time.monotonic()
    jobs.stop("ada")
    with pytest.raises(Cancelled):
        next(watched)
    jobs.finish("ada", job)
    assert time.monotonic() - start < 1
    assert len(line) == 1


def test_a_stopped_job_is_told_within_a_second_and_its_work_ends():
    job, over = Job(), threading.Event()

    def work(tell):
        try:
            while True:
                tell(Progress("Working"))
                time.sleep(0.01)
        finally:
            over.set()

    watched = job.watch(work)
    next(watched)
    job.stop()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        for _ in watched:
            pass
    assert time.monotonic() - start < 1
    assert over.wait(5)


def test_work_that_nobody_watches_any_more_ends():
    job, over = Job(), threading.Event()

    def work(tell):
        try:
            while True:
                tell(Progress("Working"))
                time.sleep(0.01)
        finally:
            over.set()

    watched = job.watch(work)
    next(watched)
    watched.close()
    assert over.wait(5)


def test_a_lasting_job_goes_on_without_its_visitor():
    jobs, over = Jobs(), threading.Event()
    job = jobs.start("ada push", lasting=True)

    def work(tell):
        for _ in range(20):
            tell(Progress("Working"))
            time.sleep(0.01)
        over.set()

    watched = job.watch(work)
    next(watched)
    watched.close()
    jobs.leave("ada")
    assert over.wait(5)


def test_a_job_ends_when_its_time_is_over():
    job = Job(seconds=0.05)

    def work(tell):
        while True:
            tell(Progress("Working"))
            time.sleep(0.01)

    with pytest.raises(TooLong, match="longer than"):
        for _ in job.watch(work):
            pass


def test_a_visitor_has_one_job_of_a_kind():
    jobs = Jobs()
    first, other, look = jobs.start("ada"), jobs.start("bob"), jobs.start("ada look")
    second = jobs.start("ada")
    assert [job.stopped for job in (first, other, look, second)] == [True, False, False, False]


def test_who_leaves_stops_all_that_was_theirs():
    jobs = Jobs()
    mine, look, other = jobs.start("ada"), jobs.start("ada look"), jobs.start("adamant")
    jobs.leave("ada")
    assert [job.stopped for job in (mine, look, other)] == [True, True, False]
