"""What can go wrong in a way that the user can fix.

Every message says what is wrong, with which value, and what to do. The page shows it as it is; the shell
prints it on one line and exits with status 2. Any other exception is a bug.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class PruningError(Exception):
    """The base of every error that is meant for the user."""


class ModelError(PruningError):
    """A model cannot be found, reached, accepted or read."""


class RecipeError(PruningError):
    """A recipe asks for something that is impossible or unclear.

    Attributes:
        place: Where in the recipe, as keys and indices from the outside in; empty if that is not known.
    """

    def __init__(self, message: str, place: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.place = place


class SavingError(PruningError):
    """A pruned model could not be written to disk or published."""


class Cancelled(PruningError):
    """The user stopped the work; none of it was kept."""


@contextmanager
def panics_as(error: Exception) -> Iterator[None]:
    """Raise `error` if a library written in Rust panics in the block.

    A panic reaches Python as a `PanicException`, which derives from `BaseException`: no handler of exceptions
    sees it. Other exceptions pass.

    Args:
        error: What to raise instead, such as `ModelError("The tokenizer of … is damaged …")`.
    """
    try:
        yield
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":
            raise
        raise error from None
