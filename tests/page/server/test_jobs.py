"""One runner for every job: typed events, in order, until the job is done, stopped or failed."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import pytest

from page.server.jobs import PROGRESS_INTERVAL, run_job
from page.server.queue import JobKey, Queue
from page.server.session import jobs
from page.workers.messages import Done, Failed, Partial, Progress, Queued, Released, Stopped
from page.workers.tasks import Task, TaskContext
from page.workers.workbench import Visitor
from pruning import RecipeError

names = (JobKey(f"session{number}") for number in count())


@dataclass(frozen=True)
class Work(Task):
    """A task made of a function that takes the context."""

    function: Callable[[TaskContext], object]

    def perform(self, context):
        return self.function(context)


@dataclass(frozen=True)
class LateWork(Work):
    requeues = True


def run(*tasks, name=None, queue=None, **settings):
    return run_job(lambda: tasks, Visitor(), name or next(names), queue=queue, **settings)


def endless(over):
    """Work that reports progress until it is stopped; `over` is set then."""

    def work(context):
        try:
            while True:
                context.emit(Progress("Working"))
                time.sleep(0.01)
        finally:
            over.set()

    return Work(work)


def test_a_job_yields_its_parts_and_then_its_result():
    def work(context):
        context.emit(Partial("half"))
        return "whole"

    assert list(run(Work(work))) == [Partial("half"), Done("whole")]


@pytest.mark.parametrize("value", [(1,), (1, 2), [], None, RecipeError("a value")])
def test_only_done_ends_a_task_whatever_its_values_look_like(value):
    def work(context):
        context.emit(Partial(value))
        context.emit(Partial("more"))
        return value

    assert list(run(Work(work))) == [Partial(value), Partial("more"), Done(value)]


def test_an_error_for_the_user_is_passed_on_as_its_message():
    def work(context):
        raise RecipeError("Move the slider.")

    assert list(run(Work(work))) == [Failed("Move the slider.")]


def test_a_plan_that_raises_fails_the_job():
    def plan():
        raise RecipeError("Press Prune first.")

    assert list(run_job(plan, Visitor(), next(names), queue=None)) == [Failed("Press Prune first.")]


def test_a_bug_is_logged_and_its_text_is_not_shown(caplog):
    def work(context):
        raise ZeroDivisionError("secret")

    (event,) = run(Work(work))
    assert isinstance(event, Failed)
    assert event.message.startswith("Something went wrong on our side.")
    assert "secret" in caplog.text


def test_of_fast_progress_only_the_newest_is_yielded():
    def work(context):
        for done in range(100):
            context.emit(Progress("Working", done, 100))
        time.sleep(2 * PROGRESS_INTERVAL)

    events = list(run(Work(work)))
    assert len(events) < 10
    assert (events[-2].done, events[-1]) == (99, Done(None))


def test_a_stopped_job_ends_within_a_second_and_so_does_its_work():
    name, over = next(names), threading.Event()
    events = run(endless(over), name=name)
    next(events)
    start = time.monotonic()
    jobs.stop(name)
    assert list(events)[-1] == Stopped("Stopped.")
    assert time.monotonic() - start < 1
    assert over.wait(5)


def test_a_second_job_of_the_same_name_stops_the_first():
    name, over = next(names), threading.Event()
    first = run(endless(over), name=name)
    next(first)
    assert list(run(Work(lambda context: "second"), name=name)) == [Done("second")]
    assert list(first)[-1] == Stopped("Stopped.")


def test_work_that_is_no_longer_watched_ends():
    over = threading.Event()
    events = run(endless(over))
    next(events)
    events.close()
    assert over.wait(5)


def test_a_detached_job_continues_without_its_visitor():
    name, over = next(names), threading.Event()

    def work(context):
        for _ in range(20):
            context.emit(Progress("Working"))
            time.sleep(0.01)
        over.set()

    events = run(Work(work), name=JobKey(name.session, "push"), detached=True)
    next(events)
    jobs.stop_session(name.session)
    events.close()
    assert over.wait(5)


def test_a_job_fails_when_its_time_is_over():
    events = list(run(endless(threading.Event()), seconds=0.05))
    assert isinstance(events[-1], Failed)
    assert "longer than" in events[-1].message


def test_a_task_that_requeues_waits_behind_the_others_and_keeps_its_time():
    queue = Queue(size=1)
    turn, free = threading.Event(), threading.Event()

    def hold(context):
        turn.set()
        assert free.wait(20)

    first = run(Work(lambda context: "texts"), LateWork(lambda context: "measures"), queue=queue, seconds=0.4)
    assert next(first) == Done("texts")
    other = run(Work(hold), queue=queue)
    assert next(other) == Queued(2)
    waiting = threading.Thread(target=lambda: list(other))
    waiting.start()
    assert next(first).position == 2
    assert turn.wait(20)
    time.sleep(0.5)
    free.set()
    assert list(first)[-1] == Done("measures")
    waiting.join()


def test_released_models_let_the_next_job_start_while_the_task_goes_on():
    queue, free = Queue(size=1), threading.Event()

    def publish(context):
        context.emit(Released(20))
        context.emit(Partial("uploading"))
        assert free.wait(20)
        return "url"

    first = run(Work(publish), queue=queue, seconds=10)
    assert next(first) == Partial("uploading")
    assert list(run(Work(lambda context: "next"), queue=queue)) == [Done("next")]
    free.set()
    assert list(first) == [Done("url")]


def test_the_rest_of_a_task_that_released_the_models_has_a_time_limit_too():
    def publish(context):
        context.emit(Released(0.05))
        while True:
            context.emit(Progress("Uploading"))
            time.sleep(0.01)

    events = list(run(Work(publish), seconds=100))
    assert isinstance(events[-1], Failed)
    assert "longer than" in events[-1].message
