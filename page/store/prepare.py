"""Make the results that come with the program: `python -m page.store.prepare`.

They are those of the default recipe at every tenth, for every prompt that the page offers, and of the lessons, on the
weights that come as a Python package. What is prepared already is left as it is.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

from page.store.defaults import tasks_by_name
from page.store.keys import result_key
from page.store.packaged import packaged_base
from page.store.results import PREPARED, Entry, Key, read_prepared, write_prepared
from page.store.values import encode
from page.workers.messages import Progress, TaskEvent
from page.workers.tasks import Task, TaskContext
from page.workers.workbench import Visitor, Workbench
from pruning import catalog
from pruning.errors import ModelError
from pruning.runtime import configure

MAX_BYTES = 6_000_000_000
"""What the models take that are kept meanwhile."""


class NeverStopped:
    """The control of a task that nobody stops."""

    stopped = finish_requested = False


class Bench:
    """Performs tasks in this process, on the packaged weights."""

    def __init__(self) -> None:
        self._workbench = Workbench(MAX_BYTES)

    def perform(self, task: Task) -> object:
        """Return the result of a task.

        Raises:
            ModelError: It was not made with the packaged weights.
        """
        result = task.perform(TaskContext(self._workbench, Visitor(), _report, NeverStopped()))
        base = self._workbench.load(catalog.DEFAULT_MODEL, Visitor())
        if base.source.revision != packaged_base(catalog.DEFAULT_MODEL).revision:
            raise ModelError(f"The weights are not the packaged ones: {base.source.revision}.")
        return result


def _report(event: TaskEvent) -> None:
    if isinstance(event, Progress):
        print(f"\r{event.text[:70]:<72}", end="", file=sys.stderr, flush=True)


def prepare(
    folder: Path,
    perform: Callable[[Task], object],
    names: Sequence[str] = (),
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Make the results that are missing in a folder, file by file, and drop those that nobody asks for any more.

    Args:
        folder: Where the files are.
        perform: Performs a task.
        names: What the names of the files begin with; none for all files.
        is_over: Returns whether to stop.
    """
    there = dict(read_prepared(folder))
    for name, tasks in tasks_by_name(packaged_base(catalog.DEFAULT_MODEL).revision):
        if names and not name.startswith(tuple(names)):
            continue
        entries: dict[Key, Entry] = {}
        for task in tasks:
            key = result_key(task, packaged_base)
            assert key is not None, "what is prepared is public and lasts"
            if (entry := there.get(key.name)) is not None:
                entries[key] = entry
            elif not is_over():
                entries[key] = Entry(encode(task, perform(task)), date.today())
        if entries:
            write_prepared(folder / f"{name}.json", entries)
        print(f"\r{name}: {len(entries)} of {len(tasks)} results", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the prepared results that are missing."""
    parser = argparse.ArgumentParser(prog="python -m page.store.prepare", description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="what the names of the files begin with; by default all files"
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin nothing new after this time"
    )
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    configure()
    prepare(PREPARED, Bench().perform, options.names, lambda: time.monotonic() > end)


if __name__ == "__main__":
    main()
