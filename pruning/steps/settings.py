"""What a person can set on a step: the shell's options and the page's controls come from these tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pruning.architectures.shape import Shape
from pruning.errors import RecipeError


@dataclass(frozen=True)
class Slider:
    """How much to cut. `largest`: the most for a shape, in units or, with `percent`, in per cent."""

    largest: Callable[[Shape], int]
    percent: bool = False


@dataclass(frozen=True)
class Choices:
    """One of several values, each with a title."""

    titles: Mapping[object, str]


@dataclass(frozen=True)
class Switch:
    """On or off."""


@dataclass(frozen=True)
class Setting:
    """One field of a step, as a person meets it.

    `label` and `info` stand on the page, in words that a student knows; `flag` is the shell's option
    and `read` turns its text into values of fields. A setting that `activates_step` says how much to cut:
    giving it asks for the step. Without a `control` it is offered in the shell alone.
    """

    field: str
    flag: str
    label: str
    info: str = ""
    read: Callable[[str, str], Mapping[str, object]] | None = None
    control: Slider | Choices | Switch | None = None
    activates_step: bool = False


def share(flag: str, text: str) -> float:
    """`20%` or `0.2` as 0.2."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number)
    except ValueError:
        raise RecipeError(f"{flag} is {text!r}; a share such as 20% is needed.") from None
    if not percent and value > 1:
        raise RecipeError(f"{flag} is {text!r}; write a share with its sign, such as {number}%.")
    return value / 100 if percent else value


def whole(flag: str, text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise RecipeError(f"{flag} is {text!r}; a whole number is needed.") from None


def word(flag: str, text: str) -> str:
    """The text as it stands."""
    return text
