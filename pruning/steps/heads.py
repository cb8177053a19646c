"""Attention heads: whole key/value groups, or the same number of query heads out of every group."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.config import head_size
from pruning.architectures.families import CHANNEL, KEY_VALUE, QUERY
from pruning.architectures.placement import parameter
from pruning.architectures.shape import Shape
from pruning.errors import RecipeError
from pruning.progress import Progress
from pruning.steps.base import Cut, Refit, StepContext, refit_writes, top
from pruning.steps.settings import Choices, Setting, Slider, Switch, whole, word
from pruning.surgery import KeptIndices, as_channels_first, value_matrix


class Heads(Cut):
    """Cut attention heads, chosen layer by layer.

    `groups`: how many key/value heads to remove with all the query heads that share them. `queries`: how
    many query heads to remove out of every group that stays. `criterion`: `contribution`,
    E‖X_h W_hᵀ‖², what a head adds to the residual stream (as the Gram matrix of its outputs gives it);
    `minitron`, the L2 norm of a head's output, mean over the sequence and L2 over the batch
    (Muralidharan et al., 2024, §2.2); or `weights`, ‖W_O,h W_V,h‖_F, how much of the residual stream a
    head can move, by its output-value circuit (Elhage et al., 2021, "A mathematical framework for
    transformer circuits") and no text. `repair` refits the output projection to the heads kept; by
    default it does so for the criteria that read calibration text.
    """

    title: ClassVar[str] = "Attention heads"
    hint: ClassVar[str] = "What looks back at earlier words; heads that share keys and values form a group"
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "groups",
            "--heads",
            "Groups of heads to cut",
            "Key/value groups, each with the query heads that share it, in every layer",
            whole,
            Slider(
                lambda shape: 0 if QUERY in shape.anatomy.family.unprunable else shape.count(KEY_VALUE) - 1
            ),
            activates_step=True,
        ),
        Setting(
            "queries",
            "--query-heads",
            "Heads to cut out of every group",
            "Query heads of each key/value group that stays",
            whole,
            Slider(
                lambda shape: (
                    0
                    if QUERY in shape.anatomy.family.unprunable
                    else shape.count(QUERY) // shape.count(KEY_VALUE) - 1
                )
            ),
            activates_step=True,
        ),
        Setting(
            "criterion",
            "--head-criterion",
            "Importance of a head",
            "What its output adds to the residual stream, or how large its output is",
            word,
            Choices(
                {
                    "contribution": "What it contributes",
                    "minitron": "Minitron's importance",
                    "weights": "The size of its weights (no text needed)",
                }
            ),
        ),
        Setting(
            "repair",
            "--repair",
            "Repair what remains",
            "Refits each layer's output projection to the heads kept, by least squares",
            control=Switch(),
        ),
    )

    step: Literal["heads"] = "heads"
    groups: Annotated[int, Field(ge=0)] = 0
    queries: Annotated[int, Field(ge=0)] = 0
    criterion: Literal["contribution", "minitron", "weights"] = "contribution"
    repair: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_repair(cls, values):
        if isinstance(values, dict) and values.get("repair") is None:
            values = values | {"repair": values.get("criterion") != "weights"}
        return values

    @field_validator("groups", "queries", mode="before")
    @classmethod
    def _uniform(cls, value):
        if isinstance(value, list | tuple | dict):
            raise ValueError(
                "every layer loses the same number of heads: a config holds one number for all layers, "
                "so a model with several would not load. Give one number"
            )
        return value

    @model_validator(mode="after")
    def _something(self):
        if not self.groups and not self.queries:
            raise ValueError("give groups or queries for the heads to cut; both are 0")
        return self

    def hooked_modules(self, shape: Shape) -> tuple[str, ...]:
        if self.criterion == "weights" and not self.repair:
            return ()
        anatomy = shape.anatomy
        return tuple(anatomy.output_projection(layer, QUERY) for layer in range(anatomy.layers))

    def reshape(self, shape: Shape) -> Shape:
        family = shape.anatomy.family
        if QUERY in family.unprunable:
            raise RecipeError(f"The heads of {family.title} cannot be cut: {family.unprunable[QUERY]}.")
        pairs, queries = shape.count(KEY_VALUE), shape.count(QUERY)
        each = queries // pairs
        for removed, there, unit in (
            (self.groups, pairs, "key/value groups"),
            (self.queries, each, "query heads of a group"),
        ):
            if removed >= there:
                raise RecipeError(
                    f"There are {there} {unit}; {removed} cannot be removed. At least one must stay."
                )
        pairs, each = pairs - self.groups, each - self.queries
        channels = shape.count(CHANNEL)
        if channels % (pairs * each):
            raise RecipeError(
                f"{pairs * each} query heads would stay, which does not divide the hidden size {channels}, "
                "and such a config does not load. Remove another number of heads."
            )
        return shape.resized(KEY_VALUE, pairs).resized(QUERY, pairs * each)

    def rank(self, context: StepContext) -> KeptIndices:
        anatomy = context.shape.anatomy
        pairs, each = anatomy.units[KEY_VALUE], anatomy.units[QUERY] // anatomy.units[KEY_VALUE]
        kept: dict[str, list[torch.Tensor]] = {QUERY: [], KEY_VALUE: []}
        for layer in range(anatomy.layers):
            context.progress(Progress("Ranking heads, layers", layer + 1, anatomy.layers))
            groups, heads = torch.arange(pairs), torch.arange(each).repeat(pairs, 1)
            if self.groups:
                groups = top(self._scores(context, anatomy, layer, each), pairs - self.groups)
            if self.queries:
                scores = self._scores(context, anatomy, layer, 1).view(pairs, each)
                heads = torch.stack([top(row, each - self.queries) for row in scores])
            kept[KEY_VALUE].append(groups)
            kept[QUERY].append((groups[:, None] * each + heads[groups]).flatten())
        return kept

    def _scores(
        self, context: StepContext, anatomy: Anatomy, layer: int, heads_per_unit: int
    ) -> torch.Tensor:
        """The scores of runs of `heads_per_unit` query heads."""
        module = anatomy.output_projection(layer, QUERY)
        width = head_size(anatomy.config) * heads_per_unit
        if self.criterion == "minitron":
            return context.statistics.moments[module].sequence.view(-1, width).norm(dim=1)
        spec = anatomy.tensor(f"{module}.weight")
        write = as_channels_first(parameter(context.model, spec.name), spec).double()
        if self.criterion == "weights":
            circuits = _circuits(write, value_matrix(context.model, anatomy, layer), anatomy)
            return circuits.view(-1, heads_per_unit).sum(dim=1)
        gram = context.statistics.gram(module, context.progress).gram.double()
        contributions = (gram * (write.T @ write)).view(-1, width, gram.shape[1] // width, width)
        return contributions.sum(dim=(1, 3)).diagonal()

    def refit(self, context: StepContext, kept: KeptIndices) -> Refit:
        if not self.repair:
            return Refit()
        width = head_size(context.shape.anatomy.config)
        columns = [(heads[:, None] * width + torch.arange(width)).flatten() for heads in kept[QUERY]]
        return refit_writes(context, QUERY, columns)

    def describe(self) -> str:
        parts = []
        if self.groups:
            parts.append(f"{self.groups} key/value group{'s' if self.groups > 1 else ''} of every layer")
        if self.queries:
            parts.append(f"{self.queries} query head{'s' if self.queries > 1 else ''} of every group")
        return " and ".join(parts)


def _circuits(write: torch.Tensor, values: torch.Tensor, anatomy: Anatomy) -> torch.Tensor:
    """‖W_O,h W_V,h‖_F of each query head, by ‖A B‖²_F = ⟨Aᵀ A, B Bᵀ⟩, products of the size of a head."""
    width = head_size(anatomy.config)
    values = values.double().view(anatomy.units[KEY_VALUE], width, -1)
    writes = write.view(len(write), anatomy.units[QUERY], width).permute(1, 2, 0)
    each = anatomy.units[QUERY] // anatomy.units[KEY_VALUE]
    shared = (values @ values.mT).repeat_interleave(each, dim=0)
    return (shared * (writes @ writes.mT)).sum(dim=(1, 2)).clamp_min(0).sqrt()
