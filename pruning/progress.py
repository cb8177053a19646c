"""The events with which long work reports its progress."""

from collections.abc import Callable
from dataclasses import dataclass


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
