"""One worker process, as the page sees it: started from a server that has only imported, watched, and killed."""

import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Protocol

from page.workers import fork_server, worker
from page.workers.messages import Failed, Released
from page.workers.protocol import Alive, Answer, Command, Ending, Event, Finish, Forget, Perform, Quit, Stop
from page.workers.tasks import Task
from page.workers.workbench import Visitor
from page.workers.worker import BUG, WorkerSettings, memory_message
from pruning.memory import private_memory

SILENCE_SECONDS = 60.0
"""A worker that sends no heartbeat for so long is stuck, and is killed."""
START_SECONDS = 300.0
"""The same before its first heartbeat: on a slow machine, the imports take a while."""
STOP_SECONDS = 3.0
"""How long a task that was stopped may take to notice; then its worker is killed."""
ENDED = "The work ended unexpectedly and has to be started again. Press the button once more."

log = logging.getLogger("secateur")
PREPARATION = 0
"""The number of the task that a worker performs before all others."""
_numbers = itertools.count(PREPARATION + 1)


class Running:
    """A task under way in a worker.

    Attributes:
        events: What it emitted; the last one is an `Ending`.
        deadline: When its worker is killed, in seconds of the monotonic clock; None for never.
    """

    def __init__(self, process: "WorkerProcess", number: int) -> None:
        self.events: SimpleQueue[object] = SimpleQueue()
        self.deadline: float | None = None
        self._process, self._number = process, number

    def stop(self) -> None:
        """Stop it; its worker is killed if that takes too long."""
        stop_by = time.monotonic() + STOP_SECONDS
        self.deadline = stop_by if self.deadline is None else min(self.deadline, stop_by)
        self._process.send(Stop(self._number))

    def request_finish(self) -> None:
        """Ask it to end soon, with what it has."""
        self._process.send(Finish(self._number))


class Child(Protocol):
    """What a worker needs of the process that it runs in."""

    @property
    def pid(self) -> int | None:
        """Its number."""

    def is_alive(self) -> bool:
        """Whether it runs."""


def start_child(connection: Connection, settings: WorkerSettings) -> Child:
    """Start a worker in a process of its own."""
    process = fork_server.context.Process(target=worker.main, args=(connection, settings), daemon=True)
    process.start()
    connection.close()
    return process


class WorkerProcess:
    """A worker and the task that it performs. It takes one task at a time.

    Attributes:
        ready: Set as soon as it can work.
        running: The task under way.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        on_released: Callable[["WorkerProcess"], None],
        start: Callable[[Connection, WorkerSettings], Child] = start_child,
    ) -> None:
        """Start a process.

        Args:
            settings: How it runs.
            on_released: Called when its task needs no models any more, so that another may take its place.
            start: Starts the process.
        """
        self.ready = threading.Event()
        self.running: Running | None = None
        self._settings, self._on_released = settings, on_released
        self._number, self._base = PREPARATION, 0
        self._heard_at = time.monotonic()
        self._reason = ""
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._connection, other_end = multiprocessing.Pipe()
        self.process = start(other_end, settings)
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self.process.pid or 0

    @property
    def alive(self) -> bool:
        """Whether it can take a task, now or when the one under way has ended."""
        return not self._reason and self.process.is_alive()

    @property
    def silence(self) -> float:
        """Seconds since it was heard."""
        return time.monotonic() - self._heard_at

    @property
    def memory(self) -> int:
        """The bytes that it took for itself since it was started."""
        return max(0, private_memory(self.pid) - self._base)

    def perform(self, task: Task, visitor: Visitor, seconds: float | None = None) -> Running:
        """Start a task, which may take this many seconds."""
        running = Running(self, next(_numbers))
        running.deadline = None if seconds is None else time.monotonic() + seconds
        with self._lock:
            assert self.running is None, "a worker takes one task at a time"
            self.running, self._number = running, running._number
        self.send(Perform(running._number, task, visitor))
        if not self.alive:
            self._end(Failed(self._reason or ENDED))
        return running

    def prepare(self, task: Task) -> None:
        """Have a task performed before the first one; what it emits is dropped."""
        self.send(Perform(PREPARATION, task, Visitor()))

    def send(self, command: Command) -> None:
        """Send a command; to a process that has ended, it is lost."""
        with self._sending, suppress(OSError):
            self._connection.send(command)

    def forget(self, owner: str) -> None:
        """Drop what belongs to an owner, after the task under way."""
        self.send(Forget(owner))

    def check(self) -> None:
        """Kill the process if it takes too much memory or time, or is stuck."""
        running = self.running
        if self.ready.is_set() and self.memory > self._settings.memory:
            self.kill(memory_message(self._settings.memory))
        elif running is not None and running.deadline is not None and time.monotonic() > running.deadline:
            self.kill("The work could not be stopped in another way.")
        elif self.silence > (SILENCE_SECONDS if self.ready.is_set() else START_SECONDS):
            self.kill(ENDED)

    def kill(self, reason: str = ENDED) -> None:
        """End the process and its children; the task under way fails for this reason."""
        if not self._reason:
            self._reason = reason
            log.warning("worker %d is killed: %s", self.pid, reason)
        if self.pid:
            for kill in (os.killpg, os.kill):  # It may not lead its group yet.
                with suppress(ProcessLookupError, PermissionError):
                    kill(self.pid, signal.SIGKILL)
        self._end(Failed(self._reason))

    def close(self) -> None:
        """Ask the process to end."""
        self._reason = self._reason or ENDED
        self.send(Quit())

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                answer: Answer = self._connection.recv()
                self._heard_at = time.monotonic()
                if isinstance(answer, Alive):
                    if not self.ready.is_set():
                        self._base = private_memory(self.pid)
                        self.ready.set()
                else:
                    self._pass_on(answer)
        self._reason = self._reason or ENDED
        self._end(Failed(self._reason))

    def _pass_on(self, event: Event) -> None:
        with self._lock:
            running = self.running if event.number == self._number else None
        if running is None:
            return
        if isinstance(event.value, Ending):
            self._end(event.value)
            return
        if isinstance(event.value, Released):
            running.deadline = time.monotonic() + event.value.seconds
            self._on_released(self)
        running.events.put(event.value)

    def _end(self, ending: Ending) -> None:
        with self._lock:
            running, self.running = self.running, None
        if running is not None:
            if isinstance(ending, Failed) and ending.details:
                log.error("a task failed\n%s", ending.details)
                ending = Failed(BUG)
            running.events.put(ending)
