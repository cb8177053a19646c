"""Tasks for tests of the page's workers, and workers that run in a thread of the test's own process."""

import os
import re
import threading
import time
from dataclasses import dataclass

from page.workers.messages import Partial, Progress, Released
from page.workers.pool import Pool
from page.workers.process import WorkerProcess
from page.workers.tasks import LONG, Task
from page.workers.workbench import Workbench
from page.workers.worker import Worker, WorkerSettings
from pruning import RecipeError
from pruning.child_environment import child_environment

MB = 1_000_000


class ThreadChild:
    """A worker in a thread."""

    pid = None

    def __init__(self, connection, settings):
        worker = Worker(connection, Workbench(10**9), lambda: None)
        self._thread = threading.Thread(target=worker.serve, daemon=True)
        self._thread.start()

    def is_alive(self):
        return self._thread.is_alive()


def thread_pool(**settings):
    """Return an open pool whose workers are threads, so that what a test patches holds in them too."""
    return open_pool(start=lambda each, released: WorkerProcess(each, released, ThreadChild), **settings)


def open_pool(memory=2000 * MB, **settings):
    """Return an open pool of real worker processes."""
    given = WorkerSettings(memory, environment=child_environment())
    pool = Pool(given, **settings)
    pool.open()
    return pool


@dataclass(frozen=True)
class Answer(Task):
    """Emit some values, and return another."""

    value: object = None
    parts: tuple = ()

    def perform(self, context):
        for part in self.parts:
            context.emit(Partial(part))
        return self.value


@dataclass(frozen=True)
class LateAnswer(Answer):
    """The same, after all that wait."""

    requeues = True


@dataclass(frozen=True)
class LongAnswer(Answer):
    """The same, in a worker for long tasks."""

    kind = LONG


@dataclass(frozen=True)
class Fail(Task):
    """Raise an error for the user."""

    message: str

    def perform(self, context):
        raise RecipeError(self.message)


@dataclass(frozen=True)
class Break(Task):
    """Raise what no user should see."""

    secret: str

    def perform(self, context):
        raise ZeroDivisionError(self.secret)


class PanicException(BaseException):
    """As Rust libraries raise it."""


@dataclass(frozen=True)
class Panic(Task):
    """Raise what is no `Exception`."""

    def perform(self, context):
        raise PanicException("secret")


@dataclass(frozen=True)
class Count(Task):
    """Report progress, as fast as possible or slowly."""

    total: int = 100
    seconds: float = 0.0

    def perform(self, context):
        for done in range(self.total):
            context.emit(Progress("Working", done, self.total))
            time.sleep(self.seconds)
        return self.total


@dataclass(frozen=True)
class Endless(Task):
    """Work until it is stopped, and leave a file then."""

    file: str = ""

    def perform(self, context):
        try:
            while True:
                context.emit(Progress("Working"))
                time.sleep(0.01)
        finally:
            if self.file:
                open(self.file, "w").close()


@dataclass(frozen=True)
class UntilFinish(Task):
    """Work until it is asked to end with what it has."""

    def perform(self, context):
        context.emit(Progress("Working"))
        while not context.control.finish_requested:
            time.sleep(0.01)
        return "so far"


@dataclass(frozen=True)
class Deaf(Task):
    """Hear nothing: no event, and no heartbeat either, since the regular expression keeps the GIL."""

    def perform(self, context):
        context.emit(Partial("started"))
        re.match("(a+)+$", "a" * 64 + "b")


@dataclass(frozen=True)
class Sleep(Task):
    """Tell nothing for a while."""

    seconds: float

    def perform(self, context):
        context.emit(Partial("started"))
        time.sleep(self.seconds)
        return "slept"


@dataclass(frozen=True)
class Take(Task):
    """Take memory, a little at a time or at once."""

    size: int
    at_once: bool = False

    def perform(self, context):
        if self.at_once:
            return len(b"x" * self.size)
        taken = []
        while sum(map(len, taken)) < self.size:
            taken.append(b"x" * (50 * MB))
            time.sleep(0.05)
        return sum(map(len, taken))


@dataclass(frozen=True)
class Die(Task):
    """End the process."""

    def perform(self, context):
        context.emit(Partial("started"))
        os._exit(1)


@dataclass(frozen=True)
class StartChild(Task):
    """Start a process that outlives the task, and return its number."""

    def perform(self, context):
        import subprocess

        child = subprocess.Popen(["sleep", "1000"])
        context.emit(Partial(child.pid))
        time.sleep(1000)


@dataclass(frozen=True)
class Environment(Task):
    """Return the names of the environment variables, as the process and as the system see them."""

    def perform(self, context):
        with open("/proc/self/environ", "rb") as file:
            system = {entry.split(b"=")[0].decode() for entry in file.read().split(b"\0")}
        return set(os.environ), system


@dataclass(frozen=True)
class Upload(Task):
    """Release the models, and go on for a while."""

    seconds: float
    limit: float = 20.0
    kind = LONG

    def perform(self, context):
        context.emit(Released(self.limit))
        context.emit(Partial("uploading"))
        for _ in range(round(self.seconds / 0.02)):
            context.emit(Progress("Uploading"))
            time.sleep(0.02)
        return "url"


@dataclass(frozen=True)
class ProcessNumber(Task):
    """Return the number of the process."""

    def perform(self, context):
        return os.getpid()
