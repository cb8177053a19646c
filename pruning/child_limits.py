"""The beginning of a limited child process: set its limits, then run its program.

`python -I child_limits.py MEMORY SECONDS PATH PROGRAM ARGUMENT…`. It imports nothing but the standard library, so that
it starts fast and needs little memory. `pruning.limited_child` starts it.
"""

import os
import resource
import runpy
import sys


def limit_resources(memory: int, seconds: int) -> None:
    """Bound what this process may take. It writes no files.

    Args:
        memory: Bytes of address space.
        seconds: Seconds on the processor.
    """
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    _, memory, seconds, path, program, *arguments = sys.argv
    limit_resources(int(memory), int(seconds))
    sys.path += path.split(os.pathsep)
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
