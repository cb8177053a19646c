"""The L1 norm of a neuron's weights."""

from __future__ import annotations

from pruning.criteria.base import MLP, criterion
from pruning.lazy import torch


@criterion(
    title="Size of its weights, L1",
    formula="Σ over the input matrices of ‖Wⱼ‖₁",
    source="Pruning filters for efficient convnets (Li et al., 2016), §3.1; the course's first cut",
    url="https://arxiv.org/abs/1608.08710",
    warning="Fair on GPT-2; on a gated MLP it ruins the model.",
)
def l1(mlp: MLP) -> torch.Tensor:
    """Return Σ ‖Wⱼ‖₁ over the input matrices, each `[neurons, channels]`: `[neurons]`."""
    # Sums of absolute values overflow float16: they are taken in float32.
    return torch.stack([matrix.float().abs().sum(dim=1) for matrix in mlp.input_weights]).sum(dim=0)
