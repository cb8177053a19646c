"""Channels of the residual stream: the same ones in every layer, wherever they are read or written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from math import ceil, lcm
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pruning.architectures.families import CHANNEL, QUERY
from pruning.architectures.placement import parameter
from pruning.architectures.shape import Shape
from pruning.calibration.norm_moments import NormMoments, norm_moments
from pruning.cost.cost import Cost, in_sequence
from pruning.cost.passes import copied
from pruning.cost.plan import Plan
from pruning.cost.reading import refits
from pruning.errors import ModelError, RecipeError
from pruning.lazy import torch
from pruning.progress import Progress
from pruning.repair.projection import repair_projection
from pruning.steps.base import Cut, Refit, StepContext, check_prunable, most, top
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

ONE_STREAM = one_number("all layers share the channels of one residual stream")

COMPONENTS = ("attention", "mlp")
"""What reads the residual stream inside a layer."""


@dataclass(frozen=True)
class InputsNote:
    """The repair of the projections through which one component of a layer reads the residual stream.

    Attributes:
        layer: The layer's number, from 0 on.
        component: `attention` or `mlp`.
        damping: λ of the ridge regression; None if the weights were best left as they were.
        lost_before: The share of the outputs' energy on held-out text that is lost without repair.
        lost_after: The same with it.
    """

    layer: int
    component: str
    damping: float | None
    lost_before: float
    lost_after: float


class Channels(Cut):
    """Remove channels of the residual stream: entries of the hidden state that all layers share.

    Give either `fraction` or `hidden_size`. The number kept is a multiple of the number of heads, which configs ask
    for: of a fraction, the nearest that is also one of 32, or of a smaller power of two if the model has few channels.
    With `multiple_of`, it is rounded up to a multiple of both. The weights of the norms are scaled by
    √E[mean_kept(x²) / mean(x²)] of the x `[channels]` that they normalize. The criteria:

    - `energy`: a channel's share of the energy, E[x² / mean(x²)] at the inputs x of all norms.
    - `minitron`: a channel's size at the outputs of all norms, mean over the sequence and L2 over the batch
      (Muralidharan et al., 2024, §2.2).

    Example:
        >>> import pruning
        >>> pruning.Channels(hidden_size=512).describe()
        'all but 512 of the channels'
    """

    title: ClassVar[str] = "Channels"
    hint: ClassVar[str] = "The width of the stream that every layer reads from and writes to"
    published_names: ClassVar[Mapping[str, str]] = {"hidden_size": "width"}
    published_defaults: ClassVar[Mapping[str, Mapping[str, object]]] = {"fraction": {"multiple_of": 1}}
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "fraction",
            "--channels",
            "Channels to cut, %",
            share,
            Slider(lambda shape: most(shape, "channels", 75), percent=True),
            activates_step=True,
            usage="A share, such as 25%",
        ),
        Setting(
            "hidden_size",
            "--hidden-size",
            "Channels to keep, instead",
            whole,
            activates_step=True,
            usage="A number, such as 512",
        ),
        Setting(
            "criterion",
            "--channel-criterion",
            "Importance of a channel",
            word,
            Choices({"energy": "Share of the energy", "minitron": "Minitron's importance"}),
        ),
        Setting(
            "multiple_of",
            "--channel-multiple-of",
            "Hidden size a multiple of",
            whole,
            Choices(WIDTH_MULTIPLES),
        ),
        Setting("repair", "--repair", "Repair what remains", control=Switch()),
    )

    step: Literal["channels"] = "channels"
    fraction: Annotated[float | None, fraction_of("channels"), ONE_STREAM] = Field(
        None,
        description="The share of the channels to remove, the same ones in every layer; the hidden size "
        "remains a multiple of the number of heads",
    )
    hidden_size: Annotated[Size | None, ONE_STREAM] = Field(
        None, description="The number of channels to keep, instead of a share to remove"
    )
    multiple_of: WidthMultiple = Field(
        None,
        description="Rounds the number kept up to a multiple; by default a share leaves the nearest multiple of 32, "
        "or of a smaller number if few channels remain to choose from",
    )
    criterion: Literal["energy", "minitron"] = Field(
        "energy",
        description="How much of the stream's energy a channel carries, or how much of it the norms let "
        "through",
    )
    repair: bool = Field(
        True, description="Refits all that reads the channels to those kept, by least squares"
    )

    @model_validator(mode="after")
    def _check_alternatives(self) -> Self:
        if not exactly_one(self.fraction, self.hidden_size):
            raise ValueError("give either fraction or hidden_size for the channels to cut, and not both")
        return self

    def canonical(self) -> dict[str, Any]:
        """Return plain values; a size that is given is exact, which release 0.1.0 wrote as a multiple of 1."""
        return with_published_multiple(super().canonical(), self.fraction)

    def reads_text(self, shape: Shape) -> bool:
        """Return that it does: the moments of the norms' inputs are needed in any case."""
        del shape
        return True

    def hooked_modules(self, shape: Shape) -> tuple[str, ...]:
        """Return the first projection that reads the stream in each component, if repair needs its inputs."""
        if not self.repair:
            return ()
        anatomy = shape.anatomy
        # Projections that read the same need only one look.
        return tuple(
            anatomy.input_projections(layer, component)[0].module
            for layer in range(anatomy.layers)
            for component in COMPONENTS
        )

    def reshape(self, shape: Shape) -> Shape:
        """Return the shape with fewer channels."""
        check_prunable(shape, "channels")
        channels, heads = shape.count(CHANNEL), shape.count(QUERY)
        multiple = lcm(heads, self.multiple_of or 1)
        if self.multiple_of is not None:
            kept = kept_size(channels, self.fraction, self.hidden_size, multiple)
        elif self.hidden_size is None:
            kept = nearest_size(channels, self.fraction or 0.0, default_multiple(channels, heads))
        else:
            kept = self._exact_size(self.hidden_size, channels, heads)
        if kept >= channels:
            raise RecipeError(self._nothing_removed(channels, heads, multiple))
        resized = shape.resized(CHANNEL, kept)
        try:
            resized.config  # noqa: B018 - raises if there is no such config
        except ModelError as error:
            raise RecipeError(f"A model with {kept} channels would not load. {error}") from None
        return resized

    def _exact_size(self, size: int, channels: int, heads: int) -> int:
        """Return the hidden size that was asked for, or say which ones are possible."""
        below = size // heads * heads
        if below == size or size >= channels:
            return size
        possible = [str(each) for each in (below, below + heads) if 0 < each < channels]
        raise RecipeError(
            f"A hidden size of {size} is not possible: it must be a multiple of the number of heads, {heads}. Choose "
            f"{' or '.join(possible) or 'another step'}."
        )

    def _nothing_removed(self, channels: int, heads: int, multiple: int) -> str:
        """Explain why none of the channels would be removed."""
        largest = (channels - 1) // multiple * multiple
        percent = ceil(1000 * (channels - largest) / channels) / 10
        also = f" and of {self.multiple_of}, as requested" if (self.multiple_of or 1) > 1 else ""
        if largest:
            advice = f"cut at least {percent:g} %, down to {largest}"
        else:
            advice = "no smaller size is, so ask for another multiple"
        return (
            f"This removes none of the {channels} channels. The hidden size must be a multiple of the "
            f"number of heads, {heads}{also}; {advice}."
        )

    def cost(self, plan: Plan) -> Cost:
        """Estimate a pass for the norms, the repair of all that reads the stream, and the copy of the model."""
        sizes, after = plan.sizes, self.reshape(plan.shape)
        removed = sizes.channels - after.count(CHANNEL)
        repairs = [Cost()]
        if self.repair:
            anatomy = plan.shape.anatomy
            for component in COMPONENTS:
                specs = anatomy.input_projections(0, component)
                outputs = sum(
                    plan.shape.length(spec.labels[axis], spec.shape[axis])
                    for spec in specs
                    for axis in [1 - anatomy.input_axis(spec)]
                )
                repairs.append(refits(sizes.layers, sizes.channels, removed, outputs, plan.free))
        return in_sequence(plan.reading.forward(sizes), *repairs, Cost.holding(copied(plan.shape, after)))

    def rank(self, context: StepContext) -> KeptIndices:
        """Return the channels with the highest scores, the same for every layer."""
        moments = _moments(context).values()
        per_norm = [norm.sequence if self.criterion == "minitron" else norm.share for norm in moments]
        # One after the other, because another order of summation rounds otherwise.
        scores = reduce(torch.add, (values.double() for values in per_norm))
        if not torch.isfinite(scores).all():
            raise RecipeError(
                "The scores of the channels are not finite: the weights or the calibration text are damaged. "
                "Load the model again or choose another text."
            )
        kept = top(scores, self.reshape(context.shape).count(CHANNEL))
        return {CHANNEL: [kept] * context.shape.anatomy.layers}

    def refit(self, context: StepContext, kept: KeptIndices) -> Refit:
        """Scale the norms, and refit what reads the residual stream to the channels kept."""
        channels = kept[CHANNEL][0]
        tensors = _scale_norms(context, _moments(context), channels)
        if not self.repair:
            return Refit(tensors)
        repaired = _refit_inputs(context, channels)
        return Refit({**tensors, **repaired.tensors}, repaired.notes)

    @property
    def gentler(self) -> str | None:
        """Repair makes up for part of what was removed."""
        return None if self.repair else "Switch repair on."

    def describe(self) -> str:
        """Return how many channels are removed."""
        return describe_size(self.fraction, self.hidden_size, "the channels")


