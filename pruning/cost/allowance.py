"""What may be used, and the comparison with what a piece of work takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pydantic import BaseModel

from pruning.architectures.families import LAYER
from pruning.architectures.shape import Shape
from pruning.cost.cost import Cost
from pruning.errors import RecipeError
from pruning.formatting import format_number
from pruning.lazy import torch

Value = TypeVar("Value", bound=BaseModel)

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Allowance:
    """What a piece of work may take.

    Attributes:
        seconds: How long it may take.
        speed: The most floating-point operations that this machine may do in a second.
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
        return (
            f"This takes at least about {duration(self.duration(cost))} here "
            f"({cost.flop:.1e} floating-point operations), and it may take {duration(self.seconds)}"
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

    `value` is the largest that fits of a number, and the default of any other field.
    """

    place: Place
    value: object

    def __str__(self) -> str:
        """Return what to do with the field, as part of a sentence."""
        of_step = len(self.place) > 2 and isinstance(self.place[1], int)
        names = self.place[2:] if of_step else self.place
        name = ".".join(map(str, names)) + (f" of step {int(self.place[1]) + 1}" if of_step else "")
        match self.value:
            case bool():
                return f"set {name} to {str(self.value).lower()}"
            case int() | float():
                return f"set {name} to at most {self.value:,}"
            case None:
                return f"leave out {name}"
        return f"set {name} to {self.value}"


MOST_CHANGES = 3

MOST_FIELDS = 60
"""Fields of a value beyond which no change is looked for: each is an estimate more, while a visitor waits."""


def changes_to_fit(
    value: Value, cost_of: Callable[[Value], Cost], allowance: Allowance
) -> tuple[Change, ...]:
    """Find the fields whose change makes the work fit: one if that is enough, and those that matter most.

    Every field is tried at its least value, or at its default if it is not a number. Of those that make the work
    fit alone, the one that lowers it most is bisected for the largest value that fits. If none does, the one that
    lowers it most is set to its default, and the others are tried again.

    Args:
        value: A recipe, or another value with fields, which may hold values with fields themselves.
        cost_of: What such a value takes; it may raise `RecipeError` if there is no such work.
        allowance: What is allowed.

    Returns:
        The changes, or none if a few of them are not enough or the value has too many fields.
    """
    changes: list[Change] = []
    for _ in range(MOST_CHANGES):

        def excess(place: Place, new: object, value: Value = value) -> float:
            with suppress(RecipeError):
                return allowance.excess(cost_of(replaced(value, place, new)))
            return math.inf

        fields = [
            field for field in _fields(value) if field.place not in {change.place for change in changes}
        ]
        if not 0 < len(fields) <= MOST_FIELDS:
            break
        best = min(fields, key=lambda field: excess(field.place, field.least))
        if excess(best.place, best.least) <= 1:
            return (*changes, Change(best.place, _largest_value(best, partial(excess, best.place))))
        best = min(fields, key=lambda field: excess(field.place, field.usual))
        if excess(best.place, best.usual) == math.inf:
            break
        changes.append(Change(best.place, best.usual))
        value = replaced(value, best.place, best.usual)
    return ()


@dataclass(frozen=True)
class _Field:
    """A field that can be lowered: its value now, the least that it can have, and its default if that is less."""

    place: Place
    now: object
    least: object
    usual: object


def _largest_value(field: _Field, excess: Callable[[object], float]) -> object:
    """Return the largest value of a field that fits, in round numbers; its least if it is not a number."""
    if isinstance(field.now, bool) or not isinstance(field.now, int | float):
        return field.least
    assert isinstance(field.least, int | float)
    scale = 1 if isinstance(field.now, int) else 1000
    number_type = type(field.now)
    found = largest(
        int(field.least * scale), int(field.now * scale), lambda new: excess(number_type(new / scale)) <= 1
    )
    number = found or int(field.least * scale)
    # Two digits are easier to read, and what is less fits too.
    step = 10 ** max(0, len(str(number)) - 2)
    rounded = max(number // step * step, field.least * scale) / scale
    return number_type(rounded)


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


def _fields(value: BaseModel, outer: Place = ()) -> Iterator[_Field]:
    """Yield each field that can be lowered, at any depth."""
    for name, field in type(value).model_fields.items():
        now, place = getattr(value, name), (*outer, name)
        default = None if field.is_required() else field.get_default()
        if isinstance(now, BaseModel):
            yield from _fields(now, place)
            if now != default and not field.is_required():
                yield _Field(place, now, default, default)
        elif isinstance(now, tuple):
            for number, part in enumerate(now):
                if isinstance(part, BaseModel):
                    yield from _fields(part, (*place, number))
        elif isinstance(now, int | float) and not isinstance(now, bool):
            bounds = [
                bound
                for part in field.metadata
                if (bound := getattr(part, "ge", None) or getattr(part, "gt", None)) is not None
            ]
            least = type(now)(max([0, *bounds]))
            least = least or (0.001 if isinstance(now, float) else 0)
            if least < now:
                lower = isinstance(default, int | float) and least <= default < now
                yield _Field(place, now, least, default if lower else least)
        elif now != default and not field.is_required():
            yield _Field(place, now, default, default)


def replaced(value: Value, place: Place, new: object) -> Value:
    """Return a value with one field changed, at any depth; raise `RecipeError` if there is no such value."""
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
    return type(value)(**dict(value) | {name: changed})  # Validated again: other fields may follow from it.


def machine_speed() -> float:
    """Return the most floating-point operations that this process did in a second, in a few matrix products.

    A machine that is busy now may be free soon, so the best of all measurements counts, and now and then another
    is made.
    """
    if time.monotonic() - _speed.measured_at > MEASURED_AGAIN:
        _speed.best, _speed.measured_at = max(_speed.best, _measure_speed()), time.monotonic()
    return _speed.best


@dataclass
class _Speed:
    best: float = 0.0
    measured_at: float = -math.inf


_speed = _Speed()


def _measure_speed() -> float:
    matrix = torch.ones(MEASURED_WIDTH, MEASURED_WIDTH)
    best = math.inf
    for _ in range(MEASUREMENTS):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * MEASURED_WIDTH**3 / best


MEASURED_WIDTH, MEASUREMENTS = 512, 8
MEASURED_AGAIN = 60.0
"""Seconds after which the speed is measured again."""


def size(count: float) -> str:
    """Return a number of bytes for people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    """Return a time for people: `40 seconds`, `5 minutes`, `3.2 hours`, `12 days`."""
    for limit, length, unit in ((120, 1, "seconds"), (7200, 60, "minutes"), (172800, 3600, "hours")):
        if seconds < limit:
            return f"{seconds / length:,.3g} {unit}"
    return f"{seconds / 86400:,.0f} days"
