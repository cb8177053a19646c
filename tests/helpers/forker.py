"""A process that has imported everything once, and forks children that can be killed.

Run as a program, this file is that process: it reads orders from standard input, a line of JSON each, and
writes lines of JSON to standard output.
"""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pruning
from pruning.sharing import publish as publishing

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(Path(pruning.__file__).parents[1]),
}


class Forker:
    """The process as a test sees it."""

    def __init__(self, home):
        caches = {"HF_HOME": str(home), "SECATEUR_CACHE": str(home / "secateur")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.forker"],
            env=os.environ | ENVIRONMENT | caches,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def order(self, **values):
        """Send an order."""
        self.process.stdin.write(json.dumps(values) + "\n")
        self.process.stdin.flush()

    def read(self):
        """Return the next line that the process writes."""
        line = self.process.stdout.readline()
        assert line, "the forking process died"
        return json.loads(line)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@contextmanager
def forking_process(home):
    """Start a `Forker` with its caches in `home`, and end it afterwards."""
    forker = Forker(home)
    try:
        yield forker
    finally:
        forker.close()


def fork(work):
    """Do some work in a child process, and return its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(2, 1)  # What it prints must not be read as a reply.
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


def exit_code(pid):
    """Wait for a child, and return its exit code: negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def publish(folder, repo_id, endpoint):
    """Publish a folder in a child; write its process id, and when it ends, its exit code."""
    os.environ["HF_ENDPOINT"] = endpoint
    pid = fork(lambda: publishing.publish(folder, repo_id, token="ada-token"))
    yield pid
    yield exit_code(pid)


def kill_writers(kills, folder):
    """Kill children that write what the product writes; write what that left on disk."""
    from tests.helpers import writers

    yield writers.kill_at_random(kills, Path(folder))


ORDERS = {"publish": publish, "kill_writers": kill_writers}


def main():
    for line in sys.stdin:
        values = json.loads(line)
        for reply in ORDERS[values.pop("order")](**values):
            print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
