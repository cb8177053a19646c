"""A neuron's activation times the size of what it writes."""

from __future__ import annotations

from pruning.criteria.base import criterion
from pruning.lazy import torch


@criterion(
    title="Activation × output weight",
    formula="√E[aⱼ²] · ‖W_down[:, j]‖₂",
    source="After Wanda: A simple and effective pruning approach for LLMs (Sun et al., 2023), eq. 1, "
    "for whole neurons",
    url="https://arxiv.org/abs/2306.11695",
)
def wanda(down: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
    """Return √E[aⱼ²] · ‖W_down[:, j]‖₂, `[neurons]`; W_down is `[channels, neurons]`."""
    return square.sqrt() * down.float().norm(dim=0)
