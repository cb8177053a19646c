"""How long work tells where it stands."""

from collections.abc import Callable


class Progress(str):
    """A line of text to show, which also knows how far the work is.

    `done` of `total` parts of the stage that the line names; `total` is 0 where it is not known.
    """

    done: int
    total: int

    def __new__(cls, text: str, done: int = 0, total: int = 0):
        line = super().__new__(cls, f"{text}: {done} of {total}" if total else text)
        line.done, line.total = done, total
        line.text = text
        return line


Reporter = Callable[[Progress], None]
"""Called with every step of progress. It may raise `Cancelled` to stop the work."""


def silent(progress: Progress) -> None:
    """A reporter that says nothing."""
