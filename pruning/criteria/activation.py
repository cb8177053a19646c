"""The root mean square of a neuron's activation."""

from __future__ import annotations

from pruning.criteria.base import criterion
from pruning.lazy import torch


@criterion(
    title="Activation strength",
    formula="√E[aⱼ²], a = the input of the output projection",
    source="2SSP: a two-stage framework for structured pruning of LLMs (Sandri et al., 2025), stage 1",
    url="https://arxiv.org/abs/2501.17771",
)
def activation(square: torch.Tensor) -> torch.Tensor:
    """Return √E[aⱼ²] over all tokens, `[neurons]`."""
    return square.sqrt()
