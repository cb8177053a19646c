"""MLP neurons: the same number in every layer, chosen layer by layer."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import model_validator

from pruning.architectures.families import GATE, NEURON, UP
from pruning.architectures.shape import Shape
from pruning.criteria import CRITERIA, DEFAULT_CRITERION, MLP, criterion_named
from pruning.errors import RecipeError
from pruning.progress import Progress
from pruning.steps.base import Cut, Refit, StepContext, refit_writes, top
from pruning.steps.settings import Choices, Setting, Slider, Switch, share, whole, word
from pruning.steps.sizes import MULTIPLES, Multiple, Width, one_number, share_of
from pruning.surgery import KeptIndices, neuron_matrices

UNIFORM = one_number(
    "every layer keeps the same number of neurons: a config holds one intermediate size for all layers, so a "
    "model with several would not load"
)


class Neurons(Cut):
    """Cut MLP neurons.

    Give either `fraction`, the share of neurons to remove (`removed = int(fraction · intermediate
    size)`), or `width`, the number to keep in each layer. `multiple_of` rounds the width up, so
    that no more is removed than was asked. `repair` refits the output projection to what remains;
    by default it does so for the criteria that read calibration text.
    """

    title: ClassVar[str] = "MLP neurons"
    hint: ClassVar[str] = "The hidden units of the feed-forward layers: most of a model's parameters"
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "fraction",
            "--neurons",
            "MLP neurons to cut, %",
            "The same share of the intermediate size in every layer",
            share,
            Slider(lambda shape: 90, percent=True),
            activates_step=True,
        ),
        Setting(
            "width", "--width", "MLP neurons to keep in each layer, instead", read=whole, activates_step=True
        ),
        Setting(
            "criterion",
            "--criterion",
            "Importance of a neuron",
            "The criterion: those with the lowest score are cut",
            word,
            Choices({name: criterion.title for name, criterion in CRITERIA.items()}),
        ),
        Setting(
            "multiple_of",
            "--multiple-of",
            "Width a multiple of",
            "Multiples run faster on many machines; 8-bit GGUF files need one of 32",
            whole,
            Choices(MULTIPLES),
        ),
        Setting(
            "repair",
            "--repair",
            "Repair what remains",
            "Refits each layer's output projection to the neurons kept, by least squares",
            control=Switch(),
        ),
    )

    step: Literal["neurons"] = "neurons"
    fraction: Annotated[share_of("neurons") | None, UNIFORM] = None
    width: Annotated[Width | None, UNIFORM] = None
    multiple_of: Multiple = 1
    criterion: str = DEFAULT_CRITERION
    repair: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_repair(cls, values):
        if isinstance(values, dict) and values.get("repair") is None:
            name = values.get("criterion", DEFAULT_CRITERION)
            if isinstance(name, str):
                values = values | {"repair": criterion_named(name).needs_calibration}
        return values

    @model_validator(mode="after")
    def _one_size(self):
        if (self.fraction is None) == (self.width is None):
            raise ValueError("give either fraction or width for the neurons to cut, and not both")
        criterion_named(self.criterion)
        return self

    def hooked_modules(self, shape: Shape) -> tuple[str, ...]:
        if not (self.repair or criterion_named(self.criterion).needs_calibration):
            return ()
        anatomy = shape.anatomy
        return tuple(anatomy.output_projection(layer) for layer in range(anatomy.layers))

    def reshape(self, shape: Shape) -> Shape:
        criterion = criterion_named(self.criterion)
        family = shape.anatomy.family
        if criterion.gated_only and not family.gated:
            raise RecipeError(
                f"{criterion.name} ranks gate and up apart, but the MLP of {family.title} has no "
                "gate. Choose another criterion."
            )
        if criterion.gated_only and self.repair:
            raise RecipeError(f"{criterion.name} leaves no whole neurons to repair with. Switch repair off.")
        width = shape.count(NEURON)
        kept = self.width if self.fraction is None else width - int(self.fraction * width)
        kept = -(-kept // self.multiple_of) * self.multiple_of
        if kept >= width:
            raise RecipeError(
                f"This removes none of the {width} neurons of a layer: {kept} would be kept. "
                "Ask for a larger fraction, a smaller width or a smaller multiple."
            )
        return shape.resized(NEURON, kept)

    def rank(self, context: StepContext) -> KeptIndices:
        criterion = criterion_named(self.criterion)
        anatomy = context.shape.anatomy
        count = self.reshape(context.shape).count(NEURON)
        kept: dict[str, list[torch.Tensor]] = {NEURON: []}
        if criterion.gated_only:
            kept |= {GATE: [], UP: []}
        for layer in range(anatomy.layers):
            context.progress(Progress("Ranking neurons, layers", layer + 1, anatomy.layers))
            mlp = MLP(*neuron_matrices(context.model, anatomy, layer))
            moments = None
            if criterion.needs_calibration:
                moments = context.statistics.moments[anatomy.output_projection(layer)]
            generator = torch.Generator().manual_seed((context.seed + layer) % 2**63)
            scores = criterion.score(mlp, moments, generator)
            if not torch.isfinite(scores).all():
                raise RecipeError(
                    f"The scores of layer {layer} are not finite: the weights or the calibration "
                    "text are damaged. Load the model again or choose another text."
                )
            for kind, row in zip(
                (GATE, UP) if criterion.gated_only else (NEURON,),
                scores if criterion.gated_only else scores[None],
                strict=True,
            ):
                kept[kind].append(top(row, count))
            if criterion.gated_only:
                kept[NEURON].append(kept[GATE][-1])
        return kept

    def refit(self, context: StepContext, kept: KeptIndices) -> Refit:
        return refit_writes(context, NEURON, kept[NEURON]) if self.repair else Refit()

    def describe(self) -> str:
        size = f"{100 * self.fraction:.4g} % of" if self.fraction else f"all but {self.width} of"
        return f"{size} the MLP neurons"
