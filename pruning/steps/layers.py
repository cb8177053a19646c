"""Whole layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from pruning.architectures.families import LAYER
from pruning.architectures.shape import Shape
from pruning.calibration.block_influence import angular_distances, block_influences, relative_magnitudes
from pruning.calibration.cache import CacheKey, cached
from pruning.calibration.residual_streams import MEMORY_SHARE, ResidualStreams, bytes_kept
from pruning.cost.cost import Cost, in_sequence
from pruning.cost.passes import FLOAT, Sizes
from pruning.cost.plan import Plan
from pruning.errors import RecipeError
from pruning.lazy import torch
from pruning.loading import load as loading
from pruning.progress import Progress
from pruning.repair.gap import GapRepair, LayerRun
from pruning.repair.kept_repairs import kept_repairs
from pruning.repair.removed_layers import repair_gaps, runs_of
from pruning.steps.base import Cut, Refit, StepContext, check_prunable, most, top
from pruning.steps.settings import Choices, Setting, Slider, Switch, is_share, share, word
from pruning.steps.sizes import exactly_one
from pruning.surgery import KeptIndices, cut
from pruning.text.likelihood import mean_loss

METHODS: Mapping[object, str] = {
    "influence": "Layers that change their input least (block influence)",
    "magnitude": "Layers that add least to their input (relative magnitude)",
    "angular": "The block that rotates its input least (angular distance)",
    "perplexity": "Layers missed least, each tried alone: better, and slower",
    "greedy": "Layers missed least, removed one after the other: slowest",
    "last": "The last layers",
    "first": "The first layers",
}
Method = Literal["influence", "magnitude", "angular", "perplexity", "greedy", "last", "first"]

BY_PLACE = ("last", "first")
"""Methods that need no text."""

BY_STREAMS = ("influence", "magnitude", "angular")
"""Methods that compare the residual stream before and after layers."""


@dataclass(frozen=True)
class GapNote:
    """The repair of one gap that removed layers left.

    Attributes:
        layers: The layers removed there, by their numbers in the step's input, from 0 on.
        lost_before: The share of the residual stream's energy after the gap that is lost on held-out text
            without repair.
        lost_after: The same with it.
    """

    layers: tuple[int, ...]
    lost_before: float
    lost_after: float


def _read(flag: str, text: str) -> dict[str, object]:
    """Read `3` as a number of layers, `4,5,9` as those layers, `5,` as one, and `10%` as a share of all."""
    if is_share(text):
        return {"share": share(flag, text)}
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise RecipeError(f"{flag} is {text!r}; write how many, such as 3, or which: 4,5,9.") from None
    return {"layers": tuple(numbers)} if "," in text else {"count": numbers[0] if numbers else 0}


class Layers(Cut):
    """Remove whole layers.

    Give either `layers` or `count` with a `method` that chooses them:

    - `last` and `first`: by place.
    - `influence`: the least block influence 1 − E[cos(h_in, h_out)] over all tokens, with the residual stream
      h `[channels]` before and after a layer (ShortGPT; Men et al., 2024, eq. 1).
    - `magnitude`: the least E[‖h_out − h_in‖ / ‖h_in‖] (after Samragh et al., 2023, "Weight subcloning"), which chooses
      the same layers on more kinds of text.
    - `angular`: the run of layers with the least angular distance between its input and its output (Gromov et
      al., 2024, eq. 5, over all tokens).
    - `perplexity`: those whose removal alone costs least on calibration text, repaired if the step repairs.
    - `greedy`: the same, one after the other.

    Example:
        >>> import pruning
        >>> pruning.Layers(count=2, method="perplexity").describe()
        '2 layers (perplexity)'
    """

    title: ClassVar[str] = "Layers"
    hint: ClassVar[str] = "Whole layers, one stacked on the other: the depth of the model"
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "count",
            "--layers",
            "Layers to cut",
            _read,
            Slider(lambda shape: most(shape, "layers", max(shape.count(LAYER) - 2, 0))),
            activates_step=True,
            usage="A number, such as 3, a share, such as 10%, or which ones, from 0 on, such as 4,5,9",
        ),
        Setting("method", "--layer-method", "Which layers", word, Choices(METHODS)),
        Setting("protect", "--protect", "Keep the first and the last", control=Switch()),
        Setting("repair", "--layer-repair", "Repair", control=Switch()),
    )

    published_defaults: ClassVar[Mapping[str, Mapping[str, object]]] = {"step": {"repair_norms": False}}

    step: Literal["layers"] = "layers"
    count: Annotated[int, Field(ge=1)] | None = Field(None, description="How many layers to remove")
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="The numbers of the layers to remove, from 0 on, instead of how many"
    )
    method: Method = Field("influence", description="How the layers are chosen")
    protect: bool = Field(
        True,
        description="Methods that read text never choose the first or the last layer, unless this is off",
    )
    repair: bool | None = Field(
        None,
        description="Refits the layer before each gap, by least squares, to compensate for the layers "
        "removed there; by default if the method reads text",
    )

    repair_norms: bool = Field(
        True,
        description="Repair also refits a norm between that projection and the residual stream, as Gemma has; "
        "recipes of release 0.1.0 were not repaired there",
    )

    @classmethod
    def for_model(cls, model: str, **values: Any) -> Self:
        """Make the step; a share becomes the nearest number of the model's layers, and at least one."""
        if (part := values.pop("share", None)) is not None:
            total = Shape.of(loading.find(model, plain=True).config).count(LAYER)
            values["count"] = max(1, round(part * total))
        return cls(**values)

    @model_validator(mode="before")
    @classmethod
    def _default_repair(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("repair") is None:
            by_place = values.get("layers") is not None or values.get("method") in BY_PLACE
            values = values | {"repair": not by_place}
        return values

    @field_validator("layers", mode="before")
    @classmethod
    def _list_to_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _check_alternatives(self) -> Self:
        if not exactly_one(self.count, self.layers):
            raise ValueError("give either count or layers for the layers to remove, and not both")
        if self.layers is not None and len(set(self.layers)) < max(len(self.layers), 1):
            raise ValueError("name each layer to remove once, and at least one")
        return self

    def canonical(self) -> dict[str, Any]:
        """Return plain values, without the field that release 0.1.0 did not have."""
        return {name: value for name, value in super().canonical().items() if name != "repair_norms"}

    def reads_text(self, shape: Shape) -> bool:
        """Return whether repair or the method reads text."""
        del shape
        return bool(self.repair) or self._text_chooses

    @property
    def _text_chooses(self) -> bool:
        return self.layers is None and self.method not in BY_PLACE

    @property
    def removed_count(self) -> int:
        """How many layers are removed."""
        return len(self.layers) if self.layers is not None else self.count or 0

    def reshape(self, shape: Shape) -> Shape:
        """Return the shape with fewer layers, which knows those that are kept unless text chooses them."""
        total = shape.count(LAYER)
        for layer in self.layers or ():
            if layer >= total:
                raise RecipeError(
                    f"There is no layer {layer}: the last of {total} has the number {total - 1}."
                )
        removed = self.removed_count
        spared = 2 if self.protect and self._text_chooses else 1
        if removed > total - spared:
            raise RecipeError(
                f"{removed} of {total} layers cannot be removed: at least {spared} must remain. Remove fewer."
            )
        check_prunable(shape, "layers")
        if (named := self.named_layers(total)) is None:
            return shape.resized(LAYER, total - removed)
        return shape.keeping([layer for layer in range(total) if layer not in named])

    def cost(self, plan: Plan) -> Cost:
        """Estimate the choice of the layers, and the repair of at most one gap for each layer removed.

        What remains is shared, but for a refitted projection before each gap.
        """
        sizes, removed = plan.sizes, self.removed_count
        choice, repair = Cost(), _gaps_cost(plan, removed) if self.repair else Cost()
        if self._streams_choose:
            choice = watching(plan)
            kept = bytes_kept(plan.reading.tokens, sizes.channels, sizes.layers)
            if self.repair and kept <= plan.free // MEMORY_SHARE:
                again = removed / sizes.layers * plan.reading.forward(sizes).flop
                saved = min(repair.flop, watching(plan).flop) - again
                choice = replace(choice, memory=choice.memory + kept)
                repair = replace(repair, flop=repair.flop - saved, memory=repair.memory + kept)
        elif self._text_chooses:
            rounds = range(removed if self.method == "greedy" else 1)
            choice = in_sequence(*(self._trials_cost(plan, number) for number in rounds))
        refitted = removed * FLOAT * sizes.neurons * sizes.channels if self.repair else 0
        return in_sequence(choice, repair, Cost.holding(refitted))

    def _trials_cost(self, plan: Plan, removed: int) -> Cost:
        """Return the cost of one round of trials: each layer left out, with some removed already."""
        candidates = len(self.removable(plan.shape)) - removed
        remaining = plan.shape.resized(LAYER, max(1, plan.sizes.layers - removed - 1))
        trials = plan.reading.heldout_loss(Sizes(remaining)).times(candidates)
        # Before the first layer there is nothing to refit.
        gaps = candidates + removed - (0 if self.protect else 1)
        return in_sequence(_gaps_cost(plan, gaps) if self.repair else Cost(), trials)

    def named_layers(self, total: int) -> tuple[int, ...] | None:
        """Return the layers to remove out of `total`, by number; None if text chooses them."""
        if self.layers is not None or self._text_chooses:
            return self.layers
        first = 0 if self.method == "first" else total - self.removed_count
        return tuple(range(first, first + self.removed_count))

    def rank(self, context: StepContext) -> KeptIndices:
        """Return the layers to keep."""
        total = context.shape.count(LAYER)
        removed = set(self.named_layers(total) or _CHOOSERS[self.method](self, context))
        return {LAYER: [torch.tensor([layer for layer in range(total) if layer not in removed])]}

    def refit(self, context: StepContext, kept: KeptIndices) -> Refit:
        """Refit the layer before each gap to compensate for the layers removed there."""
        if not self.repair:
            return Refit()
        anatomy = context.shape.anatomy
        removed = sorted(set(range(anatomy.layers)) - set(kept[LAYER][0].tolist()))
        gaps = self.repairs(context, runs_of(removed))
        notes = tuple(GapNote(run, repair.lost_before, repair.lost_after) for run, repair in gaps.items())
        return Refit({name: new for repair in gaps.values() for name, new in repair.tensors.items()}, notes)

    def repairs(self, context: StepContext, runs: Iterable[LayerRun]) -> dict[LayerRun, GapRepair]:
        """Return the repair of each run of layers that may be removed."""
        if context.shape.anatomy.family.post_norms and not self.repair_norms:
            return {}
        runs = list(runs)
        known = kept_repairs(context.model, context.required_windows)
        missing = [run for run in runs if run not in known]
        found = {**known, **repair_gaps(self.streams(context), missing, context.progress)}
        return {run: found[run] for run in runs if run in found}

    def runs_removed(self, context: StepContext, counts: Iterable[int]) -> list[LayerRun]:
        """Return the runs of layers that the method removes if it removes any of some numbers of layers."""
        steps = (self.model_copy(update={"count": count}) for count in counts)
        chosen = (_CHOOSERS[self.method](step, context) for step in steps)
        return list(dict.fromkeys(run for layers in chosen for run in runs_of(layers)))

    def streams(self, context: StepContext) -> ResidualStreams:
        """Return the residual streams of the text; kept, if first the choice and then the repair goes through them."""
        if self.repair and self._streams_choose:
            return context.streams
        return ResidualStreams(
            context.model, context.shape.anatomy, context.required_windows, context.progress
        )

    @property
    def _streams_choose(self) -> bool:
        return self._text_chooses and self.method in BY_STREAMS

    def removable(self, shape: Shape) -> list[int]:
        """Return the layers that a method which reads text may choose."""
        total = shape.count(LAYER)
        return list(range(1, total - 1)) if self.protect else list(range(total))

    @property
    def gentler(self) -> str | None:
        """What a layer is worth is seen by trying to do without it."""
        if self.layers is not None or self.method not in ("perplexity", "greedy"):
            return "Choose the layers by perplexity, which tries to do without each of them."
        return None if self.repair else "Switch repair on."

    def describe(self) -> str:
        """Return which layers are removed, or how many."""
        if self.layers is not None:
            return f"layers {', '.join(map(str, self.layers))}"
        return f"{self.count} layer{'s' if self.removed_count > 1 else ''} ({self.method})"


def watching(plan: Plan) -> Cost:
    """Return the cost of reading the text with the residual stream before and after every layer in memory."""
    sizes, reading = plan.sizes, plan.reading
    # The streams of one window are still there when those of the next are computed.
    streams = 2 * FLOAT * reading.window * sizes.channels * (sizes.layers + 1)
    return in_sequence(
        Cost(memory=streams + sizes.forward_memory(reading.window, reading.window)), reading.forward(sizes)
    )


def _gaps_cost(plan: Plan, gaps: int) -> Cost:
    """Return the cost of refitting the projection before each of some gaps (`repair_gaps`).

    Each gap needs its second moments and their product with what is missing, over the fitting tokens, and all of
    its held-out rows; then one system in double precision at a time. Gaps that do not fit in memory together are
    observed one batch after the other.
    """
    sizes, reading = plan.sizes, plan.reading
    if not gaps:
        return Cost()
    neurons, channels = sizes.neurons, sizes.channels
    sums = FLOAT * neurons * (neurons + channels)
    rows = FLOAT * (reading.heldout + reading.window) * (neurons + channels)
    batch = min(gaps, max(1, plan.free // 4 // sums))
    products = 2 * reading.tokens * neurons * (neurons + channels) + 2 * reading.heldout * neurons * channels
    solving = neurons**3 / 3 + 2 * neurons**2 * channels
    reads = watching(plan)
    system = 2 * FLOAT * (2 * neurons**2 + 2 * neurons * channels)
    results = gaps * FLOAT * neurons * channels
    return Cost(
        -(-gaps // batch) * reads.flop + gaps * (products + solving),
        results + batch * (sums + rows) + max(reads.memory, system),
        results,
    )


def _influence(step: Layers, context: StepContext) -> list[int]:
    return _least(step, context, block_influences)


def _magnitude(step: Layers, context: StepContext) -> list[int]:
    return _least(step, context, relative_magnitudes)


def _least(step: Layers, context: StepContext, measure: Callable[..., torch.Tensor]) -> list[int]:
    """Return the removable layers for which a measure on the calibration text is the least."""
    scores = measure(step.streams(context))
    removable = torch.tensor(step.removable(context.shape))
    return removable[top(-scores[removable], step.removed_count)].tolist()


def _angular(step: Layers, context: StepContext) -> list[int]:
    count = step.removed_count
    distances = angular_distances(step.streams(context), count)
    removable = step.removable(context.shape)
    starts = [layer for layer in removable if layer + count - 1 <= removable[-1]]
    start = min(starts, key=lambda layer: float(distances[layer]))
    return list(range(start, start + count))


def _perplexity(step: Layers, context: StepContext) -> list[int]:
    windows = context.required_windows
    key = LayerLossesKey(
        text_sha256=windows.text_sha256,
        windows=windows.digest,
        repair=bool(step.repair),
        norms=step.repair_norms,
        protect=step.protect,
    )
    losses = cached(context.model, key, lambda: _losses_without(step, context, []))
    return sorted(sorted(losses, key=losses.__getitem__)[: step.removed_count])


@dataclass(frozen=True, kw_only=True)
class LayerLossesKey(CacheKey[dict[int, float]]):
    """What the losses without each layer depend on; `windows` is the digest of the token windows."""

    windows: str
    repair: bool
    norms: bool
    protect: bool


def _greedy(step: Layers, context: StepContext) -> list[int]:
    removed: list[int] = []
    while len(removed) < step.removed_count:
        losses = _losses_without(step, context, removed)
        removed.append(min(losses, key=losses.__getitem__))
    return sorted(removed)


def _losses_without(step: Layers, context: StepContext, removed: list[int]) -> dict[int, float]:
    """Return the loss on held-out calibration text without each removable layer, in nats per token.

    The layers in `removed` are removed in any case; what remains is repaired if the step repairs.
    """
    anatomy, windows = context.shape.anatomy, context.required_windows
    candidates = [layer for layer in step.removable(context.shape) if layer not in removed]
    runs = {layer: runs_of([*removed, layer]) for layer in candidates}
    repairs = {}
    if step.repair:
        all_runs = dict.fromkeys(run for runs_of_one in runs.values() for run in runs_of_one)
        repairs = step.repairs(context, all_runs)
    losses = {}
    for done, layer in enumerate(candidates):
        place = Progress("Trying without each layer", done, len(candidates))

        def report(_progress: Progress, place: Progress = place) -> None:
            context.progress(place)

        report(place)
        remaining = [number for number in range(anatomy.layers) if number not in (layer, *removed)]
        refitted = [repairs[run].tensors for run in runs[layer] if run in repairs]
        without = cut(
            context.model,
            context.shape.resized(LAYER, len(remaining)),
            {LAYER: [torch.tensor(remaining)]},
            {name: tensor for tensors in refitted for name, tensor in tensors.items()},
            report,
        )
        losses[layer] = mean_loss(without, windows.heldout, report)
    return losses


_CHOOSERS: dict[str, Callable[[Layers, StepContext], list[int]]] = {
    "influence": _influence,
    "magnitude": _magnitude,
    "angular": _angular,
    "perplexity": _perplexity,
    "greedy": _greedy,
}
