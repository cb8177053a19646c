"""The range of a neuron's weights."""

from __future__ import annotations

from pruning.criteria.base import MLP, criterion
from pruning.lazy import torch


@criterion(
    title="Peak-to-peak magnitude",
    formula="Σ over gate and up of (max Wⱼ + |min Wⱼ|)",
    source="The course's right way for gated MLPs (Martra, Large Language Model Notebooks Course, "
    "chapter 6), there called maximum absolute weight",
    url="https://github.com/peremartra/Large-Language-Model-Notebooks-Course",
    published_name="ppm",
)
def peak_to_peak(mlp: MLP) -> torch.Tensor:
    """Return Σ (max Wⱼ + |min Wⱼ|) over the input matrices, each `[neurons, channels]`: `[neurons]`."""
    return torch.stack(
        [matrix.amax(dim=1).float() + matrix.amin(dim=1).float().abs() for matrix in mlp.input_weights]
    ).sum(dim=0)
