"""Jobs wait for their turn, learn their place, and leave; addresses take turns."""

import time
from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from page.server.queue import SESSION_JOBS, Busy, Job, JobKey, Queue
from page.server.running_jobs import MAX_STOPS, Jobs
from page.workers.messages import Queued, format_wait
from pruning.errors import Cancelled


def take_turn(job):
    """Take the turn of a job whose turn it is."""
    assert list(job.wait_turn()) == []


def job_of(queue, address="", session=None, **settings):
    key = (
        None if session is None and not address else JobKey(session or f"session{id(object())}", "", address)
    )
    return Job(queue, key=key, **settings)


class Waiting:
    """A job that waits, with the place that it last read."""

    def __init__(self, queue, address="", session=None):
        self.job = job_of(queue, address, session or f"{address}-{id(self)}")
        self.places = self.job.wait_turn()
        self.has_turn = False
        self.read()

    def read(self):
        """Read the next place; None if it is the job's turn."""
        try:
            self.place = next(self.places).position
        except StopIteration:
            self.place, self.has_turn = None, True
        return self.place

    def end(self):
        self.places.close()
        self.job.leave_queue()


@pytest.fixture(autouse=True)
def frequent_places(monkeypatch):
    monkeypatch.setattr("page.server.queue.HEARTBEAT_SECONDS", 0.0)


def serve_all(waiting):
    """Serve jobs until none waits; return them in the order of their turns."""
    left, served = list(waiting), []
    while left:
        for one in left:
            if not one.has_turn:
                one.read()
        (current,) = (one for one in left if one.has_turn)
        served.append(current)
        left.remove(current)
        current.end()
    return served


def test_jobs_of_one_address_are_served_in_turn_and_learn_their_place():
    queue = Queue(size=3)
    first, second, third = (Waiting(queue) for _ in range(3))
    assert [first.place, second.place, third.place] == [None, 2, 3]
    first.end()
    assert [second.read(), third.read()] == [None, 2]


def test_a_waiting_job_yields_its_place_again_while_nothing_moves():
    queue = Queue(size=1)
    take_turn(Job(queue))
    waiting = Job(queue).wait_turn()
    assert [next(waiting), next(waiting)] == [Queued(2), Queued(2)]


def test_a_waiting_visitor_is_told_about_how_long():
    queue = Queue(size=3)
    first, second = Job(queue), Job(queue)
    take_turn(first)
    waiting = second.wait_turn()
    assert next(waiting).text == "You are number 2 in the queue."
    time.sleep(0.1)
    first.requeue()
    assert list(waiting) == []
    assert 0.1 <= queue.estimate(1) < 10
    third = Job(queue).wait_turn()
    assert next(third).text == "You are number 2 in the queue, about 10 seconds."


def test_a_wait_is_estimated_from_turns_of_the_same_kind():
    queue = Queue(size=8)
    queue._turns = {"measure": deque([40.0, 44.0]), "write": deque([2.0])}
    assert Queue(size=8).estimate(1) is None
    running = Job(queue)
    running.work = "write"
    take_turn(running)
    assert 0.5 <= queue.estimate(1) <= 2.0
    for number in range(2):
        waiting = Waiting(queue, session=f"s{number}")
        waiting.job.work = "measure"
    assert 84.0 <= queue.estimate(3) <= 86.0
    queue._turn_start -= 100
    assert queue.estimate(1) == 0.5
    for job in queue._jobs():
        job.work = "new"
    assert queue.estimate(2) == pytest.approx(0.5 + 86 / 3)


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


def test_a_job_that_requeues_lets_its_own_address_and_one_of_each_other_go_first():
    queue = Queue(size=8)
    first = Waiting(queue, "school")
    rest = [Waiting(queue, address) for address in ("school", "home", "home", "cafe")]
    first.job.requeue()
    again = Waiting.__new__(Waiting)
    again.job, again.places, again.has_turn = first.job, first.job.wait_turn(), False
    served = serve_all([*rest, again])
    assert [served.index(one) for one in rest] == [2, 0, 3, 1]
    assert served[-1] is again


def test_who_has_seen_nothing_goes_before_all_that_are_measured():
    queue = Queue(size=5)
    running, first, second = (Waiting(queue) for _ in range(3))
    for one in (running, first, second):
        one.read()
    for one in (first, second):
        queue.requeue(one.job)
    late = Waiting(queue)
    assert late.read() == 2
    assert [first.read(), second.read()] == [3, 4]
    assert serve_all([running, first, second, late]) == [running, late, first, second]


