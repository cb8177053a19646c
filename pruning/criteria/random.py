"""No idea at all: the floor that a criterion must beat."""

from __future__ import annotations

from pruning.criteria.base import MLP, criterion
from pruning.lazy import torch


@criterion(
    title="At random",
    formula="a draw from the recipe's seed",
    source="The floor: a criterion that does no better carries no information",
)
def random(mlp: MLP, generator: torch.Generator) -> torch.Tensor:
    """Return a uniform draw from [0, 1) for each neuron, `[neurons]`."""
    return torch.rand(mlp.output_weight.shape[1], generator=generator)
