"""The table of the jobs that run, one of each kind per visitor."""

import threading
from collections.abc import Callable
from typing import Protocol

from page.server.queue import Job, JobKey, Queue

MAX_STOPS = 1000
"""Of how many jobs it is remembered when they were last stopped."""


class Stoppable(Protocol):
    """What a visitor started, and may stop.

    Attributes:
        arrived: The place of its request among all requests.
        detached: Whether it continues without its visitor.
    """

    arrived: int
    detached: bool

    def stop(self) -> None:
        """Stop it, as far as it is this visitor's."""

    def replace(self) -> None:
        """Stop it, since the visitor started another one of the same kind."""

    def request_finish(self) -> None:
        """Ask it to end by itself, with what it has."""

    def leave_queue(self) -> None:
        """Let the next job start."""


class Jobs:
    """The running jobs of all visitors, one of each kind per visitor."""

    def __init__(self, is_unheard: Callable[[str], bool] | None = None) -> None:
        """Create an empty table.

        Args:
            is_unheard: Returns whether nobody listens to a session; None if that is not known.
        """
        self._jobs: dict[JobKey, Stoppable] = {}
        self._stops: dict[JobKey, int] = {}
        self._lock = threading.Lock()
        self._is_unheard = is_unheard

    def start(
        self,
        key: JobKey,
        queue: Queue | None = None,
        seconds: float | None = None,
        detached: bool = False,
    ) -> Job:
        """Create a job, and stop the one that had its key."""
        job = Job(queue, seconds, detached, key, self._is_unheard)
        self.replace(key, job)
        return job

    def replace(self, key: JobKey, job: Stoppable | None = None) -> Stoppable | None:
        """Stop the job that has a key, without another word to its visitor, and let another have the key.

        If the one that has it was asked for later, it is the other that is stopped: it took longer to plan. A job that
        was asked for before the visitor pressed Stop is stopped too.

        Returns:
            The job that was stopped, if there was one.
        """
        with self._lock:
            present = self._jobs.pop(key, None)
            kept, stopped = job, present
            if job is not None and present is not None and present.arrived > job.arrived:
                kept, stopped = present, job
            if stopped is not None:
                stopped.replace()
            if kept is not None:
                self._jobs[key] = kept
                if kept.arrived < self._stops.get(key, 0):
                    kept.stop()
            return stopped

    def __contains__(self, key: JobKey) -> bool:
        return key in self._jobs

    def request_finish(self, key: JobKey) -> None:
        """Ask a job to end by itself, with what it has."""
        with self._lock:
            if key in self._jobs:
                self._jobs[key].request_finish()

    def stop(self, key: JobKey) -> None:
        """Stop a job that was asked for before, also if it has not started yet."""
        with self._lock:
            self._stops.pop(key, None)
            self._stops[key] = key.arrived
            if len(self._stops) > MAX_STOPS:
                del self._stops[next(iter(self._stops))]
            if key in self._jobs and self._jobs[key].arrived <= key.arrived:
                self._jobs[key].stop()

    def stop_session(self, session: str) -> None:
        """Stop all jobs of a visitor, except detached ones."""
        with self._lock:
            for key, job in self._jobs.items():
                if key.session == session and not job.detached:
                    job.stop()

    def finish(self, key: JobKey, job: Stoppable) -> None:
        """Remove a job that has ended, and let the next one start."""
        job.leave_queue()
        with self._lock:
            if self._jobs.get(key) is job:
                del self._jobs[key]
