"""How much memory this process may use: the machine's, or less if a container or a limit says so."""

import ctypes
import gc
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60
"""From here on, a limit is none: cgroups of version 1 write a number near 2⁶³."""


def total_memory() -> int:
    """Return how many bytes this process and its neighbors in the same container may use together."""
    limits = [limit for limit, _ in _cgroup_limits()]
    return min([psutil.virtual_memory().total, _limit_of_address_space(), *limits])


def available_memory() -> int:
    """Return how many bytes this process may still take, of the machine and of each container around it.

    Files in the page cache count as free: the system drops them when memory is needed.
    """
    free = [limit - used for limit, used in _cgroup_limits()]
    if (limit := _limit_of_address_space()) < UNLIMITED:
        free.append(limit - address_space())
    if _restriction is not None:
        free.append(_restriction.limit + _restriction.start - private_memory(os.getpid()))
    return max(0, min([psutil.virtual_memory().available, *free]))


@dataclass(frozen=True)
class _Restriction:
    """What this process may take for itself, from the moment when it held `start` bytes."""

    limit: int
    start: int


_restriction: _Restriction | None = None


def restrict(limit: int) -> None:
    """Count no more than this many bytes as available to this process, besides what it holds already."""
    global _restriction
    _restriction = _Restriction(limit, private_memory(os.getpid()))


def restriction() -> int:
    """Return the limit that `restrict` set, or else all memory."""
    return total_memory() if _restriction is None else _restriction.limit


def address_space() -> int:
    """Return the bytes of address space that this process uses."""
    return int(psutil.Process().memory_info().vms)


def private_memory(pid: int) -> int:
    """Return the bytes that belong to a process alone (`RssAnon`), without the files that it maps; 0 if it ended."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0


def release_memory() -> None:
    """Return freed memory to the system, which glibc otherwise does late."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _limit_of_address_space() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return UNLIMITED if limit == resource.RLIM_INFINITY else limit


def _cgroup_limits() -> Iterator[tuple[int, int]]:
    """Yield the limit of each cgroup around this process that has one, and what is used of it."""
    for folder, version in _cgroup_folders():
        names = (
            ("memory.max", "memory.current")
            if version == 2
            else (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        )
        with suppress(OSError, ValueError):
            limit, used = (int((folder / name).read_text()) for name in names)
            if limit < UNLIMITED:
                yield limit, max(0, used - _cached_files(folder, version))


def _cgroup_folders() -> Iterator[tuple[Path, int]]:
    """Yield the folders of the memory cgroups around this process, from its own outward."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, version = (CGROUPS / "memory", 1) if controllers else (CGROUPS, 2)
        folder = root / path.lstrip("/")
        # Inside a container, the path may be the one outside of it; the container's own cgroup is the root.
        while root in folder.parents:
            yield folder, version
            folder = folder.parent
        yield root, version


def _cached_files(folder: Path, version: int) -> int:
    """Return the bytes of a cgroup that are files in the page cache."""
    names = ("inactive_file", "active_file") if version == 2 else ("total_inactive_file", "total_active_file")
    with suppress(OSError, ValueError):
        values = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return sum(int(values.get(name, 0)) for name in names)
    return 0
