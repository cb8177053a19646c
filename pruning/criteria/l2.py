"""The L2 norm of a neuron's weights."""

from __future__ import annotations

from pruning.criteria.base import MLP, criterion
from pruning.lazy import torch


@criterion(
    title="Size of its weights, L2",
    formula="Σ over the input matrices of ‖Wⱼ‖₂",
    source="Pruning filters for efficient convnets (Li et al., 2016), §4.5, with the L2 norm",
    url="https://arxiv.org/abs/1608.08710",
    warning="On a gated MLP it loses far more than the criteria that read text.",
)
def l2(mlp: MLP) -> torch.Tensor:
    """Return Σ ‖Wⱼ‖₂ over the input matrices, each `[neurons, channels]`: `[neurons]`."""
    return torch.stack([matrix.float().norm(dim=1) for matrix in mlp.input_weights]).sum(dim=0)
