"""How much to remove: the fields that several steps have, and sizes in words."""

from collections.abc import Mapping
from math import floor, lcm
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

MULTIPLES: Mapping[object, str] = {1: "any", 8: "8", 32: "32", 64: "64", 128: "128", 256: "256"}
"""What a size may be rounded up to a multiple of, if the user chooses."""

WIDTH_MULTIPLES: Mapping[object, str] = {None: "32, the nearest", **MULTIPLES}
"""What a width may be a multiple of; by default the nearest one of `DEFAULT_MULTIPLE`."""

DEFAULT_MULTIPLE = 32
"""Quantization in groups of 32, 8-bit GGUF files and tensor parallelism need widths that are multiples of it."""

LEAST_LEVELS = 16
"""How many widths a small model can have at least; for these its multiple is a smaller power of two."""

Size = Annotated[int, Field(ge=1)]
Multiple = Annotated[int, Field(ge=1, le=4096)]


def _refuse_null(value: object) -> object:
    if value is None:
        raise ValueError("a whole number is needed; leave it out for the nearest multiple of 32")
    return value


WidthMultiple = Annotated[Multiple | None, BeforeValidator(_refuse_null)]
"""What a width is a multiple of; left out, it follows from the model."""


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


def default_multiple(size: int, step: int = 1) -> int:
    """Return what a width is a multiple of by default: 32 units, or a smaller power of two for a small model.

    Args:
        size: The width of the base.
        step: What the width must be a multiple of in any case.
    """
    multiple = DEFAULT_MULTIPLE
    while multiple > 1 and size // lcm(step, multiple) < LEAST_LEVELS:
        multiple //= 2
    return lcm(step, multiple)


def nearest_size(size: int, fraction: float, multiple: int) -> int:
    """Return the multiple nearest to what remains without a fraction: at least one step away from the whole.

    Args:
        size: How many units there are.
        fraction: The share to remove.
        multiple: What the result is a multiple of; at least one is kept.
    """
    nearest = floor((size - fraction * size) / multiple + 0.5) * multiple
    return max(min(nearest, (size - 1) // multiple * multiple), multiple)


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


def with_published_multiple(values: dict[str, Any], fraction: float | None) -> dict[str, Any]:
    """Return the canonical values of a step, where release 0.1.0 wrote a multiple of 1 beside a size."""
    if fraction is None and values["multiple_of"] is None:
        return values | {"multiple_of": 1}
    return values


def describe_size(fraction: float | None, kept: int | None, units: str) -> str:
    """Say how much of some units is removed, given either the share removed or the number kept."""
    return f"{100 * fraction:.4g} % of {units}" if fraction is not None else f"all but {kept} of {units}"


def exactly_one(first: object, second: object) -> bool:
    """Whether one of two alternative fields is given, and only one."""
    return (first is None) != (second is None)