def test_a_full_queue_takes_no_more_from_those_who_have_the_most():
    queue = Queue(size=1)
    first, second = Waiting(queue), Waiting(queue)
    assert second.place == 2
    with pytest.raises(Busy, match=r"The queue is full \(1 waiting\)"):
        Waiting(queue)
    second.end()
    assert Waiting(queue).place == 2
    assert first.has_turn


def test_a_class_at_one_address_is_served_and_another_visitor_waits_for_one_of_its_jobs():
    queue = Queue(size=40)
    pupils = [Waiting(queue, "school", f"pupil{number}") for number in range(30)]
    other = Waiting(queue, "home", "other")
    assert other.place == 2
    served = serve_all([*pupils, other])
    assert served.index(other) == 1
    assert [one for one in served if one is not other] == pupils


def test_a_stranger_who_takes_all_places_does_not_shut_others_out():
    queue = Queue(size=8)
    stranger = [Waiting(queue, "stranger", f"made-up-{number}") for number in range(9)]
    others = [Waiting(queue, f"home{number}") for number in range(5)]
    assert [one.place for one in others] == [2, 3, 4, 5, 6]
    assert [one.read() for one in stranger[1:4]] == [7, 8, 9]
    for one in stranger[4:]:
        with pytest.raises(Busy, match="went to someone else"):
            one.read()
    with pytest.raises(Busy, match="The queue is full"):
        Waiting(queue, "stranger", "one-more")


def test_at_the_largest_address_the_session_with_the_most_jobs_gives_way():
    queue = Queue(size=3)
    Waiting(queue, "school", "running")
    patient = Waiting(queue, "school", "patient")
    eager = [Waiting(queue, "school", "eager") for _ in range(2)]
    other = Waiting(queue, "home")
    assert other.place == 2
    assert (patient.read(), eager[0].read()) == (3, 4)
    with pytest.raises(Busy):
        eager[1].read()


def test_a_session_has_a_few_waiting_jobs_at_most_even_with_several_addresses():
    queue = Queue(size=8)
    take_turn(Job(queue))
    waiting = [Waiting(queue, f"net{number}", "ada") for number in range(SESSION_JOBS)]
    with pytest.raises(Busy, match="You have 2 jobs waiting already"):
        Waiting(queue, "another", "ada")
    waiting[0].job.stop()
    assert Waiting(queue, "another", "ada").place


def test_a_closed_generator_leaves_the_queue():
    queue = Queue(size=3)
    take_turn(Job(queue))
    waiting = Waiting(queue)
    assert len(queue) == 2
    waiting.places.close()
    assert len(queue) == 1


def test_a_job_that_nobody_reads_is_dropped_while_it_waits(monkeypatch):
    queue = Queue(size=3)
    first, unread, read = Waiting(queue), Waiting(queue), Waiting(queue)
    unread.job.read_at -= 31
    assert read.read() == 2
    with pytest.raises(Busy):
        unread.read()
    assert first.has_turn


def test_a_turn_that_nobody_takes_goes_to_the_next():
    queue = Queue(size=3)
    first, unread, read = Waiting(queue), Waiting(queue), Waiting(queue)
    first.end()
    unread.job.read_at -= 31
    assert read.read() is None


def test_a_job_to_which_nobody_listens_ends_unless_it_is_detached():
    unheard = {"ada"}
    jobs, queue = Jobs(unheard.__contains__), Queue(size=3)
    take_turn(Job(queue))
    with pytest.raises(Cancelled, match="nobody listened"):
        next(jobs.start(JobKey("ada"), queue).wait_turn())
    with pytest.raises(Cancelled, match="nobody listened"):
        jobs.start(JobKey("ada", "prune")).check()
    jobs.start(JobKey("ada", "push"), detached=True).check()
    jobs.start(JobKey("bob")).check()
    assert len(queue) == 1


def test_a_job_that_starts_after_the_stop_that_followed_its_request_is_stopped():
    jobs, pressed = Jobs(), JobKey("ada")
    jobs.stop(JobKey("ada"))
    assert jobs.start(pressed).stopped
    assert not jobs.start(JobKey("ada")).stopped


def test_a_stop_that_comes_late_leaves_what_was_asked_for_after_it():
    jobs, stopping = Jobs(), JobKey("ada")
    job = jobs.start(JobKey("ada"))
    jobs.stop(stopping)
    assert not job.stopped


