"""Channels of the residual stream: the same ones in every layer, wherever they are read or written."""

from math import ceil, lcm
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import model_validator

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.families import CHANNEL, QUERY
from pruning.architectures.placement import parameter
from pruning.architectures.shape import Shape
from pruning.calibration.norm_moments import NormMoments, norm_moments
from pruning.errors import ModelError, RecipeError
from pruning.progress import Progress
from pruning.repair.projection import repair_projection
from pruning.steps.base import Cut, Refit, StepContext, top
from pruning.steps.settings import Choices, Setting, Slider, Switch, share, whole, word
from pruning.steps.sizes import MULTIPLES, Multiple, Width, one_number, share_of
from pruning.surgery import KeptIndices

ONE_STREAM = one_number("all layers share the channels of one residual stream")

READERS = ("attention", "mlp")


class Channels(Cut):
    """Cut channels of the residual stream: entries of the hidden state that all layers share.

    Give either `fraction`, the share of channels to remove, or `width`, the hidden size to keep. The number
    kept is rounded up to a multiple of the number of heads, which configs ask for, and of `multiple_of`.
    `criterion`: `energy`, a channel's share of the energy E[x² / mean(x²)] at the inputs of all norms; or
    `minitron`, its size at the outputs of all norms, mean over the sequence and L2 over the batch
    (Muralidharan et al., 2024, §2.2). The weights of the norms are scaled by
    √E[mean_kept(x²) / mean(x²)] of what they normalise. `repair` refits everything that reads the residual
    stream inside the layers to the channels that remain.
    """

    title: ClassVar[str] = "Channels"
    hint: ClassVar[str] = "The width of the stream that every layer reads from and writes to"
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "fraction",
            "--channels",
            "Channels to cut, %",
            "The same ones in every layer; the hidden size stays a multiple of the number of heads",
            share,
            Slider(lambda shape: 0 if CHANNEL in shape.anatomy.family.unprunable else 75, percent=True),
            activates_step=True,
        ),
        Setting("width", "--hidden-size", "Channels to keep, instead", read=whole, activates_step=True),
        Setting(
            "criterion",
            "--channel-criterion",
            "Importance of a channel",
            "How much of the stream's energy it carries, or how much of it the norms let through",
            word,
            Choices({"energy": "Share of the energy", "minitron": "Minitron's importance"}),
        ),
        Setting(
            "multiple_of",
            "--channel-multiple-of",
            "Hidden size a multiple of",
            "Multiples run faster on many machines; some file types need them",
            whole,
            Choices(MULTIPLES),
        ),
        Setting(
            "repair",
            "--repair",
            "Repair what remains",
            "Refits all that reads the channels to those kept, by least squares",
            control=Switch(),
        ),
    )

    step: Literal["channels"] = "channels"
    fraction: Annotated[share_of("channels") | None, ONE_STREAM] = None
    width: Annotated[Width | None, ONE_STREAM] = None
    multiple_of: Multiple = 1
    criterion: Literal["energy", "minitron"] = "energy"
    repair: bool = True

    @model_validator(mode="after")
    def _one_size(self):
        if (self.fraction is None) == (self.width is None):
            raise ValueError("give either fraction or width for the channels to cut, and not both")
        return self

    @property
    def needs_calibration_text(self) -> bool:
        return True

    def hooked_modules(self, shape: Shape) -> tuple[str, ...]:
        if not self.repair:
            return ()
        anatomy = shape.anatomy
        # The matrices that read the same need only one look.
        return tuple(
            anatomy.input_projections(layer, part)[0].module
            for layer in range(anatomy.layers)
            for part in READERS
        )

    def reshape(self, shape: Shape) -> Shape:
        family = shape.anatomy.family
        if CHANNEL in family.unprunable:
            raise RecipeError(f"The channels of {family.title} cannot be cut: {family.unprunable[CHANNEL]}.")
        channels, heads = shape.count(CHANNEL), shape.count(QUERY)
        step = lcm(heads, self.multiple_of)
        asked = self.width if self.fraction is None else channels - int(self.fraction * channels)
        kept = -(-asked // step) * step
        if kept >= channels:
            largest = (channels - 1) // step * step
            rounding = f" and of {self.multiple_of}, as asked" if self.multiple_of > 1 else ""
            percent = ceil(1000 * (channels - largest) / channels) / 10
            way = (
                f"cut at least {percent:g} %, down to {largest}"
                if largest
                else "no smaller size is, so ask for another multiple"
            )
            raise RecipeError(
                f"This removes none of the {channels} channels. The hidden size must be a multiple of the "
                f"number of heads, {heads}{rounding}; {way}."
            )
        resized = shape.resized(CHANNEL, kept)
        try:
            resized.config  # noqa: B018 - whether there is such a config
        except ModelError as error:
            raise RecipeError(f"A model with {kept} channels would not load. {error}") from None
        return resized

    def rank(self, context: StepContext) -> KeptIndices:
        anatomy = context.shape.anatomy
        moments = self._moments(context)
        if self.criterion == "minitron":
            scores = sum(norm.sequence.double() for norm in moments.values())
        else:
            scores = sum(norm.share.double() for norm in moments.values())
        if not torch.isfinite(scores).all():
            raise RecipeError(
                "The scores of the channels are not finite: the weights or the calibration text are damaged. "
                "Load the model again or choose another text."
            )
        kept = top(scores, self.reshape(context.shape).count(CHANNEL))
        return {CHANNEL: [kept] * anatomy.layers}

    def refit(self, context: StepContext, kept: KeptIndices) -> Refit:
        channels = kept[CHANNEL][0]
        tensors = _scaled_norms(context, self._moments(context), channels)
        if not self.repair:
            return Refit(tensors)
        repaired = _refitted_reads(context, channels)
        return Refit({**tensors, **repaired.tensors}, repaired.notes)

    def _moments(self, context: StepContext) -> dict[str, NormMoments]:
        return norm_moments(context.model, context.shape.anatomy, context.windows, context.progress)

    def describe(self) -> str:
        size = f"{100 * self.fraction:.4g} % of" if self.fraction else f"all but {self.width} of"
        return f"{size} the channels"


def _scaled_norms(
    context: StepContext, moments: dict[str, NormMoments], kept: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The weights of the norms, so that what they let through is as large as it was.

    A norm divides by the root mean square over its channels, which changes with them. Where embeddings
    are multiplied by √(hidden size), the stream begins smaller, and what is added to it must follow; the
    norms that read it undo it.
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


def _refitted_reads(context: StepContext, kept: torch.Tensor) -> Refit:
    """Everything that reads the residual stream inside the layers, refitted to the channels kept."""
    anatomy: Anatomy = context.shape.anatomy
    tensors, notes = {}, []
    for layer in range(anatomy.layers):
        context.progress(Progress("Repairing, layers", layer, anatomy.layers))
        for part in READERS:
            specs = anatomy.input_projections(layer, part)
            matrices = [
                weight if anatomy.input_axis(spec) == 1 else weight.T
                for spec in specs
                for weight in [parameter(context.model, spec.name)]
            ]
            gram = context.statistics.gram(specs[0].module, context.progress)
            repair = repair_projection(gram, torch.cat(matrices), kept)
            if repair.weight is not None:
                parts = repair.weight.split([len(matrix) for matrix in matrices])
                for spec, refitted in zip(specs, parts, strict=True):
                    # Copies, because parts of one storage cannot be saved apart.
                    turned = refitted if anatomy.input_axis(spec) == 1 else refitted.T
                    tensors[spec.name] = turned.clone(memory_format=torch.contiguous_format)
            notes.append(
                {
                    "layer": layer,
                    "component": part,
                    "damping": repair.damping,
                    "lost_before": repair.error_before,
                    "lost_after": repair.error_after,
                }
            )
    return Refit(tensors, tuple(notes))
