"""Work that a visitor waits for: it takes its turn, tells where it stands, and can be stopped."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from pruning.errors import Cancelled, PruningError
from pruning.progress import Progress

PULSE = 2.0
"""Seconds after which one who waits hears again, so that it shows when nobody listens any more."""


PACE = 0.15
"""Seconds between two reports of progress: each costs the page time that the work could use."""


class Busy(PruningError):
    """Too many others are waiting."""


class TooLong(PruningError):
    """The work took longer than a job may."""


def about(seconds: float | None) -> str:
    """A wait in words, rounded."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f", about {10 * max(1, round(seconds / 10))} seconds"
    return f", about {round(seconds / 60)} minutes"


class Line:
    """Jobs that want the same thing, served one at a time in the order in which they came."""

    def __init__(self, longest: int):
        self.longest = longest
        self._jobs: list[Job] = []
        self._moved = threading.Condition()
        self._turns: deque[float] = deque(maxlen=8)
        self._since = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    def turn(self, job: "Job") -> Iterator[int]:
        """Wait for the turn of a job; yields how many stand before it. Raises `Busy` where the line is
        full, `Cancelled` once the job is stopped."""
        with self._moved:
            if job not in self._jobs:
                if len(self._jobs) > self.longest:
                    raise Busy(
                        f"{self.longest} others are already waiting, and no more fit. "
                        "Try again in some minutes."
                    )
                if not self._jobs:
                    self._since = time.monotonic()
                self._jobs.append(job)
        told, since = 0, time.monotonic()
        while True:
            job.check()
            with self._moved:
                before = self._jobs.index(job)
                if before == 0:
                    return
                if before == told and time.monotonic() - since < PULSE:
                    self._moved.wait(0.2)
                    continue
            told, since = before, time.monotonic()
            yield before

    def seconds(self, before: int) -> float | None:
        """About how long so many turns take, from the last ones; None where there were none."""
        turns = list(self._turns)
        return before * sum(turns) / len(turns) if turns else None

    def give_way(self, job: "Job") -> None:
        """Put a job behind all who wait now."""
        with self._moved:
            if job in self._jobs:
                self._end(job)
                self._jobs.append(job)

    def leave(self, job: "Job") -> None:
        with self._moved:
            if job in self._jobs:
                self._end(job)

    def _end(self, job: "Job") -> None:
        if self._jobs[0] is job:
            now = time.monotonic()
            self._turns.append(now - self._since)
            self._since = now
        self._jobs.remove(job)
        self._moved.notify_all()


class Job:
    """One piece of work of one visitor. `line`: where it waits for its turn, which it keeps until it is
    finished or gives way; `seconds`: how long it may take from then on."""

    def __init__(self, line: Line | None = None, seconds: float | None = None, lasting: bool = False):
        self.lasting = lasting
        self._line, self._seconds = line, seconds
        self._left, self._deadline = seconds, None
        self._stopped = threading.Event()
        self._asked = threading.Event()

    def ask(self) -> None:
        """Ask the work to end by itself, with what it has."""
        self._asked.set()

    @property
    def asked(self) -> bool:
        return self._asked.is_set() or self.stopped

    def stop(self) -> None:
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def give_way(self) -> None:
        """Let all who wait go first. The wait is no part of the time that the job may take."""
        if self._line is not None:
            self._line.give_way(self)
        if self._deadline is not None:
            self._left, self._deadline = self._deadline - time.monotonic(), None

    def check(self) -> None:
        if self.stopped:
            raise Cancelled("Stopped. Nothing was changed.")
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TooLong(
                f"This took longer than the {self._seconds:.0f} seconds that one job may take here, and was "
                "stopped. Ask for less at once, or run Secateur on a machine of your own."
            )

    def watch(self, work: Callable[[Callable[[object], None]], object]) -> Iterator[object]:
        """Wait for the job's turn, then run `work(tell)` in a thread; yield what it tells, and last a
        one-tuple of its result.

        Of progress that comes faster than it is taken, or than `PACE`, only the newest is passed on.
        Raises what the work raises; `Cancelled` as soon as the job is stopped, though the thread may take
        a moment longer to notice. When nobody takes what is yielded any more, the work is stopped, unless
        the job is lasting.
        """
        if self._line is not None:
            for before in self._line.turn(self):
                others = "1 other is" if before == 1 else f"{before} others are"
                wait = about(self._line.seconds(before))
                yield Progress(f"Waiting for your turn: {others} before you{wait}")
        if self._left is not None and self._deadline is None:
            self._deadline = time.monotonic() + self._left
        events: queue.Queue = queue.Queue()

        def tell(event: object) -> None:
            self.check()
            events.put(event)

        def run() -> None:
            try:
                events.put((work(tell),))
            except BaseException as error:
                events.put(error)

        threading.Thread(target=run, daemon=True).start()
        over, newest, passed = False, None, 0.0
        try:
            while not over:
                self.check()
                try:
                    event = events.get(timeout=PACE)
                except queue.Empty:
                    event = newest
                if event is None:
                    continue
                if isinstance(event, Progress):
                    newest = event
                    if time.monotonic() - passed < PACE or not events.empty():
                        continue
                    passed = time.monotonic()
                newest = None
                if isinstance(event, BaseException):
                    raise event
                over = isinstance(event, tuple) and len(event) == 1
                yield event
        finally:
            if not over and not self.lasting:
                self.stop()

    def finish(self) -> None:
        """Let the next in line begin."""
        if self._line is not None:
            self._line.leave(self)


class Jobs:
    """What each visitor has under way: one job of a kind. A job's name is the visitor's session, then
    its kind, if it has one."""

    def __init__(self):
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(
        self, name: str, line: Line | None = None, seconds: float | None = None, lasting: bool = False
    ) -> Job:
        """A new job; the one before it is stopped."""
        with self._lock:
            if name in self._jobs:
                self._jobs[name].stop()
            job = self._jobs[name] = Job(line, seconds, lasting)
            return job

    def ask(self, name: str) -> None:
        with self._lock:
            if name in self._jobs:
                self._jobs[name].ask()

    def stop(self, name: str) -> None:
        with self._lock:
            if name in self._jobs:
                self._jobs[name].stop()

    def leave(self, session: str) -> None:
        """Stop all that a visitor has under way, except what is to last."""
        with self._lock:
            for name, job in self._jobs.items():
                if name.split(" ")[0] == session and not job.lasting:
                    job.stop()

    def finish(self, name: str, job: Job) -> None:
        job.finish()
        with self._lock:
            if self._jobs.get(name) is job:
                del self._jobs[name]
