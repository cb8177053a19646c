"""Attention heads: whole key/value groups, or the same number of query heads out of every group."""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from pruning.anatomy import KEY_VALUE, QUERY, Anatomy, head_size
from pruning.errors import RecipeError
from pruning.progress import Progress
from pruning.shape import Shape
from pruning.steps.base import Refit, Step, Subject, refit_writes, top
from pruning.surgery import Kept, oriented


class Heads(Step):
    """Cut attention heads, chosen layer by layer.

    Give either `groups`, how many key/value heads to remove with all the query heads that share them,
    or `queries`, how many query heads to remove out of every group. `criterion`: `contribution`,
    E‖X_h W_hᵀ‖², what a head adds to the residual stream (as the Gram matrix of its outputs gives it);
    or `minitron`, the L2 norm of a head's output, mean over the sequence and L2 over the batch
    (Muralidharan et al., 2024, §2.2). `repair` refits the output projection to the heads kept.
    """

    step: Literal["heads"] = "heads"
    groups: Annotated[int, Field(ge=1)] | None = None
    queries: Annotated[int, Field(ge=1)] | None = None
    criterion: Literal["contribution", "minitron"] = "contribution"
    repair: bool = True

    @model_validator(mode="after")
    def _one_kind(self):
        if (self.groups is None) == (self.queries is None):
            raise ValueError("give either groups or queries for the heads to cut, and not both")
        return self

    def sites(self, shape: Shape) -> tuple[str, ...]:
        anatomy = shape.anatomy
        return tuple(anatomy.write_module(layer, QUERY) for layer in range(anatomy.layers))

    def reshape(self, shape: Shape) -> Shape:
        family = shape.anatomy.family
        if QUERY in family.fixed:
            raise RecipeError(f"The heads of {family.title} cannot be cut: {family.fixed[QUERY]}.")
        pairs, queries = shape.count(KEY_VALUE), shape.count(QUERY)
        each = queries // pairs
        removed, there, unit = (
            (self.groups, pairs, "key/value groups")
            if self.groups
            else (self.queries, each, "query heads of a group")
        )
        if removed >= there:
            raise RecipeError(
                f"There are {there} {unit}; {removed} cannot be removed. At least one must stay."
            )
        pairs, each = (pairs - removed, each) if self.groups else (pairs, each - removed)
        channels = shape.anatomy.config.hidden_size
        if channels % (pairs * each):
            raise RecipeError(
                f"{pairs * each} query heads would stay, which does not divide the hidden size {channels}, "
                "and such a config does not load. Remove another number of heads."
            )
        return shape.resized(KEY_VALUE, pairs).resized(QUERY, pairs * each)

    def rank(self, subject: Subject) -> Kept:
        anatomy = subject.shape.anatomy
        after = self.reshape(subject.shape)
        pairs, each = anatomy.units[KEY_VALUE], anatomy.units[QUERY] // anatomy.units[KEY_VALUE]
        kept: dict[str, list[torch.Tensor]] = {QUERY: [], KEY_VALUE: []}
        for layer in range(anatomy.layers):
            subject.progress(Progress("Ranking heads, layers", layer + 1, anatomy.layers))
            scores = self._scores(subject, anatomy, layer, 1 if self.queries else each).view(pairs, -1)
            if self.groups:
                stay = top(scores[:, 0], after.count(KEY_VALUE))
                heads = (stay[:, None] * each + torch.arange(each)).flatten()
            else:
                stay = torch.arange(pairs)
                heads = torch.cat(
                    [top(row, each - self.queries) + pair * each for pair, row in enumerate(scores)]
                )
            kept[KEY_VALUE].append(stay)
            kept[QUERY].append(heads)
        return kept

    def _scores(self, subject: Subject, anatomy: Anatomy, layer: int, heads_per_unit: int) -> torch.Tensor:
        """The scores of runs of `heads_per_unit` query heads."""
        module = anatomy.write_module(layer, QUERY)
        width = head_size(anatomy.config) * heads_per_unit
        if self.criterion == "minitron":
            return subject.statistics.moments[module].sequence.view(-1, width).norm(dim=1)
        spec = anatomy.tensor(f"{module}.weight")
        write = oriented(subject.model.get_parameter(spec.name).detach(), spec).double()
        gram = subject.statistics.gram(module, subject.progress).gram.double()
        contributions = (gram * (write.T @ write)).view(-1, width, gram.shape[1] // width, width)
        return contributions.sum(dim=(1, 3)).diagonal()

    def refit(self, subject: Subject, kept: Kept) -> Refit:
        if not self.repair:
            return Refit()
        width = head_size(subject.shape.anatomy.config)
        columns = [(heads[:, None] * width + torch.arange(width)).flatten() for heads in kept[QUERY]]
        return refit_writes(subject, QUERY, columns)

    def describe(self) -> str:
        if self.groups:
            return f"{self.groups} key/value group{'s' if self.groups > 1 else ''} of every layer"
        return f"{self.queries} query head{'s' if self.queries > 1 else ''} of every group"
