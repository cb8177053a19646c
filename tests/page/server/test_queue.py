"""Jobs wait for their turn, learn their place, and leave."""

import time

import pytest

from page.server.queue import Busy, Job, Jobs, Queue
from page.workers.messages import Queued, format_wait
from pruning.errors import Cancelled


def take_turn(job):
    """Take the turn of a job that is first in the queue."""
    assert list(job.wait_turn()) == []


def test_jobs_are_served_in_turn_and_learn_their_place():
    queue = Queue(size=3)
    first, second, third = Job(queue), Job(queue), Job(queue)
    take_turn(first)
    assert [next(job.wait_turn()) for job in (second, third)] == [Queued(2), Queued(3)]
    first.leave_queue()
    take_turn(second)
    assert next(third.wait_turn()).position == 2


def test_a_waiting_job_yields_its_place_again_while_nothing_moves(monkeypatch):
    monkeypatch.setattr("page.server.queue.HEARTBEAT_SECONDS", 0.1)
    queue = Queue(size=1)
    take_turn(Job(queue))
    waiting = Job(queue).wait_turn()
    assert [next(waiting), next(waiting)] == [Queued(2), Queued(2)]


def test_a_waiting_visitor_is_told_about_how_long():
    queue = Queue(size=3)
    first, second = Job(queue), Job(queue)
    take_turn(first)
    assert next(second.wait_turn()).text == "You are number 2 in the queue."
    time.sleep(0.1)
    first.requeue()
    take_turn(second)
    assert 0.1 <= queue.estimate(1) < 10
    assert next(Job(queue).wait_turn()).text == "You are number 3 in the queue, about 10 seconds."


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, ""), (1, ", about 10 seconds"), (44, ", about 40 seconds"), (100, ", about 2 minutes")],
)
def test_a_wait_is_given_in_words(seconds, words):
    assert format_wait(seconds) == words


def test_a_job_that_requeues_with_nobody_waiting_goes_on_immediately():
    job = Job(Queue(size=1))
    take_turn(job)
    job.requeue()
    take_turn(job)


def test_a_full_queue_takes_no_more():
    queue = Queue(size=1)
    first, second = Job(queue), Job(queue)
    take_turn(first)
    assert next(second.wait_turn()).position == 2
    with pytest.raises(Busy, match=r"The queue is full \(1 waiting\)"):
        next(Job(queue).wait_turn())
    second.leave_queue()
    assert next(Job(queue).wait_turn()).position == 2


def test_a_job_stopped_while_waiting_leaves_the_queue_immediately():
    queue, jobs = Queue(size=3), Jobs()
    take_turn(Job(queue))
    job = jobs.start("ada", queue)
    waiting = job.wait_turn()
    assert next(waiting).position == 2
    start = time.monotonic()
    jobs.stop("ada")
    with pytest.raises(Cancelled):
        next(waiting)
    jobs.finish("ada", job)
    assert time.monotonic() - start < 1
    assert len(queue) == 1


def test_a_visitor_has_one_job_of_a_kind():
    jobs = Jobs()
    first, other, inspect = jobs.start("ada"), jobs.start("bob"), jobs.start("ada inspect")
    second = jobs.start("ada")
    assert [job.stopped for job in (first, other, inspect, second)] == [True, False, False, False]


def test_leaving_stops_all_of_a_visitors_jobs_except_detached_ones():
    jobs = Jobs()
    prune, inspect, push = jobs.start("ada"), jobs.start("ada inspect"), jobs.start("ada push", detached=True)
    other = jobs.start("adamant")
    jobs.stop_session("ada")
    assert [job.stopped for job in (prune, inspect, push, other)] == [True, True, False, False]


def test_a_request_to_finish_does_not_stop_the_job():
    jobs = Jobs()
    job = jobs.start("ada distill")
    jobs.request_finish("ada distill")
    assert (job.finish_requested, job.stopped) == (True, False)
