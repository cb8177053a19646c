"""What the user can set on a step: the shell's options and the page's controls are made from these tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pruning.architectures.shape import Shape
from pruning.errors import RecipeError


@dataclass(frozen=True)
class Slider:
    """How much to remove.

    Attributes:
        largest: The most that a shape allows, in units or, with `percent`, in percent.
        percent: Whether the slider shows a fraction in percent.
    """

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
    """One field of a step, as the user meets it.

    Attributes:
        field: The name of the field.
        flag: The shell's option.
        label: The title of the control on the page.
        read: Turns the option's text into the field's value, or into a mapping of several fields.
        control: The control on the page; without one the setting is offered in the shell alone.
        activates_step: Whether giving the setting asks for the step.
        usage: What the option takes, for the shell's help.
        old_flags: Former names of the option.
        info: One sentence in words that a student knows: the description of the field, which `Step` fills in.
    """

    field: str
    flag: str
    label: str
    read: Callable[[str, str], object] | None = None
    control: Slider | Choices | Switch | None = None
    activates_step: bool = False
    usage: str = ""
    old_flags: tuple[str, ...] = ()
    info: str = ""

    @property
    def help(self) -> str:
        """The text of the shell's help: what the setting means, and what the option takes."""
        return " ".join(f"{sentence}." for sentence in (self.info or self.label, self.usage) if sentence)


def share(flag: str, text: str) -> float:
    """Read `20%` or `0.2` as 0.2."""
    number, is_percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number)
    except ValueError:
        raise RecipeError(f"{flag} is {text!r}; a share such as 20% is needed.") from None
    if not is_percent and value > 1:
        raise RecipeError(f"{flag} is {text!r}; write a share with its sign, such as {number}%.")
    return value / 100 if is_percent else value


def is_share(text: str) -> bool:
    """Return whether a text is a share of some units, such as 20% or 0.2, and not a number of them."""
    return text.strip().endswith("%") or "." in text


def whole(flag: str, text: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError:
        raise RecipeError(f"{flag} is {text!r}; a whole number is needed.") from None


def word(_flag: str, text: str) -> str:
    """Return the text as it is."""
    return text
