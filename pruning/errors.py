"""What can go wrong in a way that the user can fix.

Every message says what is wrong, with which value, and what to do. The page shows it as it is; the shell
prints it on one line and exits with status 2. Any other exception is a bug.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pruning.formatting import printable


class PruningError(Exception):
    """The base of every error that is meant for the user, in one line.

    Messages quote what strangers wrote: a line break or an escape sequence of theirs becomes a space.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


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


PANIC = "The model's tokenizer failed on this text. Use another text, or choose another model."


@contextmanager
def panics_as_errors(message: str = PANIC) -> Iterator[None]:
    """Turn a panic of a library in Rust, such as `tokenizers`, into a `ModelError` with a message.

    pyo3 raises panics as a `PanicException`, which is not an `Exception`: nothing else would catch it, and a
    thread that waits for an answer would wait indefinitely.

    Raises:
        ModelError: The block panicked.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ModelError(message) from None
