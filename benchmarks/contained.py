"""The page in a container-like limit of memory, with everything that it writes in one folder.

A memory cgroup limits the page and all its workers together, as a container does. Where none can be created,
each process gets a limit of its address space instead, which is weaker.
"""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from pruning.files import cache_folder
from pruning.memory import CGROUPS, private_memory

ROOT = Path(__file__).parents[1]
START_SECONDS = 300
MAPPED_BYTES = 64 * 10**9
"""Address space that a process may use beyond the limit, for libraries and for the files that it maps."""


@dataclass(frozen=True)
class Cgroup:
    """A memory cgroup of its own for the page.

    Attributes:
        folder: Its folder.
        limit_file: The file in it that holds the limit.
        anonymous: The name in `memory.stat` of the memory that is not files.
        events: The file that counts the processes that the kernel killed, as `oom_kill`.
    """

    folder: Path
    limit_file: str
    anonymous: str
    events: str

    def value(self, file: str, name: str) -> int:
        """Return a value of a file that has one on each line, 0 if there is none."""
        with suppress(OSError):
            for line in (self.folder / file).read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == name:
                    return int(value)
        return 0


def create_cgroup(limit: int) -> Cgroup | None:
    """Create a memory cgroup with a limit, of version 1 or 2; None where that is not allowed."""
    name = f"secateur-{os.getpid()}"
    for cgroup in (
        Cgroup(CGROUPS / "memory" / name, "memory.limit_in_bytes", "total_rss", "memory.oom_control"),
        Cgroup(CGROUPS / name, "memory.max", "anon", "memory.events"),
    ):
        try:
            cgroup.folder.mkdir()
        except OSError:
            continue
        try:
            (cgroup.folder / cgroup.limit_file).write_text(str(limit))
            return cgroup
        except OSError:
            with suppress(OSError):
                cgroup.folder.rmdir()
    return None


class ContainedPage:
    """The page under its limit.

    Attributes:
        url: Its address.
        folder: The folder that holds its caches, its temporary files and its log.
        kind: How it is limited, in words.
    """

    def __init__(self, process: psutil.Process, url: str, folder: Path, cgroup: Cgroup | None) -> None:
        self.process, self.url, self.folder, self._cgroup = process, url, folder, cgroup
        self._linked = 0
        self._linked = self.disk
        self.kind = f"memory cgroup {cgroup.folder}" if cgroup else "RLIMIT_AS of each process (no cgroup)"

    @property
    def alive(self) -> bool:
        """Whether the page's own process runs."""
        return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE

    @property
    def memory(self) -> int:
        """The bytes that the page and its workers take for themselves; memory that they share counts once."""
        if self._cgroup is not None:
            return self._cgroup.value("memory.stat", self._cgroup.anonymous)
        with suppress(psutil.Error):
            return shared_once([self.process, *self.process.children(recursive=True)])
        return 0

    @property
    def kernel_kills(self) -> int:
        """How many processes the kernel killed because memory ran out."""
        return self._cgroup.value(self._cgroup.events, "oom_kill") if self._cgroup else 0

    @property
    def disk(self) -> int:
        """The bytes of all files that came into the folder since the start."""
        total = -self._linked
        for root, _, files in os.walk(self.folder):
            for file in files:
                with suppress(OSError):
                    total += os.lstat(os.path.join(root, file)).st_blocks * 512
        return total

    @property
    def log(self) -> str:
        """What the page wrote to its log."""
        return (self.folder / "log.txt").read_text(errors="replace")


def workers(page: psutil.Process, nicenesses: tuple[int, ...] = ()) -> list[psutil.Process]:
    """Return the worker processes of a page; only those with one of some nicenesses, if given."""
    found = []
    for server in page.children():
        for worker in server.children():
            with suppress(psutil.Error):
                if not nicenesses or worker.nice() in nicenesses:
                    found.append(worker)
    return found


def busiest(processes: list[psutil.Process], seconds: float = 0.3) -> psutil.Process | None:
    """Return the process that used the processor most in a moment; None if there is none."""

    def used() -> dict[psutil.Process, float]:
        times = {}
        for process in processes:
            with suppress(psutil.Error):
                times[process] = sum(process.cpu_times()[:2])
        return times

    before = used()
    time.sleep(seconds)
    after = used()
    return max(after, key=lambda process: after[process] - before.get(process, 0.0), default=None)


def kill(process: psutil.Process) -> None:
    """Kill a process as the kernel would."""
    with suppress(psutil.Error):
        process.send_signal(signal.SIGKILL)


def shared_once(processes: list[psutil.Process]) -> int:
    """Return the private memory of processes; of a forked one, only what it took beyond its parent."""
    sizes = {process.pid: private_memory(process.pid) for process in processes}
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            # The page starts its children as new processes; only the fork server forks.
            is_forked = (
                process.ppid() in sizes and process.cmdline() == psutil.Process(process.ppid()).cmdline()
            )
            total += max(0, sizes[process.pid] - (sizes[process.ppid()] if is_forked else 0))
    return total


@contextmanager
def contained(folder: Path, limit: int, environment: Mapping[str, str]) -> Iterator[ContainedPage]:
    """Start the page under a limit, and yield it as soon as it answers.

    Args:
        folder: An empty folder for all that it writes.
        limit: The bytes of memory that it may use with its workers.
        environment: More variables of its environment.

    Raises:
        RuntimeError: The page did not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    places = {
        "HF_HOME": "hub",
        "SECATEUR_CACHE": "cache",
        "GRADIO_TEMP_DIR": "gradio",
        "TMPDIR": "temporary",
    }
    for place in places.values():
        (folder / place).mkdir()
    _link_cache(folder / "cache")
    variables = os.environ | {name: str(folder / place) for name, place in places.items()} | environment
    variables |= {"PORT": str(port), "GRADIO_SERVER_PORT": str(port), "PYTHONUNBUFFERED": "1"}
    cgroup = create_cgroup(limit)
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env=variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_join(cgroup, limit),
        )
    page = ContainedPage(psutil.Process(process.pid), url, folder, cgroup)
    try:
        _wait_for(page)
        yield page
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        _end(process, cgroup)


def _join(cgroup: Cgroup | None, limit: int) -> Callable[[], None]:
    """Return what the new process does before it becomes the page."""

    def join() -> None:
        if cgroup is not None:
            (cgroup.folder / "cgroup.procs").write_text(str(os.getpid()))
        else:
            space = limit + MAPPED_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (space, space))

    return join


def _link_cache(folder: Path) -> None:
    """Hard-link the user's converted weights and statistics where that is possible, to start warm."""
    for file in cache_folder().rglob("*"):
        place = folder / file.relative_to(cache_folder())
        if file.is_file() and file.relative_to(cache_folder()).parts[0] != "page":
            place.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):
                os.link(file, place)


def _wait_for(page: ContainedPage) -> None:
    deadline = time.monotonic() + START_SECONDS
    while page.alive and time.monotonic() < deadline:
        with suppress(OSError):
            urllib.request.urlopen(f"{page.url}/health", timeout=5).close()
            return
        time.sleep(0.5)
    raise RuntimeError(f"the page did not start:\n{page.log[-3000:]}")


def _end(process: "subprocess.Popen[bytes]", cgroup: Cgroup | None) -> None:
    """End what is left of the page, and remove its cgroup."""
    if process.poll() is None:
        process.kill()
        process.wait()
    if cgroup is None:
        return
    for _ in range(100):
        with suppress(OSError):
            for pid in (cgroup.folder / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        with suppress(OSError):
            cgroup.folder.rmdir()
            return
        time.sleep(0.1)
