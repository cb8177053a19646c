"""The models that visitors share: bounded, rebuilt from their recipe, private ones for their owner only."""

import gc
import threading
import time
import weakref
from dataclasses import replace

import pytest

from page.workers.memory import machine_memory, memory_share
from page.workers.workbench import Visitor, Workbench
from pruning import Calibration, Neurons, PruningError, Recipe
from pruning.calibration import cache
from pruning.errors import Cancelled
from tests.helpers import models

ADA, BOB = Visitor("ada:1"), Visitor("bob:2")
CUSTOM_TEXT = "The keeper climbed the stairs and lit the lamp at dusk. " * 60


@pytest.fixture
def bench(monkeypatch):
    """A workbench with room for everything. Its bases are small random models, public unless their name
    says otherwise."""

    def load(name, **settings):
        loaded = models.loaded("llama")
        source = replace(loaded.source, name=name, public="private" not in name)
        return replace(loaded, model=models.tiny("llama"), source=source)

    monkeypatch.setattr("pruning.loading.load.load", load)
    return Workbench(max_bytes=10**9)


def recipe(fraction, base="public", **values):
    return Recipe(base=base, steps=[Neurons(fraction=fraction, criterion="l2", repair=False)], **values)


def test_a_recipe_is_pruned_once_for_everyone(bench):
    assert bench.prune(recipe(0.25), ADA) is bench.prune(recipe(0.25), BOB)


def test_an_evicted_model_is_rebuilt_the_same_from_its_recipe(bench):
    first = {name: value.clone() for name, value in bench.prune(recipe(0.25), ADA).model.state_dict().items()}
    bench.max_bytes = 1
    bench.prune(recipe(0.5), ADA)
    made = []
    again = bench.prune(recipe(0.25), ADA, made.append)
    assert made
    assert all((value == first[name]).all() for name, value in again.model.state_dict().items())


def test_shared_tensors_are_counted_once(bench):
    base = bench.load("public", ADA)
    alone = bench.bytes
    pruned = bench.prune(recipe(0.25), ADA)
    shared = {p.data_ptr() for p in base.model.parameters()}
    own = sum(p.nbytes for p in pruned.model.parameters() if p.data_ptr() not in shared)
    assert bench.bytes == alone + own


def test_the_least_recently_used_is_evicted_first(bench):
    bench.load("public", ADA)
    references = {f: weakref.ref(bench.prune(recipe(f), ADA).model) for f in (0.25, 0.5)}
    bench.prune(recipe(0.25), ADA)
    bench.max_bytes = bench.bytes
    bench.prune(recipe(0.75), ADA)
    gc.collect()
    assert references[0.25]() is not None
    assert references[0.5]() is None
    assert bench.bytes <= bench.max_bytes


def test_a_model_in_use_is_not_evicted(bench):
    held = bench.prune(recipe(0.25), ADA)
    bench.max_bytes = 1
    bench.prune(recipe(0.5), ADA)
    bench.prune(recipe(0.75), ADA)
    made = []
    assert bench.prune(recipe(0.25), ADA, made.append) is held
    assert not made


def test_a_private_model_belongs_to_its_owner_and_is_dropped_with_them(bench):
    private = recipe(0.25, base="private")
    made = bench.prune(private, ADA)
    assert bench.prune(private, ADA) is made
    assert bench.prune(private, BOB) is not made
    bench.forget("ada")
    assert bench.prune(private, ADA) is not made


def test_a_private_model_is_not_kept_for_a_visitor_without_a_name(bench):
    assert bench.load("private", Visitor()) is not bench.load("private", Visitor())


def test_another_token_in_the_same_session_is_another_owner(bench):
    assert bench.load("private", Visitor("ada:1")) is not bench.load("private", Visitor("ada:2"))


def test_a_custom_text_belongs_to_its_owner_and_leaves_nothing_behind(bench):
    own = recipe(0.25, calibration=Calibration.custom(CUSTOM_TEXT, tokens=256))
    own = own.model_copy(update={"steps": (Neurons(fraction=0.25, criterion="activation"),)})
    made = bench.prune(own, ADA)
    assert bench.prune(own, BOB) is not made
    assert cache.total_bytes() > 0
    bench.forget("ada")
    bench.forget("bob")
    assert cache.total_bytes() == 0


def test_forgetting_one_visitor_keeps_what_was_computed_for_others_and_on_bundled_texts(bench):
    def reads_again(text, visitor):
        reports = []
        bench.layer_influences("public", text, 0, visitor, reports.append)
        return any(report.text == "Watching the layers, windows" for report in reports)

    adas = Calibration.custom(CUSTOM_TEXT, tokens=256)
    bobs = Calibration.custom(CUSTOM_TEXT.upper(), tokens=256)
    bundled = Calibration(text="story", tokens=256)
    for text, visitor in ((adas, ADA), (bobs, BOB), (bundled, ADA)):
        assert reads_again(text, visitor)
    bench.forget("ada")
    assert not reads_again(bobs, BOB)
    assert not reads_again(bundled, BOB)
    assert reads_again(adas, ADA)


def test_a_private_model_is_dropped_after_long_without_use(bench, monkeypatch):
    made = bench.load("private", ADA)
    monkeypatch.setattr("page.workers.workbench.IDLE_SECONDS", 0.0)
    time.sleep(0.01)
    assert bench.load("private", ADA) is not made


def test_waiting_for_the_models_can_be_stopped(bench):
    entered, leave = threading.Event(), threading.Event()

    def other():
        with bench.exclusive():
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(20)

    def stop(progress):
        raise Cancelled("Stopped.")

    try:
        with pytest.raises(Cancelled), bench.exclusive(stop):
            pass
    finally:
        leave.set()
        thread.join()


@pytest.mark.parametrize("text", ["0", "-1", "2", "nan", "much"])
def test_a_bad_share_of_memory_is_refused(monkeypatch, text):
    monkeypatch.setenv("SECATEUR_MEMORY_SHARE", text)
    with pytest.raises(PruningError, match="SECATEUR_MEMORY_SHARE"):
        memory_share()


def test_the_share_of_memory_can_be_set(monkeypatch):
    monkeypatch.setenv("SECATEUR_MEMORY_SHARE", "0.25")
    assert Workbench().max_bytes == int(machine_memory() * 0.25)
