"""The worker processes of the page: for each kind of work, one that is active and one on standby.

A worker that dies, takes too much memory or cannot be stopped is replaced by the standby, and
only the task that it performed fails.
"""

import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from queue import Empty

from page.workers import fork_server
from page.workers.process import Running, WorkerProcess
from page.workers.protocol import Ending
from page.workers.storage import Storage
from page.workers.tasks import INTERACTIVE, LONG, LOOK_UP, Kind, Task
from page.workers.workbench import Visitor
from page.workers.worker import WorkerSettings
from pruning.child_environment import child_environment
from pruning.errors import PruningError
from pruning.files import cache_folder, temporary_folder
from pruning.memory import total_memory

MEMORY_SHARE = 0.8
"""The share of the machine's memory that the workers may take, unless `SECATEUR_MEMORY_SHARE` is set."""
LOOK_UPS = 3
"""How many look-ups run at the same time."""
LOOK_UP_BYTES = 500_000_000
"""What each may take at least."""
INTERACTIVE_NICENESS, LONG_NICENESS = 5, 12
"""The niceness of each kind of worker: the page goes first, then what visitors wait for, then long work."""
STORAGE_BYTES = 3_000_000_000
"""The most bytes of distilled models that are kept, and of downloads."""
INTERVAL = 0.1
"""Seconds between two looks at the workers, and at the job while its task is under way."""
ANSWER_SECONDS = 15.0
"""A worker that was heard this recently answers."""
MAX_RELEASED = 4
"""How many workers may finish a task without models, such as an upload, beside the one that works."""


def memory_share() -> float:
    """Read the setting `SECATEUR_MEMORY_SHARE`.

    Raises:
        PruningError: It is not a number above 0 and up to 1.
    """
    text = os.environ.get("SECATEUR_MEMORY_SHARE", str(MEMORY_SHARE))
    with suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise PruningError(f"SECATEUR_MEMORY_SHARE is {text!r}; it must be a number above 0 and up to 1.")


class Pool:
    """The workers of one kind.

    Attributes:
        settings: How each of them runs.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        size: int = 1,
        start: Callable[[WorkerSettings, Callable[[WorkerProcess], None]], WorkerProcess] = WorkerProcess,
    ) -> None:
        """Create a pool, whose workers start when it is opened.

        Args:
            settings: How each worker runs.
            size: How many work at the same time.
            start: Starts a worker.
        """
        self.settings, self.size, self._start = settings, size, start
        self._preparation: Task | None = None
        self._workers: list[WorkerProcess] = []
        self._standby: WorkerProcess | None = None
        self._released: list[WorkerProcess] = []
        self._changed = threading.Condition(threading.RLock())
        self._open = False

    def open(self) -> None:
        """Start the workers."""
        with self._changed:
            if not self._open:
                self._open = True
                self._fill()

    def close(self) -> None:
        """End the workers."""
        with self._changed:
            self._open = False
            for worker in self._all:
                worker.close()
                worker.kill()
            self._workers, self._standby, self._released = [], None, []

    def prepare(self, task: Task) -> None:
        """Have each worker perform a task before any other, those that come later too."""
        with self._changed:
            self._preparation = task
            for worker in self._all:
                worker.prepare(task)

    def perform(
        self,
        task: Task,
        visitor: Visitor,
        check: Callable[[], None],
        *,
        seconds: float | None = None,
        on_start: Callable[[Running], None] = lambda _: None,
        detached: bool = False,
    ) -> Generator[object, None, None]:
        """Perform a task in a free worker.

        Args:
            task: The task.
            visitor: Who asks.
            check: Called again and again meanwhile; what it raises stops the task.
            seconds: How long the task may take.
            on_start: Called with the running task.
            detached: Whether the task goes on if the events are no longer read.

        Yields:
            What the task emits, and in the end an `Ending`; `None` whenever nothing came for a moment.
        """
        running = self._begin(task, visitor, check, seconds)
        on_start(running)
        ended = False
        try:
            while not ended:
                check()
                try:
                    event = running.events.get(timeout=INTERVAL)
                except Empty:
                    yield None
                    continue
                ended = isinstance(event, Ending)
                yield event
        except BaseException as error:
            goes_on = detached and isinstance(error, GeneratorExit)
            if not (ended or goes_on):
                running.stop()
            raise

    def forget(self, owner: str) -> None:
        """Drop what belongs to an owner, in all workers."""
        with self._changed:
            for worker in self._all:
                worker.forget(owner)

    @property
    def workers(self) -> Sequence[WorkerProcess]:
        """Those that work or may be given work."""
        with self._changed:
            return tuple(self._workers)

    @property
    def memory(self) -> int:
        """The bytes that all workers took for themselves."""
        with self._changed:
            return sum(worker.memory for worker in self._all)

    @property
    def ready(self) -> bool:
        """Whether some worker answers."""
        return any(
            worker.alive and worker.ready.is_set() and worker.silence < ANSWER_SECONDS
            for worker in self.workers
        )

    @property
    def _all(self) -> list[WorkerProcess]:
        return [*self._workers, *([self._standby] if self._standby else []), *self._released]

    def _begin(
        self, task: Task, visitor: Visitor, check: Callable[[], None], seconds: float | None
    ) -> Running:
        while True:
            check()
            with self._changed:
                if not self._open:
                    raise PruningError("The page is closing. Please try again in a minute.")
                for worker in self._workers:
                    if worker.alive and worker.running is None:
                        return worker.perform(task, visitor, seconds)
                self._changed.wait(INTERVAL)

    def watch(self) -> None:
        """Kill workers that take too much, and replace those that have ended."""
        with self._changed:
            if not self._open:
                return
            for worker in self._all:
                worker.check()
            self._released = [worker for worker in self._released if worker.alive and self._is_needed(worker)]
            self._fill()
            self._changed.notify_all()

    def _is_needed(self, worker: WorkerProcess) -> bool:
        if worker.running is not None:
            return True
        worker.close()
        return False

    def _fill(self) -> None:
        """Replace workers that have ended, and start one that stands by."""
        self._workers = [worker for worker in self._workers if worker.alive]
        if self._standby is not None and not self._standby.alive:
            self._standby = None
        while len(self._workers) < self.size:
            self._workers.append(self._standby or self._new())
            self._standby = None
        if self._standby is None:
            self._standby = self._new()

    def _new(self) -> WorkerProcess:
        worker = self._start(self.settings, self._on_released)
        if self._preparation is not None:
            worker.prepare(self._preparation)
        return worker

    def _on_released(self, worker: WorkerProcess) -> None:
        """Give a worker's place to another: the rest of its task needs no models."""
        with self._changed:
            if worker in self._workers and len(self._released) < MAX_RELEASED:
                self._workers.remove(worker)
                self._released.append(worker)
                self._fill()
                self._changed.notify_all()


