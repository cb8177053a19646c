import torch

from pruning.criteria.base import Criterion

PRIOR = 0.5
"""How much any text counts beside the one that was read, as a share of it (`benchmarks/README.md`)."""


def _relative(energy: torch.Tensor) -> torch.Tensor:
    """Over the median of what is not zero; a mean would be ruled by a few massive activations."""
    positive = energy[energy > 0]
    return energy / positive.median() if len(positive) else energy


def _score(mlp, moments, generator):
    anything = torch.stack([matrix.float().norm(dim=1) for matrix in mlp.input_weights]).prod(dim=0).square()
    return (_relative(moments.square) + PRIOR * _relative(anything)).sqrt()


CRITERION = Criterion(
    name="activation_prior",
    title="How strongly it fires, on any text",
    formula="√(E[aⱼ²] + ½·eⱼ), eⱼ = ‖W_gate,j‖² · ‖W_up,j‖², each over the layer's median",
    source="After 2SSP, stage 1 (Sandri et al., 2025), shrunk toward the score that a residual stream "
    "pointing anywhere alike would give",
    url="https://arxiv.org/abs/2501.17771",
    needs_calibration=True,
    score=_score,
)
