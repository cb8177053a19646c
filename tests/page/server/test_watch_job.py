"""Jobs that several visitors ask for: recorded results at once, others while they are made, for all of them."""

import asyncio
import threading
import time
from contextlib import aclosing
from dataclasses import dataclass
from datetime import date
from itertools import count

import pytest

from page.server import jobs as runner
from page.server import session
from page.server.jobs import Replaced, watch_job
from page.server.queue import JobKey, Queue
from page.server.session import jobs
from page.store.flights import Flights
from page.store.keys import BUNDLED_PROMPTS, Base, result_key
from page.store.results import ResultStore
from page.workers.messages import Done, Evaluation, Failed, Partial, Prompt, Stopped, Texts
from page.workers.tasks import INTERACTIVE, CompareTask, EvaluateTask
from page.workers.workbench import Visitor
from pruning import Neurons, Recipe, RecipeError, Sampling
from pruning.report import Measured, Report
from tests.helpers.workers import Answer, Endless

pytestmark = pytest.mark.usefixtures("pools")

RECIPE = Recipe(base="smollm2-135m", steps=(Neurons(fraction=0.2),))
COMPARE = CompareTask(RECIPE, BUNDLED_PROMPTS[0], Sampling(40))
EVALUATE = EvaluateTask(RECIPE)
REPORT = Report(Measured({"MLP": 10}, 20), Measured({"MLP": 8}, 16))

numbers = count()


def name(kind=""):
    return JobKey(f"watcher{next(numbers)}", kind)


class Work:
    """What `CompareTask` and `EvaluateTask` do in these tests: it counts, and waits for the test."""

    def __init__(self):
        self.compared = self.evaluated = 0
        self.visitors = []
        self.goes_on, self.error = threading.Event(), None
        self.texts = Texts("a", "b")

    def compare(self, task, context):
        self.compared += 1
        self.visitors.append(context.visitor)
        context.emit(Partial(Texts("a", ""), replaces=True))
        while not self.goes_on.is_set():
            context.check()
            time.sleep(0.005)
        if self.error:
            raise self.error
        return self.texts

    def evaluate(self, task, context):
        self.evaluated += 1
        return Evaluation(task.recipe, REPORT)


@pytest.fixture
def work(monkeypatch):
    work = Work()
    monkeypatch.setattr(CompareTask, "perform", lambda *args: work.compare(*args))
    monkeypatch.setattr(EvaluateTask, "perform", lambda *args: work.evaluate(*args))
    return work


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch, tmp_path):
    """A model that everyone may have, any cost, an empty store, and no flights."""

    @dataclass(frozen=True)
    class Found:
        source: object
        shape: object = None

    @dataclass(frozen=True)
    class Source:
        hub_id: str = "hub/model"
        revision: str = "commit"
        public: bool = True

    monkeypatch.setattr(runner, "check_task", lambda task, visitor, seconds: None)
    monkeypatch.setattr(runner, "look_up", lambda name, visitor: Found(Source()))
    monkeypatch.setattr(runner, "results", ResultStore(tmp_path / "results", tmp_path / "none"))
    monkeypatch.setattr(runner, "flights", Flights())


async def read(*tasks, key=None, visitor=None, **settings):
    events = watch_job(lambda: tasks, visitor or Visitor(), key or name(), **settings)
    return [event async for event in events]


async def wait_until(holds):
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def dones(events):
    return [event.value for event in events if isinstance(event, Done)]


def test_thirty_visitors_with_one_recipe_watch_one_run(work, monkeypatch):
    monkeypatch.setitem(session.queues, INTERACTIVE, Queue(2))

    async def run():
        tasks = [asyncio.create_task(read(COMPARE, EVALUATE)) for _ in range(30)]
        await wait_until(lambda: work.compared)
        await asyncio.sleep(0.05)
        work.goes_on.set()
        return await asyncio.gather(*tasks)

    for events in asyncio.run(run()):
        assert dones(events) == [work.texts, Evaluation(RECIPE, REPORT)]
    assert work.compared == 1


