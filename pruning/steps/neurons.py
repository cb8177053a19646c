"""MLP neurons: the same number in every layer, chosen layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pruning.architectures.families import GATE, NEURON, SHARED, UP
from pruning.architectures.matrices import expert_matrices, neuron_matrices, shared_matrices, shared_output
from pruning.architectures.shape import Shape
from pruning.calibration.experts import ExpertMoments, expert_moments
from pruning.calibration.statistics import InputMoments, moments_of
from pruning.cost.cost import Cost, in_sequence
from pruning.cost.passes import FLOAT, copied
from pruning.cost.plan import Plan
from pruning.cost.reading import refits
from pruning.criteria import (
    CRITERIA,
    DEFAULT_CRITERION,
    MLP,
    PUBLISHED_NAMES,
    Criterion,
    criterion_named,
    own_criterion,
)
from pruning.errors import RecipeError
from pruning.lazy import torch
from pruning.progress import Progress
from pruning.steps.base import Cut, Refit, StepContext, check_prunable, most, refit_output_projections, top
from pruning.steps.settings import Choices, Setting, Slider, Switch, share, whole, word
from pruning.steps.sizes import (
    WIDTH_MULTIPLES,
    Size,
    WidthMultiple,
    default_multiple,
    describe_size,
    exactly_one,
    fraction_of,
    kept_size,
    nearest_size,
    one_number,
    with_published_multiple,
)
from pruning.surgery import KeptIndices

UNIFORM = one_number(
    "every layer keeps the same number of neurons: a config holds one intermediate size for all layers, so a "
    "model with several would not load"
)


MULTIPLE_IN_EXPERTS = 8
"""The neurons of an expert come in multiples of this: grouped products, the default of transformers, read rows of
whole 16 bytes, also in 16 bits."""


class Neurons(Cut):
    """Remove MLP neurons.

    Give either `fraction` or `intermediate_size`. A fraction leaves the nearest multiple of 32 neurons, and at least
    one multiple fewer than there are. With `multiple_of`, `int(fraction · intermediate size)` neurons are removed, and
    what remains is rounded up.

    Example:
        >>> import pruning
        >>> pruning.Neurons(fraction=0.2, criterion="wanda").describe()
        '20 % of the MLP neurons'
    """

    title: ClassVar[str] = "MLP neurons"
    hint: ClassVar[str] = "The hidden units of the feed-forward layers: most of a model's parameters"
    published_names: ClassVar[Mapping[str, str]] = {"intermediate_size": "width"}
    published_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"criterion": PUBLISHED_NAMES}
    published_defaults: ClassVar[Mapping[str, Mapping[str, object]]] = {"fraction": {"multiple_of": 1}}
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "fraction",
            "--neurons",
            "MLP neurons to cut, %",
            share,
            Slider(lambda shape: most(shape, "neurons", 90), percent=True),
            activates_step=True,
            usage="A share, such as 20%",
        ),
        Setting(
            "intermediate_size",
            "--intermediate-size",
            "MLP neurons to keep in each layer, instead",
            whole,
            activates_step=True,
            usage="A number, such as 1024",
            old_flags=("--width",),
        ),
        Setting(
            "criterion",
            "--criterion",
            "Importance of a neuron",
            word,
            Choices({name: criterion.title for name, criterion in CRITERIA.items()}),
        ),
        Setting(
            "multiple_of",
            "--multiple-of",
            "Round the width to a multiple of",
            whole,
            Choices(WIDTH_MULTIPLES),
        ),
        Setting("repair", "--repair", "Repair what remains", control=Switch()),
    )

    step: Literal["neurons"] = "neurons"
    fraction: Annotated[float | None, fraction_of("neurons"), UNIFORM] = Field(
        None, description="The share of the intermediate size to remove, the same in every layer"
    )
    intermediate_size: Annotated[Size | None, UNIFORM] = Field(
        None, description="The number of neurons to keep in each layer, instead of a share to remove"
    )
    multiple_of: WidthMultiple = Field(
        None,
        description="Rounds the number kept up to a multiple; by default a share leaves the nearest multiple of 32, "
        "which quantized files need",
    )
    criterion: str = Field(
        DEFAULT_CRITERION, description="The criterion: the neurons with the lowest scores are removed"
    )
    repair: bool | None = Field(
        None,
        description="Refits each layer's output projection to the neurons kept, by least squares; by default "
        "if the criterion reads calibration text",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_repair(cls, values: object) -> object:
        if isinstance(values, dict) and (own := own_criterion(values.get("criterion"))) is not None:
            values = values | {"criterion": own.key}
        if isinstance(values, dict) and values.get("repair") is None:
            name = values.get("criterion", DEFAULT_CRITERION)
            if isinstance(name, str):
                values = values | {"repair": criterion_named(name).needs_calibration}
        return values

    @model_validator(mode="after")
    def _check_alternatives(self) -> Self:
        if not exactly_one(self.fraction, self.intermediate_size):
            raise ValueError("give either fraction or intermediate_size for the neurons to cut, and not both")
        criterion_named(self.criterion)
        return self

    def canonical(self) -> dict[str, Any]:
        """Return plain values; a size that is given is exact, which release 0.1.0 wrote as a multiple of 1."""
        return with_published_multiple(super().canonical(), self.fraction)

    def hooked_modules(self, shape: Shape) -> tuple[str, ...]:
        """Return the output projections of all layers, if the criterion or repair needs their inputs."""
        if not (self.repair or criterion_named(self.criterion).needs_calibration):
            return ()
        anatomy = shape.anatomy
        if anatomy.family.neurons_in_experts:
            return ()
        return tuple(anatomy.output_projection(layer) for layer in range(anatomy.layers))

    def reads_text(self, shape: Shape) -> bool:
        """Return whether the criterion needs the activations of neurons inside experts, which no hook can observe."""
        return shape.anatomy.family.neurons_in_experts and criterion_named(self.criterion).needs_calibration

    def reshape(self, shape: Shape) -> Shape:
        """Return the shape with fewer neurons."""
        check_prunable(shape, "neurons")
        criterion = criterion_named(self.criterion)
        family = shape.anatomy.family
        if criterion.gated_only and not family.gated:
            raise RecipeError(
                f"{criterion.name} ranks gate and up separately, but the MLP of {family.title} has no "
                "gate. Choose another criterion."
            )
        if criterion.gated_only and self.repair:
            raise RecipeError(f"{criterion.name} leaves no whole neurons to repair with. Switch repair off.")
        if family.neurons_in_experts and (self.repair or criterion.gated_only):
            raise RecipeError(
                f"The neurons of {family.title} are inside experts, which repair does not refit and whose gate and up "
                "are cut together. Switch repair off, and choose a criterion of whole neurons."
            )
        neurons = shape.count(NEURON)
        needed = multiple_of_neurons(shape)
        if self.fraction is not None and self.multiple_of is None:
            kept = nearest_size(neurons, self.fraction, default_multiple(neurons, needed))
        else:
            kept = kept_size(neurons, self.fraction, self.intermediate_size, self.multiple_of or 1)
        if kept >= neurons:
            raise RecipeError(
                f"This removes none of the {neurons} neurons of a layer: {kept} would be kept. "
                "Ask for a larger fraction, a smaller intermediate_size or a smaller multiple."
            )
        if kept % needed:
            raise RecipeError(
                f"{kept} neurons would be kept in each expert, and transformers computes experts only with a multiple "
                f"of {needed}. Ask for another intermediate_size or multiple."
            )
        return shape.resized(NEURON, kept)

    def cost(self, plan: Plan) -> Cost:
        """Estimate the repair and the copies of the MLP; ranking reads each weight once."""
        sizes, after = plan.sizes, self.reshape(plan.shape)
        if self.reads_text(plan.shape):
            passes = plan.reading.forward(sizes).times(2)
            return in_sequence(passes, Cost.holding(copied(plan.shape, after)))
        removed = sizes.neurons - after.count(NEURON)
        scores = Cost(memory=2 * FLOAT * sizes.neurons * sizes.channels)
        repair = (
            refits(sizes.layers, sizes.neurons, removed, sizes.channels, plan.free) if self.repair else Cost()
        )
        return in_sequence(scores, repair, Cost.holding(copied(plan.shape, after)))

    def rank(self, context: StepContext) -> KeptIndices:
        """Return the neurons with the highest scores; separately for gate and up if the criterion does so."""
        criterion = criterion_named(self.criterion)
        layers = context.shape.anatomy.layers
        count = self.reshape(context.shape).count(NEURON)
        if context.shape.anatomy.family.neurons_in_experts:
            return _rank_in_experts(criterion, context, count)
        kinds = (GATE, UP) if criterion.gated_only else (NEURON,)
        kept: dict[str, list[torch.Tensor]] = {kind: [] for kind in kinds}
        for layer in range(layers):
            context.progress(Progress("Ranking neurons, layers", layer + 1, layers))
            scores = _scores(criterion, context, layer)
            for kind, row in zip(kinds, scores if criterion.gated_only else scores[None], strict=True):
                kept[kind].append(top(row, count))
        # The output projection follows the gate.
        return kept | ({NEURON: kept[GATE]} if criterion.gated_only else {})

    def refit(self, context: StepContext, kept: KeptIndices) -> Refit:
        """Refit the output projections to the neurons kept."""
        return refit_output_projections(context, NEURON, kept[NEURON]) if self.repair else Refit()

    @property
    def gentler(self) -> str | None:
        """The default criterion and repair lose less than what does without text."""
        if not criterion_named(self.criterion).needs_calibration:
            return f"Choose the neurons by {DEFAULT_CRITERION}, which reads text, with repair."
        return None if self.repair else "Switch repair on."

    def describe(self) -> str:
        """Return how many neurons are removed."""
        return describe_size(self.fraction, self.intermediate_size, "the MLP neurons")


def can_repair(shape: Shape) -> bool:
    """Return whether what remains of a model's MLPs can be repaired: not if they are experts."""
    return not shape.anatomy.family.neurons_in_experts


