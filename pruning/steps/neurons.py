"""MLP neurons: the same number in every layer, chosen layer by layer."""

from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator, model_validator

from pruning.anatomy import GATE, NEURON, UP
from pruning.criteria import DEFAULT, MLP, criterion_named
from pruning.errors import RecipeError
from pruning.progress import Progress
from pruning.repair import repair_projection
from pruning.shape import Shape
from pruning.steps.base import Refit, Step, Subject
from pruning.surgery import Kept, neuron_matrices, oriented


class Neurons(Step):
    """Cut MLP neurons.

    Give either `fraction`, the share of neurons to remove (`removed = int(fraction · intermediate
    size)`), or `width`, the number to keep in each layer. `multiple_of` rounds the width up, so
    that no more is removed than was asked. `repair` refits the output projection to what remains;
    by default it does so for the criteria that read calibration text.
    """

    step: Literal["neurons"] = "neurons"
    fraction: float | None = None
    width: Annotated[int, Field(ge=1)] | None = None
    multiple_of: Annotated[int, Field(ge=1, le=4096)] = 1
    criterion: str = DEFAULT
    repair: bool | None = None

    @field_validator("fraction")
    @classmethod
    def _open_interval(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < 1:
            raise ValueError(
                f"a share of the neurons greater than 0 and less than 1 is needed, not {value:g}"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _default_repair(cls, values):
        if isinstance(values, dict) and values.get("repair") is None:
            name = values.get("criterion", DEFAULT)
            if isinstance(name, str):
                values = values | {"repair": criterion_named(name).statistics}
        return values

    @model_validator(mode="after")
    def _one_size(self):
        if (self.fraction is None) == (self.width is None):
            raise ValueError("give either fraction or width for the neurons to cut, and not both")
        criterion_named(self.criterion)
        return self

    def sites(self, shape: Shape) -> tuple[str, ...]:
        if not (self.repair or criterion_named(self.criterion).statistics):
            return ()
        anatomy = shape.anatomy
        return tuple(anatomy.write_module(layer) for layer in range(anatomy.layers))

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

    def rank(self, subject: Subject) -> Kept:
        criterion = criterion_named(self.criterion)
        anatomy = subject.shape.anatomy
        count = self.reshape(subject.shape).count(NEURON)
        kept: dict[str, list[torch.Tensor]] = {NEURON: []}
        if criterion.gated_only:
            kept |= {GATE: [], UP: []}
        for layer in range(anatomy.layers):
            subject.progress(Progress("Ranking neurons, layers", layer + 1, anatomy.layers))
            mlp = MLP(*neuron_matrices(subject.model, anatomy, layer))
            moments = None
            if criterion.statistics:
                moments = subject.statistics.moments[anatomy.write_module(layer)]
            generator = torch.Generator().manual_seed((subject.seed + layer) % 2**63)
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
                kept[kind].append(_top(row, count))
            if criterion.gated_only:
                kept[NEURON].append(kept[GATE][-1])
        return kept

    def refit(self, subject: Subject, kept: Kept) -> Refit:
        if not self.repair:
            return Refit()
        anatomy = subject.shape.anatomy
        tensors, notes = {}, []
        for layer, indices in enumerate(kept[NEURON]):
            subject.progress(Progress("Repairing, layers", layer, anatomy.layers))
            module = anatomy.write_module(layer)
            site = subject.statistics.gram(module, subject.progress)
            write = anatomy.tensor(f"{module}.weight")
            matrix = neuron_matrices(subject.model, anatomy, layer)[1]
            repair = repair_projection(site, matrix, indices)
            if repair.weight is not None:
                tensors[write.name] = oriented(repair.weight, write)
            notes.append(
                {
                    "layer": layer,
                    "damping": repair.damping,
                    "lost_before": repair.error_before,
                    "lost_after": repair.error_after,
                }
            )
        return Refit(tensors, tuple(notes))

    def describe(self) -> str:
        size = f"{self.fraction:.4g} of" if self.fraction else f"all but {self.width} of"
        return f"{size} the MLP neurons"


def _top(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the highest scores, ascending; the first of equals wins."""
    order = torch.sort(scores.float(), descending=True, stable=True).indices
    return order[:count].sort().values