def _moments(context: StepContext) -> Mapping[str, NormMoments]:
    return norm_moments(context.model, context.shape.anatomy, context.required_windows, context.progress)


def _scale_norms(
    context: StepContext, moments: Mapping[str, NormMoments], kept: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Scale the weights of the norms so that their outputs are as large as before.

    A norm divides by the root mean square over its channels, which changes with them. In families that
    multiply embeddings by √(hidden size) the stream begins smaller, and what is added to it must follow; the
    norms that read it undo that.

    Args:
        context: The model.
        moments: The moments at each norm, by its name.
        kept: The indices of the channels kept.

    Returns:
        The new weights by parameter name, `[kept]` each.
    """
    anatomy = context.shape.anatomy
    offset = anatomy.family.norm_offset
    scaled = {}
    for spec in anatomy.norms:
        weight = parameter(context.model, spec.name)
        scale = moments[spec.module].share[kept].double().mean().sqrt()
        if anatomy.is_post_norm(spec):
            scale = scale * (len(kept) / anatomy.units[CHANNEL]) ** 0.5
        scaled[spec.name] = ((weight[kept].double() + offset) * scale - offset).to(weight.dtype)
    return scaled


def _refit_inputs(context: StepContext, kept: torch.Tensor) -> Refit:
    """Refit everything that reads the residual stream inside the layers to the channels kept."""
    anatomy = context.shape.anatomy
    tensors, notes = {}, []
    for layer in range(anatomy.layers):
        context.progress(Progress("Repairing, layers", layer, anatomy.layers))
        for component in COMPONENTS:
            specs = anatomy.input_projections(layer, component)
            weights = [parameter(context.model, spec.name) for spec in specs]
            # Each `[outputs, channels]`.
            matrices = [
                weight if anatomy.input_axis(spec) == 1 else weight.T
                for spec, weight in zip(specs, weights, strict=True)
            ]
            gram = context.required_statistics.gram(specs[0].module, context.progress)
            repair = repair_projection(gram, torch.cat(matrices), kept)
            if repair.weight is not None:
                parts = repair.weight.split([len(matrix) for matrix in matrices])
                for spec, refitted in zip(specs, parts, strict=True):
                    # Copies, because parts of one storage cannot be saved separately.
                    turned = refitted if anatomy.input_axis(spec) == 1 else refitted.T
                    tensors[spec.name] = turned.clone(memory_format=torch.contiguous_format)
            notes.append(
                InputsNote(layer, component, repair.damping, repair.error_before, repair.error_after)
            )
    return Refit(tensors, tuple(notes))