def test_what_was_made_is_recorded_and_shown_first_the_next_time(work):
    work.goes_on.set()
    asyncio.run(read(COMPARE, EVALUATE))
    own = CompareTask(RECIPE, Prompt("My name is Ada."), Sampling(40))
    again = asyncio.run(read(COMPARE, EVALUATE))
    assert [event.recorded for event in again] == [date.today()] * 2
    assert again[0] == Done(work.texts)
    assert (work.compared, work.evaluated) == (1, 1)
    mixed = asyncio.run(read(own, EVALUATE))
    assert isinstance(mixed[0].value, Evaluation)
    assert work.compared == 2
    assert dones(asyncio.run(read(own)))
    assert work.compared == 3


def test_run_it_live_makes_it_anew(work):
    work.goes_on.set()
    asyncio.run(read(COMPARE))
    work.texts = Texts("a", "c")
    assert dones(asyncio.run(read(COMPARE))) == [Texts("a", "b")]
    live = asyncio.run(read(COMPARE, live=True))
    assert live[-1] == Done(Texts("a", "c"))
    assert live[-1].recorded is None
    assert dones(asyncio.run(read(COMPARE))) == [Texts("a", "c")]


def test_nothing_private_is_written(work):
    work.goes_on.set()
    secret = "My name is Ada Lovelace."
    asyncio.run(read(CompareTask(RECIPE, Prompt(secret), Sampling(40)), visitor=Visitor("ada:1")))
    assert not runner.results.folder.exists()


def test_a_damaged_recording_is_made_again(work):
    work.goes_on.set()
    key = result_key(COMPARE, lambda name: Base("hub/model", "commit"))
    runner.results.keep(key, {"before": 5, "after": ["x"]})
    assert dones(asyncio.run(read(COMPARE))) == [work.texts]
    assert runner.results.find(key).value == {"before": "a", "after": "b", "undistilled": None}


def test_shared_work_is_done_without_the_rights_of_whoever_asked_first(work):
    work.goes_on.set()
    own = CompareTask(RECIPE, Prompt("My name is Ada."), Sampling(40))
    asyncio.run(read(COMPARE, visitor=Visitor("ada:1")))
    asyncio.run(read(own, visitor=Visitor("ada:1")))
    assert [visitor.owner for visitor in work.visitors] == ["", "ada:1"]


def test_stop_and_leaving_only_unsubscribe(work):
    ada = name()

    async def run():
        stopping = asyncio.create_task(read(COMPARE, key=ada))
        staying = asyncio.create_task(read(COMPARE))
        await wait_until(lambda: work.compared)
        async with aclosing(watch_job(lambda: [COMPARE], Visitor(), name())) as leaving:
            await anext(leaving)
        jobs.stop(ada)
        stopped = await stopping
        work.goes_on.set()
        return stopped, await staying

    stopped, stayed = asyncio.run(run())
    assert stopped[-1] == Stopped("Stopped.")
    assert dones(stayed) == [work.texts]
    assert work.compared == 1


def test_work_that_nobody_watches_ends(tmp_path):
    over, key = tmp_path / "over", name()

    async def run():
        watching = asyncio.create_task(read(Endless(str(over)), key=key))
        await wait_until(lambda: key in jobs)
        jobs.stop(key)
        assert (await watching)[-1] == Stopped("Stopped.")
        return await read(Answer("next"))

    assert asyncio.run(run())[-1] == Done("next")
    assert key not in jobs


