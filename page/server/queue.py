"""Jobs of visitors: one at a time works on the models; each can be stopped and has a time limit."""

import threading
import time
from collections import deque
from collections.abc import Iterator

from page.workers.messages import Queued
from pruning.errors import Cancelled, PruningError

HEARTBEAT_SECONDS = 2.0
"""Seconds after which a waiting job yields its place again, so that a visitor who left is noticed."""


class Busy(PruningError):
    """The queue is full."""


class TooLong(PruningError):
    """The job took longer than a job may."""


class Queue:
    """Jobs that need the same resource, served one at a time in the order in which they came."""

    def __init__(self, size: int) -> None:
        """Create a queue in which at most `size` jobs wait, besides the one that is running."""
        self.size = size
        self._jobs: list[Job] = []
        self._moved = threading.Condition()
        self._turns: deque[float] = deque(maxlen=8)
        self._turn_start = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    def wait_turn(self, job: "Job") -> Iterator[Queued]:
        """Wait until a job is the first; yield its place whenever it changes, and every few seconds.

        Raises:
            Busy: The queue is full.
            Cancelled: The job was stopped.
        """
        self._enter(job)
        reported, reported_at = 0, time.monotonic()
        while True:
            job.check()
            with self._moved:
                ahead = self._jobs.index(job)
                if ahead == 0:
                    return
                if ahead == reported and time.monotonic() - reported_at < HEARTBEAT_SECONDS:
                    self._moved.wait(0.2)
                    continue
            reported, reported_at = ahead, time.monotonic()
            yield Queued(ahead + 1, self.estimate(ahead))

    def _enter(self, job: "Job") -> None:
        with self._moved:
            if job in self._jobs:
                return
            if len(self._jobs) > self.size:
                raise Busy(f"The queue is full ({self.size} waiting). Please try again in a few minutes.")
            if not self._jobs:
                self._turn_start = time.monotonic()
            self._jobs.append(job)

    def estimate(self, turns: int) -> float | None:
        """Return how many seconds this many turns take, judged by the last ones; None if there were none."""
        return turns * sum(self._turns) / len(self._turns) if self._turns else None

    def requeue(self, job: "Job") -> None:
        """Move a job behind all that wait now."""
        with self._moved:
            if job in self._jobs:
                self._remove(job)
                self._jobs.append(job)

    def leave(self, job: "Job") -> None:
        """Remove a job, so that the next one may start."""
        with self._moved:
            if job in self._jobs:
                self._remove(job)

    def _remove(self, job: "Job") -> None:
        if self._jobs[0] is job:
            now = time.monotonic()
            self._turns.append(now - self._turn_start)
            self._turn_start = now
        self._jobs.remove(job)
        self._moved.notify_all()


class Job:
    """One piece of work of one visitor.

    Attributes:
        detached: Whether the job continues without its visitor.
    """

    def __init__(
        self, queue: Queue | None = None, seconds: float | None = None, detached: bool = False
    ) -> None:
        """Create a job.

        Args:
            queue: Where the job waits for its turn, which it keeps until it is finished or requeued.
            seconds: How long it may take from then on.
            detached: Whether it continues without its visitor.
        """
        self.detached = detached
        self._queue, self._seconds = queue, seconds
        self._seconds_left = seconds
        self._deadline: float | None = None
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
        """Raise `Cancelled` if the job was stopped, and `TooLong` if its time is over."""
        if self.stopped:
            raise Cancelled("Stopped.")
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TooLong(
                f"This took longer than the {self._seconds:.0f} seconds that a job may take here, and was "
                "stopped. Ask for less, or run Secateur on your own machine."
            )


class Jobs:
    """The running jobs of all visitors, one of each kind per visitor.

    A job's name is the visitor's session, followed by its kind, if it has one.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(
        self,
        name: str,
        queue: Queue | None = None,
        seconds: float | None = None,
        detached: bool = False,
    ) -> Job:
        """Create a job, and stop the one that had its name."""
        with self._lock:
            if name in self._jobs:
                self._jobs[name].stop()
            job = self._jobs[name] = Job(queue, seconds, detached)
            return job

    def request_finish(self, name: str) -> None:
        """Ask a job to end by itself, with what it has."""
        with self._lock:
            if name in self._jobs:
                self._jobs[name].request_finish()

    def stop(self, name: str) -> None:
        """Stop a job, if there is one."""
        with self._lock:
            if name in self._jobs:
                self._jobs[name].stop()

    def stop_session(self, session: str) -> None:
        """Stop all jobs of a visitor, except detached ones."""
        with self._lock:
            for name, job in self._jobs.items():
                if name.split(" ")[0] == session and not job.detached:
                    job.stop()

    def finish(self, name: str, job: Job) -> None:
        """Remove a job that has ended, and let the next one start."""
        job.leave_queue()
        with self._lock:
            if self._jobs.get(name) is job:
                del self._jobs[name]
