"""The events with which long work reports its progress."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

BAR = 20
"""The width of a bar in characters."""


@dataclass(frozen=True)
class Progress:
    """One event of progress: a plain value that can be pickled, and prints as one line.

    Attributes:
        text: The stage that the work is in.
        done: Parts of the stage that are done.
        total: All parts of the stage; 0 if their number is unknown.
    """

    text: str
    done: int = 0
    total: int = 0

    def __str__(self) -> str:
        return f"{self.text}: {self.done} of {self.total}" if self.total else self.text


@dataclass(frozen=True)
class TrainingPulse(Progress):
    """A sign of life between two events of a training: before a micro-batch or a window is read.

    A reporter that raises `Cancelled` then ends the training, and nothing is kept.
    """


Reporter = Callable[[Progress], None]
"""Called with every event of progress. It may raise `Cancelled` to stop the work."""


def silent(_progress: Progress) -> None:
    """Report nothing."""


def at_place(place: Progress, progress: Reporter) -> Reporter:
    """Return a reporter that reports one place, whatever it is told."""
    return lambda _: progress(place)


def bar(progress: Progress) -> None:
    """Show the event in the last line of the terminal; report nothing if standard error is not one."""
    if sys.stderr.isatty() and not isinstance(
        progress, TrainingPulse
    ):  # The line of the last step says more.
        share = f"[{'█' * round(BAR * progress.done / progress.total):<{BAR}}] " if progress.total else ""
        print(f"\r\x1b[K{share}{progress}", end="", file=sys.stderr, flush=True)


def clear_bar() -> None:
    """Remove the last line of the terminal, where the bar was."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def with_bar(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Make a function whose `progress` is `bar` by default remove the bar when it ends."""

    @wraps(function)
    def run(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        try:
            return function(*arguments, **named)
        finally:
            if named.get("progress", bar) is bar:
                clear_bar()

    return run
