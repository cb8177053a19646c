"""Run a program that handles a stranger's files, in a child process with limits on memory, time and files."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pruning import child_limits
from pruning.child_environment import child_environment


class Exhausted(Exception):
    """A child process died, or did not end within its limits.

    Attributes:
        printed: What it printed to its standard error, if it died.
    """

    def __init__(self, printed: str = "") -> None:
        super().__init__(printed)
        self.printed = printed


def run_limited(
    program: str,
    *arguments: str,
    content: bytes,
    packages: Sequence[str],
    memory: int,
    cpu_seconds: int,
    seconds: float,
) -> Any:
    """Run a Python file in a child process without secrets, and return the JSON value that it prints.

    The program finds the standard library and the packages that are named, and not this one.

    Args:
        program: The file.
        *arguments: Its arguments.
        content: What it reads from its standard input.
        packages: The installed packages that it imports.
        memory: Bytes of address space that it may take.
        cpu_seconds: Seconds on the processor that it may take.
        seconds: How long it may take on a busy machine.

    Raises:
        Exhausted: It died, or did not end in time.
        OSError: It could not be started.
        ValueError: What it printed is not JSON.
    """
    path = os.pathsep.join(dict.fromkeys(map(_folder_of, packages)))
    command = [sys.executable, "-I", child_limits.__file__, str(memory), str(cpu_seconds), path, program]
    # One thread and one heap: each further one takes a large part of the address space that is limited.
    environment = child_environment(
        TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1", MALLOC_ARENA_MAX="1"
    )
    try:
        child = subprocess.run(
            [*command, *arguments],
            input=content,
            capture_output=True,
            env=environment,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Exhausted from None
    if child.returncode:
        raise Exhausted(child.stderr.decode("utf-8", "replace"))
    return json.loads(child.stdout)


def _folder_of(package: str) -> str:
    """Return the folder in which a package is installed."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise OSError(f"the package {package} is not installed")
    return str(Path(spec.origin).parent.parent)