def multiple_of_neurons(shape: Shape) -> int:
    """Return what the number of neurons that are kept must be a multiple of."""
    return MULTIPLE_IN_EXPERTS if shape.anatomy.family.neurons_in_experts else 1


def _rank_in_experts(criterion: Criterion, context: StepContext, count: int) -> KeptIndices:
    """Return the neurons with the highest scores in each expert, and in each MLP beside the experts."""
    anatomy = context.shape.anatomy
    moments: ExpertMoments = {}
    beside: Mapping[str, InputMoments] = {}
    if criterion.needs_calibration:
        windows = context.required_windows
        moments = expert_moments(context.model, anatomy, windows, context.progress)
        modules = [name for layer in range(anatomy.layers) if (name := shared_output(anatomy, layer))]
        beside = moments_of(context.model, modules, windows, context.progress) if modules else {}
    total = anatomy.units[NEURON]
    generator = torch.Generator().manual_seed(context.seed % 2**63)
    kept: dict[str, list[torch.Tensor]] = {NEURON: [], SHARED: []}
    for layer in range(anatomy.layers):
        context.progress(Progress("Ranking neurons, layers", layer + 1, anatomy.layers))
        experts = expert_matrices(context.model, anatomy, layer)
        watched = moments.get(layer, [None] * len(experts))
        rows = [
            top(criterion.score(MLP(*each), seen, generator), count)
            for each, seen in zip(experts, watched, strict=True)
        ]
        kept[NEURON].append(torch.stack(rows) if rows else torch.arange(count))
        shared = shared_matrices(context.model, anatomy, layer)
        seen = beside.get(shared_output(anatomy, layer) or "")
        scores = criterion.score(MLP(*shared), seen, generator) if shared else torch.zeros(total)
        kept[SHARED].append(top(scores.view(total, -1).sum(dim=1), count))
    return kept


def _scores(criterion: Criterion, context: StepContext, layer: int) -> torch.Tensor:
    """Return the scores of a layer's neurons, `[neurons]`, or `[2, neurons]` for gate and up separately."""
    anatomy = context.shape.anatomy
    moments = None
    if criterion.needs_calibration:
        moments = context.required_statistics.moments[anatomy.output_projection(layer)]
    generator = torch.Generator().manual_seed((context.seed + layer) % 2**63)
    mlp = MLP(*neuron_matrices(context.model, anatomy, layer))
    return criterion.scores(mlp, moments, generator, f"layer {layer}")
