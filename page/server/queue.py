"""The queue: one job at a time works on the models; each can be stopped and has a time limit."""

import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from page.workers.messages import Queued
from pruning.errors import Cancelled, PruningError

ARRIVALS = count()
"""Numbers requests in the order in which they came."""
HEARTBEAT_SECONDS = 2.0
"""Seconds after which a waiting job yields its place again, so that a visitor who left is noticed."""
UNREAD_SECONDS = 30.0
"""Seconds after which a waiting job is dropped whose place nobody reads."""
SESSION_JOBS = 2
"""How many jobs of one session may wait."""


class Busy(PruningError):
    """There is no place in the queue."""


class TooLong(PruningError):
    """The job took longer than a job may."""


@dataclass(frozen=True)
class JobKey:
    """Which job of which visitor: a session has one job of each kind.

    Attributes:
        session: The visitor's session.
        kind: What the job is for; empty for the main one.
        address: Where the visitor comes from, which may change between two calls.
        arrived: The place of the request that names it among all requests.
    """

    session: str
    kind: str = ""
    address: str = field(default="", compare=False)
    arrived: int = field(default_factory=lambda: next(ARRIVALS), compare=False)


class Queue:
    """Jobs that need the same resource, served one at a time.

    Addresses take turns, and each address's jobs are served in the order in which they came. So a visitor alone
    at an address waits for one job of a class that shares another, and the class is served all the same. A job that
    has shown something already waits for all that have shown nothing: first answers come before measurements.
    """

    def __init__(self, size: int, session_jobs: int = SESSION_JOBS) -> None:
        """Create a queue.

        Args:
            size: How many jobs may wait, besides the one that is running.
            session_jobs: How many of them may be of one session.
        """
        self.size, self._session_jobs = size, session_jobs
        self._running: Job | None = None
        self._is_taken = False  # Whether the job whose turn it is has noticed.
        # The addresses in the order of their turns. The one whose turn it is goes behind all others afterwards.
        self._waiting: dict[str, list[Job]] = {}
        self._moved = threading.Condition()
        self._turns: dict[str, deque[float]] = {}  # How long the last turns took, by what they were for.
        self._turn_start = 0.0

    def __len__(self) -> int:
        return len(self._jobs()) + (self._running is not None)

    def wait_turn(self, job: "Job") -> Iterator[Queued]:
        """Wait for a job's turn; yield its place whenever it changes, and every few seconds.

        A job that is no longer read leaves the queue.

        Raises:
            Busy: The queue is full, or its place went to a visitor who had none.
            Cancelled: The job was stopped.
        """
        has_turn = False
        try:
            self._enter(job)
            reported, reported_at = 0, time.monotonic()
            while True:
                job.check()
                with self._moved:
                    job.read_at = time.monotonic()
                    self._drop_ended()
                    ahead = self._count_ahead(job)
                    if ahead is None:
                        raise Busy("Your place in the queue went to someone else. Please try again.")
                    if ahead == 0:
                        has_turn = self._is_taken = True
                        return
                    if ahead == reported and time.monotonic() - reported_at < HEARTBEAT_SECONDS:
                        self._moved.wait(0.2)
                        continue
                reported, reported_at = ahead, time.monotonic()
                yield Queued(ahead + 1, self.estimate(ahead))
        finally:
            if not has_turn:
                self.leave(job)

    def estimate(self, turns: int) -> float | None:
        """Return how many seconds it takes until this many turns are over, the one under way among them.

        Each job is expected to take as long as the last ones of its kind, or else as the last ones of any kind.

        Returns:
            None if none has ended yet.
        """
        ended = [seconds for kind in self._turns.values() for seconds in kind]
        if not ended:
            return None
        any_kind = sum(ended) / len(ended)
        means = {kind: sum(seconds) / len(seconds) for kind, seconds in self._turns.items()}
        waiting = [means.get(job.work, any_kind) for job in self._jobs()]
        if self._running is None or not turns:
            return turns * any_kind
        expected = means.get(self._running.work, any_kind)
        # Longer than expected already, it may end soon or not.
        left = max(expected - (time.monotonic() - self._turn_start), expected / 4)
        return left + (turns - 1) * (sum(waiting) / len(waiting) if waiting else any_kind)

    def requeue(self, job: "Job") -> None:
        """Let all others go first that have shown nothing yet, and of the rest those before it."""
        with self._moved:
            job.has_shown = True
            if job is self._running:
                self._end_turn(again=job)
            elif job in self._jobs():
                self._remove(job)
                self._append(job)
                self._moved.notify_all()

    def leave(self, job: "Job") -> None:
        """Remove a job, so that the next one may start."""
        with self._moved:
            if job is self._running:
                self._end_turn()
            elif job in self._jobs():
                self._remove(job)
                self._moved.notify_all()

    def _enter(self, job: "Job") -> None:
        with self._moved:
            job.read_at = time.monotonic()
            if job is self._running or job in self._jobs():
                return
            self._drop_ended()
            if self._running is None:
                self._start(job)
                return
            self._make_room(job.key)
            self._append(job)

    def _make_room(self, key: JobKey) -> None:
        """Make room for another job, at the cost of the address with the most; raises `Busy`."""
        jobs = self._jobs()
        if sum(job.key.session == key.session for job in jobs) >= self._session_jobs:
            raise Busy(f"You have {self._session_jobs} jobs waiting already. Please wait for one of them.")
        if len(jobs) < self.size:
            return
        largest = max(self._waiting.values(), key=len, default=[])
        if len(largest) <= len(self._waiting.get(key.address, ())) + 1:
            raise Busy(f"The queue is full ({self.size} waiting). Please try again in a few minutes.")
        counts = Counter(job.key.session for job in largest)
        last = max(range(len(largest)), key=lambda index: (counts[largest[index].key.session], index))
        self._remove(largest[last])
        self._moved.notify_all()

    def _count_ahead(self, job: "Job") -> int | None:
        """Return how many turns come before a job's, if no other comes; None if it is not in the queue."""
        if job is self._running:
            return 0
        if job not in self._waiting.get(job.key.address, ()):
            return None
        return self._order().index(job) + (self._running is not None)

    def _order(self) -> list["Job"]:
        """Return the jobs that wait in the order of their turns, if no other comes."""
        waiting, order = {address: list(jobs) for address, jobs in self._waiting.items()}, []
        while waiting:
            job = _next(waiting)
            order.append(job)
            jobs = waiting.pop(job.key.address)
            jobs.remove(job)
            if jobs:
                waiting[job.key.address] = jobs
        return order

    def _jobs(self) -> list["Job"]:
        """Return the jobs that wait."""
        return [job for jobs in self._waiting.values() for job in jobs]

    def _append(self, job: "Job") -> None:
        """Let a job wait at its address. The turn of an address that has no other comes after all others'."""
        self._waiting.setdefault(job.key.address, []).append(job)
        self._last_is_running()

    def _last_is_running(self) -> None:
        """Put the address whose turn it is behind all others."""
        if self._running is not None:
            address = self._running.key.address
            if jobs := self._waiting.pop(address, None):
                self._waiting[address] = jobs

    def _remove(self, job: "Job") -> None:
        jobs = self._waiting[job.key.address]
        jobs.remove(job)
        if not jobs:
            del self._waiting[job.key.address]

    def _drop_ended(self) -> None:
        """Drop jobs that wait and were stopped, or that nobody reads."""
        oldest = time.monotonic() - UNREAD_SECONDS
        for job in self._jobs():
            if job.stopped or job.read_at < oldest:
                self._remove(job)
        if self._running is not None and not self._is_taken and self._running.read_at < oldest:
            self._end_turn()

    def _start(self, job: "Job | None") -> None:
        self._running, self._is_taken = job, False
        self._turn_start = time.monotonic()
        self._last_is_running()

    def _end_turn(self, again: "Job | None" = None) -> None:
        """Let the next job start, and one wait again that needs another turn."""
        if self._is_taken and self._running is not None:
            ended = self._turns.setdefault(self._running.work, deque(maxlen=8))
            ended.append(time.monotonic() - self._turn_start)
        if again is not None:
            again.read_at = time.monotonic()
            self._append(again)
        job = _next(self._waiting) if self._waiting else None
        if job is not None:
            self._remove(job)
        self._start(job)
        self._moved.notify_all()