class Pools:
    """All workers of the page, by kind.

    `interactive` workers do what a visitor waits for: prune, write, measure, look inside. `long` ones do what
    takes minutes, and stand back for the others: distill, search, export, publish. `look_up` workers find
    models and read their configs, for previews.

    Attributes:
        models: Models that took minutes to make, and reports, for all workers.
        downloads: Files that visitors download.
    """

    def __init__(self) -> None:
        """Create closed pools."""
        self._pools: dict[Kind, Pool] = {}
        self.models: Storage | None = None
        self.downloads: Storage | None = None
        self._stack = ExitStack()
        self._closed = threading.Event()

    def open(self) -> None:
        """Start the workers, and a thread that watches them."""
        fork_server.start()
        memory = worker_memory()
        # Nobody else reads it. It is removed at the end, or by the next run if this one is killed.
        folder = self._stack.enter_context(temporary_folder(cache_folder() / "page"))
        self.models = Storage(folder / "models", STORAGE_BYTES)
        self.downloads = Storage(folder / "downloads", STORAGE_BYTES)
        environment = child_environment()
        settings = WorkerSettings(
            memory, models=self.models, downloads=self.downloads, environment=environment
        )
        look_ups = WorkerSettings(max(LOOK_UP_BYTES, memory // 10), environment=environment)
        self._pools = {
            INTERACTIVE: Pool(replace(settings, niceness=INTERACTIVE_NICENESS)),
            LONG: Pool(replace(settings, niceness=LONG_NICENESS)),
            LOOK_UP: Pool(look_ups, size=LOOK_UPS),
        }
        for pool in self._pools.values():
            pool.open()
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        """End the workers."""
        self._closed.set()
        for pool in self._pools.values():
            pool.close()
        self._stack.close()

    def __getitem__(self, kind: Kind) -> Pool:
        return self._pools[kind]

    def forget(self, owner: str) -> None:
        """Drop what belongs to an owner, in all workers and on disk."""
        for pool in self._pools.values():
            pool.forget(owner)
        for storage in (self.models, self.downloads):
            if storage is not None:
                storage.forget(owner)

    @property
    def memory(self) -> int:
        """The bytes that all workers took for themselves."""
        return sum(pool.memory for pool in self._pools.values())

    @property
    def ready(self) -> Mapping[Kind, bool]:
        """Whether each kind of worker answers."""
        return {kind: pool.ready for kind, pool in self._pools.items()}

    def _watch(self) -> None:
        while not self._closed.wait(INTERVAL):
            for pool in self._pools.values():
                pool.watch()


def worker_memory() -> int:
    """Return how many bytes each of the two workers with models may take for itself."""
    return int(total_memory() * memory_share() / 2)
