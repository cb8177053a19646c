"""Whole layers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator

from pruning.architectures.families import LAYER
from pruning.architectures.shape import Shape
from pruning.calibration.block_influence import angular_distances, block_influences
from pruning.calibration.cache import CacheKey, cached
from pruning.errors import RecipeError
from pruning.progress import Progress
from pruning.repair.removed_layers import repair_gaps, runs_of
from pruning.steps.base import Cut, Refit, StepContext, top
from pruning.steps.settings import Choices, Setting, Slider, Switch, word
from pruning.surgery import KeptIndices, cut
from pruning.text.likelihood import mean_loss

METHODS = {
    "influence": "Those that change least (block influence)",
    "angular": "The run that turns least (angular distance)",
    "perplexity": "Those missed least, tried one by one: better, and slower",
    "greedy": "Those missed least, tried one after the other: slowest",
    "last": "The last ones",
    "first": "The first ones",
}
Method = Literal["influence", "angular", "perplexity", "greedy", "last", "first"]

BY_PLACE = ("last", "first")
"""Methods that need no text."""


def _read(flag: str, text: str) -> dict:
    """`3` as a count of layers; `4,5,9` as those layers; `5,` as one."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise RecipeError(f"{flag} is {text!r}; write how many, such as 3, or which: 4,5,9.") from None
    return {"layers": tuple(numbers)} if "," in text else {"count": numbers[0] if numbers else 0}


class Layers(Cut):
    """Remove whole layers.

    Give either `layers`, the numbers of those to remove, from 0 on, or `count`, how many, and a
    `method` that chooses: `last` and `first` by place; `influence`, the least block influence
    1 − E[cos(h_in, h_out)] (ShortGPT; Men et al., 2024, eq. 1); `angular`, the run of layers with the
    least angular distance between its input and its output (Gromov et al., 2024, eq. 5, over all
    tokens); `perplexity`, those whose removal alone costs least on calibration text, repaired if the step
    repairs; `greedy`, the same one after the other. Unless `protect` is off, methods that read text never
    take the first or the last layer. `repair`: whether the layer before each gap learns to say what the
    missing ones said (`pruning.depth`); by default if a method reads text anyway. Gemma's norms leave no
    room for it.
    """

    title: ClassVar[str] = "Layers"
    hint: ClassVar[str] = "Whole layers, one stacked on the other: the depth of the model"
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "count",
            "--layers",
            "Layers to cut",
            "How many; in the shell also which, such as 4,5,9",
            _read,
            Slider(lambda shape: max(shape.count(LAYER) - 2, 0)),
            activates_step=True,
        ),
        Setting(
            "method",
            "--layer-method",
            "Which layers",
            "How they are chosen; the first and the last stay unless they are asked for",
            word,
            Choices(METHODS),
        ),
        Setting("protect", "--protect", "Keep the first and the last", control=Switch()),
        Setting(
            "repair",
            "--layer-repair",
            "Repair",
            "The layer before each gap learns, by least squares, to say what the missing layers said",
            control=Switch(),
        ),
    )

    step: Literal["layers"] = "layers"
    count: Annotated[int, Field(ge=1)] | None = None
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    method: Method = "influence"
    protect: bool = True
    repair: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_repair(cls, values):
        if isinstance(values, dict) and values.get("repair") is None:
            by_place = values.get("layers") is not None or values.get("method") in BY_PLACE
            values = values | {"repair": not by_place}
        return values

    @field_validator("layers", mode="before")
    @classmethod
    def _listed(cls, value):
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_choice(self):
        if (self.count is None) == (self.layers is None):
            raise ValueError("give either count or layers for the layers to remove, and not both")
        if self.layers is not None and len(set(self.layers)) < max(len(self.layers), 1):
            raise ValueError("name each layer to remove once, and at least one")
        return self

    @property
    def needs_calibration_text(self) -> bool:
        return self.repair or self._measures

    @property
    def _measures(self) -> bool:
        """Whether the text chooses."""
        return self.layers is None and self.method not in BY_PLACE

    def reshape(self, shape: Shape) -> Shape:
        there = shape.count(LAYER)
        for layer in self.layers or ():
            if layer >= there:
                raise RecipeError(
                    f"There is no layer {layer}: the last of {there} has the number {there - 1}."
                )
        removed = self.count or len(self.layers)
        spared = 2 if self.protect and self._measures else 1
        if removed > there - spared:
            raise RecipeError(
                f"{removed} of {there} layers cannot be removed: {spared} must stay at least. Remove fewer."
            )
        return shape.resized(LAYER, there - removed)

    def rank(self, context: StepContext) -> KeptIndices:
        there = context.shape.count(LAYER)
        removed = set(self.layers or _CHOOSERS[self.method](self, context))
        return {LAYER: [torch.tensor([layer for layer in range(there) if layer not in removed])]}

    def refit(self, context: StepContext, kept: KeptIndices) -> Refit:
        if not self.repair:
            return Refit()
        anatomy = context.shape.anatomy
        gone = sorted(set(range(anatomy.layers)) - set(kept[LAYER][0].tolist()))
        runs = runs_of(gone)
        repairs = repair_gaps(context.model, anatomy, context.windows, runs, context.progress)
        notes = (
            {"layers": list(run), "lost_before": repair.lost_before, "lost_after": repair.lost_after}
            for run, repair in repairs.items()
        )
        tensors = {name: new for repair in repairs.values() for name, new in repair.tensors.items()}
        return Refit(tensors, tuple(notes))

    def choices(self, shape: Shape) -> list[int]:
        """The layers that may go."""
        there = shape.count(LAYER)
        return list(range(1, there - 1)) if self.protect else list(range(there))

    def describe(self) -> str:
        if self.layers is not None:
            return f"layers {', '.join(map(str, self.layers))}"
        return f"{self.count} layer{'s' if self.count > 1 else ''} ({self.method})"


