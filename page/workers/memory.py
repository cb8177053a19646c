"""How much memory the machine has for models, and handing it back."""

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path

import psutil

from pruning import PruningError

MEMORY_SHARE = 0.4
"""The share of the machine's memory that models may take, unless `SECATEUR_MEMORY_SHARE` is set."""


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


def machine_memory() -> int:
    """Return how many bytes of memory this process may use: the machine's, or its container's if less."""
    total = psutil.virtual_memory().total
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            total = min(total, int(Path(file).read_text()))
    return total


def release_memory() -> None:
    """Return freed memory to the system, which glibc otherwise does late."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
