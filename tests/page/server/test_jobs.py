"""One runner for every job: typed events, in order, until the job is done, stopped or failed."""

import threading
import time
from itertools import count

import pytest

from page.server import session
from page.server.jobs import run_job
from page.server.queue import JobKey, Queue
from page.server.session import jobs
from page.workers.messages import Done, Failed, Partial, Progress, Queued, Stopped
from page.workers.tasks import INTERACTIVE, LONG
from page.workers.workbench import Visitor
from pruning import RecipeError
from tests.helpers.workers import (
    Answer,
    Break,
    Count,
    Endless,
    Fail,
    LateAnswer,
    Sleep,
    UntilFinish,
    Upload,
)

pytestmark = pytest.mark.usefixtures("pools")

names = (JobKey(f"session{number}") for number in count())


def run(*tasks, name=None, **settings):
    return run_job(lambda: tasks, Visitor(), name or next(names), **settings)


def test_a_job_yields_its_parts_and_then_its_result():
    assert list(run(Answer("whole", ("half",)))) == [Partial("half"), Done("whole")]


@pytest.mark.parametrize("value", [(1,), (1, 2), [], None, "text"])
def test_only_done_ends_a_task_whatever_its_values_look_like(value):
    events = list(run(Answer(value, (value, "more"))))
    assert events == [Partial(value), Partial("more"), Done(value)]


def test_the_tasks_of_a_job_follow_each_other_until_one_fails():
    events = list(run(Answer(1), Fail("Move the slider."), Answer(2)))
    assert events == [Done(1), Failed("Move the slider.")]


def test_a_plan_that_raises_fails_the_job():
    def plan():
        raise RecipeError("Press Prune first.")

    assert list(run_job(plan, Visitor(), next(names))) == [Failed("Press Prune first.")]


def test_a_bug_is_logged_and_its_text_is_not_shown(caplog):
    (event,) = run(Break("secret"))
    assert isinstance(event, Failed)
    assert event.message.startswith("Something went wrong on our side.")
    assert "secret" in caplog.text


def test_a_stopped_job_ends_at_once_and_so_does_its_work(tmp_path):
    name, over = next(names), tmp_path / "over"
    events = run(Endless(str(over)), name=name)
    next(events)
    jobs.stop(name)
    assert list(events)[-1] == Stopped("Stopped.")
    assert list(run(Answer("next"))) == [Done("next")]
    assert over.exists()


def test_a_second_job_of_the_same_name_stops_the_first():
    name = next(names)
    first = run(Endless(), name=name)
    next(first)
    second = run(Answer("second"), name=name)
    thread = threading.Thread(target=lambda: list(first))
    thread.start()
    assert list(second)[-1] == Done("second")
    thread.join(20)
    assert not thread.is_alive()


def test_work_that_is_no_longer_watched_ends(tmp_path):
    over = tmp_path / "over"
    events = run(Endless(str(over)))
    next(events)
    events.close()
    assert list(run(Answer("next"))) == [Done("next")]
    assert over.exists()


def test_a_job_that_is_closed_at_its_first_event_is_over():
    name = next(names)
    events = run(Endless(), name=name)
    next(events)
    events.close()
    assert name not in jobs._jobs
    assert not len(session.queues[INTERACTIVE])


def test_a_detached_job_continues_without_its_visitor():
    name = next(names)
    events = run(Count(100, seconds=0.02), name=JobKey(name.session, "push"), detached=True)
    next(events)
    jobs.stop_session(name.session)
    events.close()
    (worker,) = session.pools[INTERACTIVE].workers
    ending = None
    while not isinstance(ending, Done | Failed | Stopped):
        ending = worker.running.events.get(timeout=20)
    assert ending == Done(100)


def test_a_job_can_be_asked_to_end_with_what_it_has():
    name = next(names)
    events = run(UntilFinish(), name=name)
    next(events)
    jobs.request_finish(name)
    assert list(events)[-1] == Done("so far")


def test_a_job_fails_when_its_time_is_over():
    events = list(run(Endless(), seconds=0.05))
    assert isinstance(events[-1], Failed)
    assert "longer than" in events[-1].message


def test_a_job_whose_work_hears_nothing_fails_in_time_too():
    events = list(run(Sleep(5), seconds=0.05))
    assert isinstance(events[-1], Failed)
    assert "longer than" in events[-1].message


def test_a_task_that_requeues_waits_behind_the_others_and_keeps_its_time(monkeypatch):
    monkeypatch.setitem(session.queues, INTERACTIVE, Queue(size=1))
    first = run(Answer("texts"), LateAnswer("measures"), seconds=0.8)
    assert next(first) == Done("texts")
    other = run(Count(10, seconds=0.1))
    assert next(other) == Queued(2)
    waiting = threading.Thread(target=lambda: list(other))
    waiting.start()
    assert next(first).position == 2
    assert list(first)[-1] == Done("measures")
    waiting.join()


def test_released_models_let_the_next_job_start_while_the_task_goes_on(monkeypatch):
    monkeypatch.setitem(session.queues, LONG, Queue(size=1))
    first = run(Upload(1.0), seconds=10)
    assert next(first) == Partial("uploading")
    (released, *_) = session.pools[LONG].workers
    assert released.running is None
    assert list(first)[-1] == Done("url")


def test_the_rest_of_a_task_that_released_the_models_has_a_time_limit_too():
    events = list(run(Upload(1000.0, limit=0.05), seconds=100))
    assert isinstance(events[-1], Failed)
    assert "longer than" in events[-1].message


def test_waiting_and_working_are_told_apart():
    events = list(run(Count(3, seconds=0.3)))
    assert all(isinstance(event, Progress | Done) for event in events)


def test_two_kinds_of_work_do_not_wait_for_each_other():
    upload = run(Upload(5.0))
    next(upload)
    start = time.monotonic()
    assert list(run(Answer("next"))) == [Done("next")]
    assert time.monotonic() - start < 5
    upload.close()
