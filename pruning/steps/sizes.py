"""How much to remove: the fields that several steps have, and sizes in words."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

MULTIPLES: Mapping[object, str] = {1: "any", 8: "8", 32: "32", 64: "64", 128: "128", 256: "256"}
"""What a size may be rounded up to a multiple of, if the user chooses."""

Size = Annotated[int, Field(ge=1)]
Multiple = Annotated[int, Field(ge=1, le=4096)]


def fraction_of(units: str) -> AfterValidator:
    """Make a validator that accepts shares of some units, greater than 0 and less than 1."""

    def check(value: float | None) -> float | None:
        if value is not None and not 0 < value < 1:
            raise ValueError(
                f"a share of the {units} greater than 0 and less than 1 is needed, not {value:g}"
            )
        return value

    return AfterValidator(check)


def one_number(reason: str) -> BeforeValidator:
    """Make a validator that refuses several numbers, such as one for each layer, with the reason."""

    def check(value: object) -> object:
        if isinstance(value, list | tuple | dict):
            raise ValueError(f"{reason}. Give one number")
        return value

    return BeforeValidator(check)


def kept_size(size: int, fraction: float | None, requested: int | None, multiple_of: int) -> int:
    """Return how many of some units to keep.

    Args:
        size: How many there are.
        fraction: The share to remove, rounded down to whole units; None if `requested` is given.
        requested: How many to keep, instead.
        multiple_of: What the result is rounded up to a multiple of, so that no more is removed than asked.
    """
    kept = requested if requested is not None else size - int((fraction or 0.0) * size)
    return -(-kept // multiple_of) * multiple_of


def describe_size(fraction: float | None, kept: int | None, units: str) -> str:
    """Say how much of some units is removed, given either the share removed or the number kept."""
    return f"{100 * fraction:.4g} % of {units}" if fraction is not None else f"all but {kept} of {units}"


def exactly_one(first: object, second: object) -> bool:
    """Whether one of two alternative fields is given, and only one."""
    return (first is None) != (second is None)
