"""Work that a visitor waits for: it runs in a thread, tells where it stands, and can be stopped."""

import queue
import threading
from collections.abc import Callable, Iterator

from pruning.errors import Cancelled
from pruning.progress import Progress


class Job:
    """One piece of work of one visitor."""

    def __init__(self):
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

    def check(self) -> None:
        if self.stopped:
            raise Cancelled("Stopped. Nothing was changed.")

    def watch(self, work: Callable[[Callable[[object], None]], object]) -> Iterator[object]:
        """Run `work(tell)` in a thread; yield what it tells, and last a one-tuple of its result.

        Of progress that comes faster than it is taken, only the newest is passed on. Raises what the
        work raises; `Cancelled` as soon as the job is stopped, though the thread may take a moment
        longer to notice.
        """
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
        while True:
            self.check()
            try:
                event = events.get(timeout=0.2)
            except queue.Empty:
                continue
            while isinstance(event, Progress) and not events.empty():
                event = events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, tuple) and len(event) == 1:
                return


class Jobs:
    """The job that each visitor has under way, by session."""

    def __init__(self):
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self, session: str) -> Job:
        """A new job; the one before it is stopped."""
        with self._lock:
            if session in self._jobs:
                self._jobs[session].stop()
            job = self._jobs[session] = Job()
            return job

    def ask(self, session: str) -> None:
        with self._lock:
            if session in self._jobs:
                self._jobs[session].ask()

    def stop(self, session: str) -> None:
        with self._lock:
            if session in self._jobs:
                self._jobs.pop(session).stop()

    def finish(self, session: str, job: Job) -> None:
        with self._lock:
            if self._jobs.get(session) is job:
                del self._jobs[session]