def _next(waiting: Mapping[str, Sequence["Job"]]) -> "Job":
    """Return the job whose turn is next: the first by address that has shown nothing, or else the first."""
    jobs = [job for of_address in waiting.values() for job in of_address]
    return next((job for job in jobs if not job.has_shown), jobs[0])


class Job:
    """One piece of work of one visitor.

    Attributes:
        arrived: The place of its request among all requests.
        detached: Whether the job continues without its visitor.
        has_shown: Whether it had a turn before and gave way to others after it.
        key: Which job of which visitor it is.
        read_at: When the queue last saw that somebody waits for it.
        work: What it does in its next turn, as a word by which durations are told apart.
    """

    def __init__(
        self,
        queue: Queue | None = None,
        seconds: float | None = None,
        detached: bool = False,
        key: JobKey | None = None,
        is_unheard: Callable[[str], bool] | None = None,
    ) -> None:
        """Create a job.

        Args:
            queue: Where the job waits for its turn, which it keeps until it is finished or requeued.
            seconds: How long it may take from then on.
            detached: Whether it continues without its visitor.
            key: Which job it is; by default, one of a visitor of its own.
            is_unheard: Returns whether nobody listens to a session; None if that is not known.
        """
        self.detached = detached
        self.key = key or JobKey(f"job-{uuid.uuid4().hex}")
        self.arrived = self.key.arrived
        self.read_at = time.monotonic()
        self.work = ""
        self.has_shown = False
        self._queue, self._seconds = queue, seconds
        self._seconds_left = seconds
        self._deadline: float | None = None
        self._is_unheard = is_unheard
        self._stop = threading.Event()
        self._finish = threading.Event()

    def request_finish(self) -> None:
        """Ask the work to end by itself, with what it has."""
        self._finish.set()

    @property
    def finish_requested(self) -> bool:
        return self._finish.is_set() or self.stopped

    def stop(self) -> None:
        """Stop the work; its result is dropped."""
        self._stop.set()

    def replace(self) -> None:
        """Stop the work, since the visitor started another job of the same kind."""
        self.stop()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def wait_turn(self) -> Iterator[Queued]:
        """Wait for the job's turn, then start its clock."""
        if self._queue is not None:
            yield from self._queue.wait_turn(self)
        if self._seconds_left is not None and self._deadline is None:
            self._deadline = time.monotonic() + self._seconds_left

    def requeue(self) -> None:
        """Let all that wait go first. The wait does not count toward the job's time."""
        if self._queue is not None:
            self._queue.requeue(self)
        if self._deadline is not None:
            self._seconds_left, self._deadline = self._deadline - time.monotonic(), None

    def release(self, seconds: float) -> None:
        """Let the next job start, since the rest needs no models; it may take this many seconds."""
        self.leave_queue()
        self._seconds, self._deadline = seconds, time.monotonic() + seconds

    def leave_queue(self) -> None:
        """Let the next job start."""
        if self._queue is not None:
            self._queue.leave(self)

    def check(self) -> None:
        """Raise `Cancelled` if the job was stopped or nobody listens, and `TooLong` if its time is over."""
        if self.stopped:
            raise Cancelled("Stopped.")
        if not self.detached and self._is_unheard is not None and self._is_unheard(self.key.session):
            raise Cancelled("Stopped, because nobody listened.")
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TooLong(
                f"This took longer than the {self._seconds:.0f} seconds that a job may take here, and was "
                "stopped. Ask for less, or run Secateur on your own machine."
            )
