"""Gate and up rows ranked separately: wrong on purpose, to be shown in the course."""

from __future__ import annotations

from pruning.criteria.base import MLP, criterion
from pruning.lazy import torch


@criterion(
    title="Gate and up apart (the wrong way)",
    formula="‖W_gate,j‖₁ for gate rows, ‖W_up,j‖₁ for up rows, ranked separately",
    source="The course's counter-example (Martra, Large Language Model Notebooks Course, chapter 6)",
    url="https://github.com/peremartra/Large-Language-Model-Notebooks-Course",
    gated_only=True,
    warning="Wrong on purpose: it tears gate and up rows of one neuron apart. Included as a counter-example.",
    published_name="independent",
)
def gate_up_unpaired(mlp: MLP) -> torch.Tensor:
    """Return ‖Wⱼ‖₁ of each input matrix, `[2, neurons]` from gate and up, each `[neurons, channels]`."""
    return torch.stack([matrix.float().abs().sum(dim=1) for matrix in mlp.input_weights])
