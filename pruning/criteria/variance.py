"""The variance of a neuron's weights."""

from __future__ import annotations

from pruning.criteria.base import MLP, criterion
from pruning.lazy import torch


@criterion(
    title="Variance of its weights",
    formula="Σ over gate and up of Var(Wⱼ)",
    source="Compared with peak-to-peak magnitude in the course (Martra, Large Language Model Notebooks "
    "Course, chapter 6)",
    url="https://github.com/peremartra/Large-Language-Model-Notebooks-Course",
)
def variance(mlp: MLP) -> torch.Tensor:
    """Return Σ Var(Wⱼ) over the input matrices, each `[neurons, channels]`: `[neurons]`."""
    return torch.stack([matrix.float().var(dim=1) for matrix in mlp.input_weights]).sum(dim=0)
