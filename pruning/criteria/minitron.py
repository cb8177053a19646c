"""The importance of a neuron in Minitron."""

from __future__ import annotations

from pruning.criteria.base import criterion
from pruning.lazy import torch


@criterion(
    title="Minitron's importance",
    formula="‖ mean over the sequence of |aⱼ| ‖₂ over the batch",
    source="Compact language models via pruning and knowledge distillation (Muralidharan et al., "
    "2024), §2.2, with its best aggregation (batch: L2, sequence: mean)",
    url="https://arxiv.org/abs/2407.14679",
)
def minitron(sequence: torch.Tensor) -> torch.Tensor:
    """Return the L2 norm over windows of the mean |aⱼ| of each window, `[neurons]`."""
    return sequence
