"""A worker process: it holds models and performs one task at a time. The page may kill it at any moment."""

import ctypes
import gc
import logging
import os
import re
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from page.workers.messages import Done, Failed, Progress, Stopped, TaskEvent
from page.workers.protocol import Alive, Answer, Command, Ending, Event, Finish, Forget, Perform, Quit, Stop
from page.workers.storage import Storage
from page.workers.tasks import TaskContext
from page.workers.workbench import Workbench
from pruning import memory
from pruning.errors import Cancelled, PruningError
from pruning.runtime import configure

PROGRESS_INTERVAL = 0.15
"""Seconds between two events of progress: each costs the page time that the work could use."""
HEARTBEAT_SECONDS = 1.0
MAPPED_BYTES = 32 * 1024**3
"""Address space for the files that a worker maps, which take no memory of their own."""
CACHE_SHARE = 0.5
"""The share of a worker's memory in which its models are kept; the rest is for its work."""
BUG = "Something went wrong on our side. It has been logged; please try again."
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker process runs.

    Attributes:
        memory: The bytes that it may take for itself, besides the files that it maps.
        niceness: How far it stands back when others need the processor.
        models: Where it keeps models that take minutes to make, and reports; None for nowhere.
        downloads: Where it writes what visitors download.
        environment: Its environment variables.
    """

    memory: int
    niceness: int = 0
    models: Storage | None = None
    downloads: Storage | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def main(connection: Connection, settings: WorkerSettings) -> None:
    """Serve the page at the other end of a connection, until it hangs up."""
    isolate(settings)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    configure()
    # Imported modules live as long as the process. Scanning them takes 0.2 seconds of every full collection.
    gc.freeze()
    # A task that is under way cannot be ended in any other way.
    Worker(connection, make_workbench(settings), lambda: os.killpg(0, signal.SIGKILL)).serve()


def isolate(settings: WorkerSettings) -> None:
    """Limit this process, and make it the leader of its own group, with which its children can be killed."""
    os.setsid()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(settings.environment)
    os.nice(settings.niceness)
    with suppress(OSError):
        # If memory runs out all the same, a worker is killed and not the page.
        Path("/proc/self/oom_score_adj").write_text("1000")
    # The page's watch is more exact; this holds between its looks. RLIMIT_DATA would count what is mapped.
    if not Path("/dev/nvidiactl").exists():  # A GPU's driver reserves address space without measure.
        space = memory.address_space() + settings.memory + MAPPED_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory.restrict(settings.memory)


def make_workbench(settings: WorkerSettings) -> Workbench:
    """Return an empty workbench within a worker's limits."""
    return Workbench(int(CACHE_SHARE * settings.memory), settings.models, settings.downloads)


class TaskControl:
    """The state of the task under way, set from the thread that listens to the page."""

    def __init__(self) -> None:
        self._stop, self._finish = threading.Event(), threading.Event()

    def stop(self) -> None:
        """Stop the task at its next event."""
        self._stop.set()

    def request_finish(self) -> None:
        """Ask the task to end with what it has."""
        self._finish.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    @property
    def finish_requested(self) -> bool:
        return self._finish.is_set() or self.stopped


class Worker:
    """Performs tasks in the order in which they come."""

    def __init__(self, connection: Connection, workbench: Workbench, on_hangup: Callable[[], None]) -> None:
        """Create a worker.

        Args:
            connection: The page.
            workbench: Its models.
            on_hangup: Called when the page has hung up, from another thread than the one that works.
        """
        self._connection, self._workbench, self._on_hangup = connection, workbench, on_hangup
        self._commands: SimpleQueue[Perform | Forget | None] = SimpleQueue()
        self._controls: dict[int, TaskControl] = {}
        self._hung_up = threading.Event()
        self._sending = threading.Lock()
        self._pending: Event | None = None
        self._sent_at = 0.0

    def serve(self) -> None:
        """Work until the page hangs up."""
        self._send(Alive())
        for work in (self._listen, self._pulse):
            threading.Thread(target=work, daemon=True).start()
        while (command := self._commands.get()) is not None:
            if isinstance(command, Forget):
                # In its turn, so that a task of the same owner cannot store anything afterwards.
                self._workbench.forget(command.owner)
            else:
                self._send(Event(command.number, self._perform(command)))
                del self._controls[command.number]
        with self._sending:
            self._connection.close()

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                command: Command = self._connection.recv()
                match command:
                    case Perform(number):
                        self._controls[number] = TaskControl()
                        self._commands.put(command)
                    case Forget():
                        self._commands.put(command)
                    case Quit():
                        break
                    case Stop(number) if number in self._controls:
                        self._controls[number].stop()
                    case Finish(number) if number in self._controls:
                        self._controls[number].request_finish()
        self._hung_up.set()
        self._commands.put(None)
        self._on_hangup()

    def _pulse(self) -> None:
        """Send heartbeats, and the newest progress if nothing came after it."""
        last = time.monotonic()
        while not self._hung_up.wait(PROGRESS_INTERVAL):
            with self._sending:
                if self._pending is not None:
                    self._write(self._pending)
                if time.monotonic() - last >= HEARTBEAT_SECONDS:
                    last = time.monotonic()
                    self._write(Alive())

    def _perform(self, command: Perform) -> Ending:
        control = self._controls[command.number]

        def emit(event: TaskEvent) -> None:
            context.check()
            self._emit(Event(command.number, event))

        context = TaskContext(self._workbench, command.visitor, emit, control)
        try:
            context.check()
            return Done(command.task.perform(context))
        except Cancelled as cancelled:
            return Stopped(str(cancelled))
        except PruningError as error:
            return Failed(str(error))
        except BaseException as error:
            if _is_out_of_memory(error):
                return Failed(memory_message(memory.restriction()))
            # A panic of a library in Rust is no Exception. Nothing may end the worker but the page.
            return Failed(BUG, traceback.format_exc())

    def _emit(self, event: Event) -> None:
        """Send an event of a task; of progress that comes faster than `PROGRESS_INTERVAL`, only the newest."""
        with self._sending:
            recent = time.monotonic() - self._sent_at < PROGRESS_INTERVAL
            if isinstance(event.value, Progress) and recent:
                self._pending = event
            else:
                self._write(event)

    def _send(self, answer: Answer) -> None:
        with self._sending:
            self._write(answer)

    def _write(self, answer: Answer) -> None:
        if isinstance(answer, Event):
            self._pending, self._sent_at = None, time.monotonic()
        with suppress(OSError):  # The page may be gone, or this worker may have ended.
            self._connection.send(answer)


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, torch or C++ means that memory ran out."""
    is_torchs = type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError)
        and re.search("can't allocate memory|bad_alloc", str(error)) is not None
    )
    return isinstance(error, MemoryError) or is_torchs


def memory_message(limit: int) -> str:
    """Return the message for a user whose task needed more memory than a worker may take."""
    return (
        f"This needed more than the {limit / 1e9:.1f} GB of memory that one job may take here, and was stopped. "
        "Choose a smaller model or a smaller text, or run Secateur on your own machine."
    )