def _last(step: Layers, context: StepContext) -> list[int]:
    there = context.shape.count(LAYER)
    return list(range(there - step.count, there))


def _first(step: Layers, context: StepContext) -> list[int]:
    return list(range(step.count))


def _influence(step: Layers, context: StepContext) -> list[int]:
    scores = block_influences(context.model, context.shape.anatomy, context.windows, context.progress)
    choices = torch.tensor(step.choices(context.shape))
    return choices[top(-scores[choices], step.count)].tolist()


def _angular(step: Layers, context: StepContext) -> list[int]:
    distances = angular_distances(
        context.model, context.shape.anatomy, context.windows, step.count, context.progress
    )
    choices = step.choices(context.shape)
    starts = [layer for layer in choices if layer + step.count - 1 <= choices[-1]]
    start = min(starts, key=lambda layer: float(distances[layer]))
    return list(range(start, start + step.count))


def _perplexity(step: Layers, context: StepContext) -> list[int]:
    windows = context.windows
    key = LayerLossesKey(
        text_sha256=windows.text_sha256, windows=windows.digest, repair=step.repair, protect=step.protect
    )
    losses = cached(context.model, key, lambda: _losses_without(step, context, []))
    return sorted(sorted(losses, key=losses.get)[: step.count])


@dataclass(frozen=True, kw_only=True)
class LayerLossesKey(CacheKey[dict[int, float]]):
    """What the losses without each layer depend on; `windows` is the digest of the token windows."""

    windows: str
    repair: bool
    protect: bool


def _greedy(step: Layers, context: StepContext) -> list[int]:
    gone: list[int] = []
    while len(gone) < step.count:
        losses = _losses_without(step, context, gone)
        gone.append(min(losses, key=losses.get))
    return sorted(gone)


def _losses_without(step: Layers, context: StepContext, gone: list[int]) -> dict[int, float]:
    """The loss on held-out calibration text without each layer that may go, beside those gone already;
    repaired, where the step repairs."""
    anatomy = context.shape.anatomy
    choices = [layer for layer in step.choices(context.shape) if layer not in gone]
    runs = {layer: runs_of([*gone, layer]) for layer in choices}
    repairs = {}
    if step.repair:
        every = dict.fromkeys(run for each in runs.values() for run in each)
        repairs = repair_gaps(context.model, anatomy, context.windows, every, context.progress)
    losses = {}
    for done, layer in enumerate(choices):
        context.progress(Progress("Trying without each layer", done, len(choices)))
        stay = [n for n in range(anatomy.layers) if n != layer and n not in gone]
        kept = {LAYER: [torch.tensor(stay)]}
        made = [repairs[run].tensors for run in runs[layer] if run in repairs]
        tensors = {name: new for each in made for name, new in each.items()}
        without = cut(context.model, context.shape.resized(LAYER, len(stay)), kept, tensors)
        losses[layer] = mean_loss(without, context.windows.heldout)
    return losses


_CHOOSERS: dict[str, Callable[[Layers, StepContext], list[int]]] = {
    "last": _last,
    "first": _first,
    "influence": _influence,
    "angular": _angular,
    "perplexity": _perplexity,
    "greedy": _greedy,
}