def test_few_stops_are_remembered():
    jobs = Jobs()
    for number in range(MAX_STOPS + 5):
        jobs.stop(JobKey(f"visitor {number}"))
    assert len(jobs._stops) == MAX_STOPS


def test_a_job_stopped_while_waiting_leaves_the_queue_immediately():
    queue, jobs = Queue(size=3), Jobs()
    take_turn(Job(queue))
    job = jobs.start(JobKey("ada"), queue)
    waiting = job.wait_turn()
    assert next(waiting).position == 2
    jobs.stop(JobKey("ada"))
    with pytest.raises(Cancelled):
        next(waiting)
    jobs.finish(JobKey("ada"), job)
    assert len(queue) == 1


def test_a_visitor_has_one_job_of_a_kind_wherever_they_come_from():
    jobs = Jobs()
    first, other = jobs.start(JobKey("ada", address="home")), jobs.start(JobKey("bob", address="home"))
    inspect = jobs.start(JobKey("ada", "inspect", "home"))
    second = jobs.start(JobKey("ada", address="train"))
    assert [job.stopped for job in (first, other, inspect, second)] == [True, False, False, False]


def test_leaving_stops_all_of_a_visitors_jobs_except_detached_ones():
    jobs = Jobs()
    prune, inspect = jobs.start(JobKey("ada")), jobs.start(JobKey("ada", "inspect"))
    push = jobs.start(JobKey("ada", "push"), detached=True)
    other = jobs.start(JobKey("adamant"))
    jobs.stop_session("ada")
    assert [job.stopped for job in (prune, inspect, push, other)] == [True, True, False, False]


def test_a_request_to_finish_does_not_stop_the_job():
    jobs = Jobs()
    job = jobs.start(JobKey("ada", "distill"))
    jobs.request_finish(JobKey("ada", "distill"))
    assert (job.finish_requested, job.stopped) == (True, False)


ADDRESSES = st.sampled_from("abcde")


@given(st.lists(ADDRESSES, min_size=1, max_size=25))
def test_whoever_waits_is_served_and_at_the_place_that_was_promised(addresses):
    queue = Queue(size=30)
    waiting = [Waiting(queue, address) for address in addresses]
    places = [one.has_turn or one.read() for one in waiting]
    served = serve_all(waiting)
    assert [1 if place is True else place for place in places] == [served.index(one) + 1 for one in waiting]


@given(st.lists(st.tuples(ADDRESSES, st.booleans()), min_size=1, max_size=40))
def test_nobody_is_overtaken_by_more_than_one_job_of_each_other_address(events):
    """Jobs come while others end; each event is the address of a new job, and whether a turn ends first."""
    queue, left, overtakers = Queue(size=100), [], {}

    def end_turn():
        (current,) = (one for one in left if one.has_turn)
        left.remove(current)
        current.end()
        for one in left:
            one.read()
        for one in left:
            if one.has_turn:
                for waiting in left:
                    if waiting is not one and one.number > waiting.number:
                        overtakers[waiting][one.job.key.address] += 1

    for number, (address, ends) in enumerate(events):
        if ends and left:
            end_turn()
        one = Waiting(queue, address)
        one.number, overtakers[one] = number, Counter()
        # Jobs of its own address that came before it each cost every other address a turn.
        one.ahead = sum(other.job.key.address == address for other in left)
        left.append(one)
    while left:
        end_turn()
    for one, counts in overtakers.items():
        assert counts[one.job.key.address] == 0
        assert all(count <= one.ahead + 1 for count in counts.values())


@given(st.integers(1, 12), st.lists(st.tuples(ADDRESSES, st.integers(0, 3)), max_size=40))
def test_the_queue_is_bounded_and_a_newcomer_is_refused_only_if_no_address_has_more(size, arrivals):
    queue, waiting = Queue(size), []
    take_turn(Job(queue))
    for address, session in arrivals:
        before = Counter(one.job.key.address for one in waiting)
        mine = sum(one.job.key.session == f"{address}{session}" for one in waiting)
        try:
            waiting.append(Waiting(queue, address, f"{address}{session}"))
        except Busy:
            crowded = sum(before.values()) == size and max(before.values()) <= before[address] + 1
            assert mine == SESSION_JOBS or crowded
        for one in list(waiting):
            try:
                one.read()
            except Busy:
                waiting.remove(one)
        assert len(queue) == len(waiting) + 1 <= size + 1
