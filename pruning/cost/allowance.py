"""What may be used, and the comparison with what a piece of work takes."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
from pydantic import BaseModel

from pruning.architectures.families import LAYER
from pruning.architectures.shape import Shape
from pruning.cost.cost import Cost
from pruning.errors import RecipeError
from pruning.formatting import format_number

Value = TypeVar("Value", bound=BaseModel)

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Allowance:
    """What a piece of work may take.

    Attributes:
        seconds: How long it may take.
        speed: Floating-point operations in a second.
        memory: Private memory, in bytes.
        disk: Bytes that it may leave on disk.
    """

    seconds: float
    speed: float
    memory: int
    disk: int

    def excess(self, cost: Cost) -> float:
        """Return what a cost takes of the scarcest resource, as a share of what is allowed: more than 1 is too much."""
        return max(share for _, share in self._shares(cost))

    def sentence(self, cost: Cost) -> str:
        """Say what is too much: the number, and what is allowed. Empty if nothing is."""
        name, share = max(self._shares(cost), key=lambda pair: pair[1])
        if share <= 1:
            return ""
        if name == "memory":
            return f"This needs about {size(cost.memory)} of memory, and {size(self.memory)} are free for it"
        if name == "disk":
            return f"This needs about {size(cost.disk)} of disk, and {size(self.disk)} are free for it"
        operations = f" ({format_operations(cost.flop)} floating-point operations)" if cost.flop else ""
        return (
            f"This needs about {duration(self.duration(cost))}{operations}, and it may take "
            f"{duration(self.seconds)} here"
        )

    def duration(self, cost: Cost) -> float:
        """Return how many seconds a cost takes, if all of its operations run at full speed."""
        return cost.flop / self.speed + cost.seconds

    def _shares(self, cost: Cost) -> Iterator[tuple[str, float]]:
        yield "work", self.duration(cost) / max(self.seconds, 1e-9)
        yield "memory", cost.memory / max(self.memory, 1)
        yield "disk", cost.disk / max(self.disk, 1)


def check(cost: Cost, allowance: Allowance, advice: str = "Ask for less.", place: Place = ()) -> None:
    """Refuse work that takes more than is allowed.

    Args:
        cost: What it takes.
        allowance: What is allowed.
        advice: What would fit, as a sentence.
        place: Where in a recipe the advice can be followed.

    Raises:
        RecipeError: Work, memory or disk is too much; the message has the number and the limit.
    """
    if sentence := allowance.sentence(cost):
        raise RecipeError(f"{sentence}. {advice}", place)


def largest(least: int, most: int, fits: Callable[[int], bool]) -> int | None:
    """Return the largest whole number that fits, by bisection; None if not even the least does."""
    if not fits(least):
        return None
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least


@dataclass(frozen=True)
class Change:
    """One field of a value, changed so that the work fits.

    `value` is the largest that fits of a number, and what the field is without being set otherwise.
    """

    place: Place
    before: object
    value: object

    def __str__(self) -> str:
        name = ".".join(str(part) for part in self.place if isinstance(part, str) and part != "steps") or "it"
        step = next((f" in step {part + 1}" for part in self.place if isinstance(part, int)), "")
        if isinstance(self.value, int) and not isinstance(self.value, bool):
            return f"Set {name}{step} to at most {self.value:,}."
        if isinstance(self.value, float):
            return f"Set {name}{step} to at most {self.value:.3g}."
        if self.value is None:
            return f"Leave out {name}{step}."
        return (
            f"Set {name}{step} to {str(self.value).lower() if isinstance(self.value, bool) else self.value}."
        )


def change_to_fit(value: Value, cost_of: Callable[[Value], Cost], allowance: Allowance) -> Change | None:
    """Find the one field whose change makes the work fit: the one that matters most.

    Every field is tried at its least value, or if it is not a number at its default. Of those that make the work
    fit, the one that lowers it most is bisected.

    Args:
        value: A recipe, or another value with fields, which may hold values with fields themselves.
        cost_of: What such a value takes; it may raise `RecipeError` if there is no such work.
        allowance: What is allowed.

    Returns:
        The change, or None if no single field is enough.
    """

    def excess(place: Place, new: object) -> float:
        try:
            return allowance.excess(cost_of(replaced(value, place, new)))
        except RecipeError:
            return math.inf

    fields = [(excess(place, least), place, before, least) for place, before, least in _fields(value)]
    fitting = [field for field in fields if field[0] <= 1]
    if not fitting:
        return None
    _, place, before, least = min(fitting, key=lambda field: field[0])
    if isinstance(before, int) and isinstance(least, int) and not isinstance(before, bool):
        return Change(place, before, largest(least, before, lambda new: excess(place, new) <= 1))
    if isinstance(before, float) and isinstance(least, float):
        parts = largest(0, 1000, lambda part: excess(place, least + (before - least) * part / 1000) <= 1)
        return Change(place, before, least + (before - least) * (parts or 0) / 1000)
    return Change(place, before, least)


def model_to_fit(shape: Shape, cost_of: Callable[[Shape], Cost], allowance: Allowance) -> str:
    """Say how large a model may be, by the same model with fewer layers; without a number if none fits.

    Args:
        shape: The model that is too large.
        cost_of: What the work takes on another; it may raise `RecipeError` if it is impossible there.
        allowance: What is allowed.
    """

    def fits(layers: int) -> bool:
        try:
            return allowance.excess(cost_of(shape.resized(LAYER, layers))) <= 1
        except RecipeError:
            return False

    layers = largest(1, shape.count(LAYER), fits)
    if layers is None:
        return "Choose a smaller model."
    parameters = format_number(shape.resized(LAYER, layers).parameters, 0)
    return f"A model of at most about {parameters} parameters fits."


def _fields(value: BaseModel, outer: Place = ()) -> Iterator[tuple[Place, object, object]]:
    """Yield each field that can be lowered: its place, its value, and its least value or its default."""
    for name, field in type(value).model_fields.items():
        before, place = getattr(value, name), (*outer, name)
        if isinstance(before, BaseModel):
            yield from _fields(before, place)
        elif isinstance(before, tuple):
            for number, part in enumerate(before):
                if isinstance(part, BaseModel):
                    yield from _fields(part, (*place, number))
        elif isinstance(before, int | float) and not isinstance(before, bool):
            least = next(
                (bound for part in field.metadata if (bound := getattr(part, "ge", None)) is not None), None
            )
            if least is None:
                above = next(
                    (getattr(part, "gt", None) for part in field.metadata if hasattr(part, "gt")), None
                )
                least = None if above is None else type(before)(above + before / 1000)
            if least is not None and least < before:
                yield place, before, type(before)(least)
        elif not field.is_required() and before != field.get_default():
            yield place, before, field.get_default()


def replaced(value: Value, place: Place, new: object) -> Value:
    """Return a value with one field changed, at any depth."""
    name, *rest = place
    assert isinstance(name, str)
    inner = getattr(value, name)
    if rest and isinstance(inner, tuple):
        number, *deeper = rest
        assert isinstance(number, int)
        part = replaced(inner[number], tuple(deeper), new)
        changed: object = (*inner[:number], part, *inner[number + 1 :])
    else:
        changed = replaced(inner, tuple(rest), new) if rest else new
    return value.model_copy(update={name: changed})


@cache
def machine_speed() -> float:
    """Measure how many floating-point operations this process does in a second, by a few matrix products, once."""
    matrix = torch.ones(MEASURED_WIDTH, MEASURED_WIDTH)
    best = math.inf
    for _ in range(MEASUREMENTS):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * MEASURED_WIDTH**3 / best


MEASURED_WIDTH, MEASUREMENTS = 512, 8


def format_operations(count: float) -> str:
    """Return a number of operations for people, which soon has no word."""
    return format_number(count) if count < 1e18 else f"{count:.0e}"


def size(count: float) -> str:
    """Return a number of bytes for people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    """Return a time for people: `40 seconds`, `5 minutes`, `3.2 hours`, `12 days`."""
    for limit, length, unit in ((120, 1, "seconds"), (7200, 60, "minutes"), (172800, 3600, "hours")):
        if seconds < limit:
            return f"{seconds / length:,.3g} {unit}"
    return f"{seconds / 86400:,.0f} days"