def test_pressing_again_replaces_what_runs_and_shows_nothing_more_of_it(work):
    key = name()
    other = CompareTask(RECIPE, BUNDLED_PROMPTS[1], Sampling(40))

    async def run():
        first, shown = watch_job(lambda: [COMPARE], Visitor(), key), []

        async def watch():
            async for event in first:
                shown.append(event)

        watching = asyncio.create_task(watch())
        await wait_until(lambda: shown)
        second = asyncio.create_task(read(other, key=key))
        with pytest.raises(Replaced):
            await watching
        work.goes_on.set()
        return shown, await second

    shown, second = asyncio.run(run())
    assert dones(second) == [work.texts]
    assert not any(isinstance(event, Stopped | Failed) for event in shown)


def test_an_earlier_press_that_took_longer_to_plan_shows_nothing_and_replaces_nothing(work):
    key, planned = name(), threading.Event()
    again = JobKey(key.session)

    def plan_slowly():
        planned.wait(30)
        raise RecipeError("Nothing to cut yet.")

    async def run():
        earlier = watch_job(plan_slowly, Visitor(), key)
        earlier = asyncio.create_task(anext(earlier))
        await asyncio.sleep(0.05)
        later = asyncio.create_task(read(COMPARE, key=again))
        await wait_until(lambda: work.compared)
        planned.set()
        with pytest.raises(Replaced):
            await earlier
        work.goes_on.set()
        return await later

    assert dones(asyncio.run(run())) == [work.texts]


def test_stop_ends_a_press_that_came_before_it_and_is_still_planned(work):
    pressed, planned = name(), threading.Event()
    stopping = JobKey(pressed.session)

    def plan_slowly():
        planned.wait(30)
        return [COMPARE]

    async def run():
        events = watch_job(plan_slowly, Visitor(), pressed)
        pressing = asyncio.create_task(anext(events))
        await asyncio.sleep(0.05)
        jobs.stop(stopping)
        planned.set()
        return [await pressing, *[event async for event in events]]

    assert asyncio.run(run())[-1] == Stopped("Stopped.")


def test_pressing_again_with_the_same_settings_joins_the_same_run(work):
    key = name()

    async def run():
        first = asyncio.create_task(read(COMPARE, key=key))
        await wait_until(lambda: work.compared)
        second = asyncio.create_task(read(COMPARE, key=key))
        with pytest.raises(Replaced):
            await first
        work.goes_on.set()
        return await second

    assert dones(asyncio.run(run())) == [work.texts]
    assert work.compared == 1


def test_a_failure_is_told_to_all_once(work):
    work.error = RecipeError("The layer is too thin.")

    async def run():
        tasks = [asyncio.create_task(read(COMPARE)) for _ in range(10)]
        await wait_until(lambda: work.compared)
        await asyncio.sleep(0.05)
        work.goes_on.set()
        early = await asyncio.gather(*tasks)
        return [*early, await read(COMPARE)]

    for events in asyncio.run(run()):
        assert events[-1] == Failed("The layer is too thin.")
    assert work.compared == 1
    assert not runner.results.folder.exists()


def test_work_for_which_others_wait_is_not_begun_by_itself(work, monkeypatch):
    monkeypatch.setitem(session.queues, INTERACTIVE, Queue(5))

    async def run():
        busy = [asyncio.create_task(read(Endless())) for _ in range(2)]
        await wait_until(lambda: len(session.queues[INTERACTIVE]) == 2)
        (ended,) = await read(COMPARE, waits=False)
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        await wait_until(lambda: not len(session.queues[INTERACTIVE]))
        return ended

    ended = asyncio.run(run())
    assert isinstance(ended, Stopped)
    assert "Press Prune" in ended.message
    assert not work.compared


def test_a_plan_that_raises_fails_the_job():
    def plan():
        raise RecipeError("Nothing to cut yet.")

    async def run():
        return [event async for event in watch_job(plan, Visitor(), name())]

    assert asyncio.run(run()) == [Failed("Nothing to cut yet.")]


def test_the_tasks_of_a_job_follow_each_other():
    assert asyncio.run(read(Answer("whole", ("half",)), Answer(2))) == [
        Partial("half"),
        Done("whole"),
        Done(2),
    ]
