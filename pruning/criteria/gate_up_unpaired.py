import torch

from pruning.criteria.base import Criterion

CRITERION = Criterion(
    name="independent",
    title="Gate and up apart (the wrong way)",
    formula="‖W_gate,j‖₁ for gate rows, ‖W_up,j‖₁ for up rows, ranked apart",
    source="The course's counter-example (Martra, Large Language Model Notebooks Course, chapter 6)",
    url="https://github.com/peremartra/Large-Language-Model-Notebooks-Course",
    score=lambda mlp, moments, generator: torch.stack(
        [matrix.float().abs().sum(dim=1) for matrix in mlp.input_weights]
    ),
    gated_only=True,
    warning="Wrong on purpose: it tears gate and up rows of one neuron apart. Kept to be shown.",
)
