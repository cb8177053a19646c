"""Whoever asks for what is being made watches it being made; it goes on while somebody watches."""

import asyncio
import threading
import time

import pytest

from page.store.flights import FAILURE_SECONDS, Flights, NotAdmitted, fold
from page.workers.messages import Done, Failed, Partial, Progress, Queued, Stopped


class Work:
    """Some work that goes on when the test says so, and counts how often it was begun."""

    def __init__(self, *events):
        self.events, self.starters = events, []
        self.goes_on = threading.Semaphore(0)
        self.ended = threading.Event()

    def __call__(self, starter, is_abandoned):
        self.starters.append(starter)
        try:
            for event in self.events:
                while not self.goes_on.acquire(timeout=0.01):
                    if is_abandoned():
                        yield Stopped("Stopped.")
                        return
                yield event
        finally:
            self.ended.set()

    def go(self, count=1):
        self.goes_on.release(count)


TEXTS = [Partial("t", replaces=True), Partial("te", replaces=True), Done("text")]


def read_in_thread(watcher):
    events = []
    thread = threading.Thread(target=lambda: events.extend(watcher))
    thread.start()
    return thread, events


def wait_for(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_ten_watchers_of_one_run_see_one_run():
    flights, work = Flights(), Work(*TEXTS)
    readers = [read_in_thread(flights.watch("key", f"visitor{n}", n, work)) for n in range(10)]
    work.go(3)
    for thread, events in readers:
        thread.join(20)
        assert events[-1] == Done("text")
    assert work.starters == [0]
    wait_for(lambda: not len(flights))


def test_a_late_watcher_gets_what_there_is_so_far_and_then_the_rest():
    flights, work = Flights(), Work(Done("cut"), *TEXTS)
    first = iter(flights.watch("key", "ada", "ada", work))
    for event in (Done("cut"), Partial("t"), Partial("te")):
        work.go()
        assert next(first) == event
    late = iter(flights.watch("key", "bob", "bob", work))
    assert [next(late), next(late)] == [Done("cut"), Partial("te")]
    work.go()
    assert list(first) == list(late) == [Done("text")]


def test_leaving_only_unsubscribes_and_the_last_one_ends_the_work():
    flights, work = Flights(), Work(*TEXTS)
    ada, bob = (flights.watch("key", name, name, work) for name in ("ada", "bob"))
    ada.close()
    work.go()
    assert next(iter(bob)) == Partial("t")
    bob.close()
    assert work.ended.wait(20)
    wait_for(lambda: not len(flights))


def test_a_visitor_whom_nobody_hears_no_longer_counts():
    unheard = set()
    flights, work = Flights(unheard.__contains__), Work(*TEXTS)
    ada, bob = (flights.watch("key", name, name, work) for name in ("ada", "bob"))
    unheard.add("ada")
    work.go(3)
    assert list(bob)[-1] == Done("text")
    assert isinstance(list(ada)[-1], Stopped | Done)
    second = flights.watch("other", "ada", "ada", Work(*TEXTS))
    assert list(second) == [Stopped("Stopped, because nobody listened.")]


def test_a_failure_is_told_to_all_and_the_work_is_not_begun_again_at_once():
    now = [0.0]
    flights, work = Flights(clock=lambda: now[0]), Work(Failed("The disk is full."))
    readers = [read_in_thread(flights.watch("key", str(n), n, work)) for n in range(5)]
    work.go()
    for thread, events in readers:
        thread.join(20)
        assert events == [Failed("The disk is full.")]
    again = Work(Done("text"))
    again.go()
    assert list(flights.watch("key", "late", 9, again)) == [Failed("The disk is full.")]
    assert list(flights.watch("other", "late", 9, again)) == [Done("text")]
    now[0] = FAILURE_SECONDS + 1
    again.go()
    assert list(flights.watch("key", "late", 9, again)) == [Done("text")]


def test_a_bug_is_told_in_a_sentence_without_its_words():
    flights = Flights()

    def broken(starter, is_abandoned):
        yield Progress("Working")
        raise SystemExit("secret")

    *_, last = flights.watch("key", "ada", "ada", broken)
    assert isinstance(last, Failed)
    assert "secret" not in last.message


def test_a_visitor_who_may_not_start_the_work_does_not_keep_the_others_from_it():
    flights, begin = Flights(), threading.Event()

    def run(starter, is_abandoned):
        begin.wait(20)
        if starter == "mallory":
            raise NotAdmitted("You have 2 jobs waiting already.")
        yield Done(starter)

    mallory, bob = (flights.watch("key", name, name, run) for name in ("mallory", "bob"))
    begin.set()
    assert list(mallory) == [Failed("You have 2 jobs waiting already.")]
    assert list(bob) == [Done("bob")]
    assert list(flights.watch("key", "eve", "eve", run)) == [Done("eve")]


def test_work_without_a_key_is_watched_by_one_visitor_alone():
    flights, works = Flights(), [Work(Done(1)), Work(Done(2))]
    watchers = [flights.watch(None, "ada", "ada", work) for work in works]
    for work in works:
        work.go()
    assert [list(watcher) for watcher in watchers] == [[Done(1)], [Done(2)]]


def test_a_watcher_that_waits_takes_no_thread():
    flights, work = Flights(), Work(*TEXTS)

    async def read(watcher):
        return [event async for event in watcher.events()]

    async def read_all():
        before = threading.active_count()
        readers = [
            asyncio.create_task(read(flights.watch("key", f"visitor{n}", n, work))) for n in range(100)
        ]
        await asyncio.sleep(0.05)
        assert threading.active_count() <= before + 1
        work.go(3)
        return await asyncio.gather(*readers)

    results = asyncio.run(read_all())
    assert all(events[-1] == Done("text") for events in results)
    assert len(work.starters) == 1


def test_progress_alone_is_told_at_leisure_and_a_result_at_once(monkeypatch):
    monkeypatch.setattr("page.store.flights.SLOWEST", 900)
    flights, work = Flights(), Work(Progress("Cutting", 1, 9), Progress("Cutting", 2, 9), Done("cut"))
    watcher = flights.watch("key", "ada", "ada", work)

    async def read():
        return [event async for event in watcher.events()]

    async def read_while_it_works():
        reader = asyncio.create_task(read())
        for _ in range(3):
            work.go()
            await asyncio.sleep(0.3)  # Long enough to be told of a result.
        return await asyncio.wait_for(reader, 60)

    assert asyncio.run(read_while_it_works()) == [Progress("Cutting", 1, 9), Done("cut")]


def test_a_slow_watcher_gets_the_newest_and_every_result():
    flights, work = (
        Flights(),
        Work(Done("cut"), *[Partial(n, replaces=True) for n in range(50)], Done("text")),
    )
    watcher = flights.watch("key", "ada", "ada", work)
    work.go(51)
    wait_for(lambda: watcher._events and watcher._events[-1] == Partial(49))
    work.go()
    events = list(watcher)
    assert (events[0], events[-1]) == (Done("cut"), Done("text"))
    assert len(events) <= 3


@pytest.mark.parametrize(
    ("events", "kept"),
    [
        ([Queued(2), Progress("a"), Progress("b")], [Progress("b")]),
        ([Partial(1), Partial(2)], [Partial(1), Partial(2)]),
        ([Partial(1, True), Progress("a"), Partial(2, True)], [Partial(2)]),
        ([Partial(1, True), Done(2), Partial(3, True), Done(4)], [Done(2), Done(4)]),
        ([Done(1), Done(2)], [Done(1), Done(2)]),
        ([Partial(1), Partial(2, True), Done(3)], [Partial(1), Done(3)]),
        ([Progress("a"), Stopped("x")], [Stopped("x")]),
    ],
)
def test_only_what_a_newer_event_makes_superfluous_is_dropped(events, kept):
    log = []
    for event in events:
        fold(log, event)
    assert log == kept
