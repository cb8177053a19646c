"""The root mean square of a neuron's activation, shrunk toward what its weights alone predict."""

from __future__ import annotations

from pruning.calibration.statistics import InputMoments
from pruning.criteria.base import MLP, criterion
from pruning.lazy import torch

PRIOR = 0.5
"""How much the prediction for any text counts, relative to the text that was read (see `benchmarks`)."""


@criterion(
    title="Activation strength, robust to unseen text",
    formula="√(E[aⱼ²] + ½·eⱼ), eⱼ = ‖W_gate,j‖² · ‖W_up,j‖², each over the layer's median",
    source="After 2SSP, stage 1 (Sandri et al., 2025), shrunk toward the score that a residual stream "
    "pointing anywhere alike would give",
    url="https://arxiv.org/abs/2501.17771",
)
def activation_prior(mlp: MLP, moments: InputMoments) -> torch.Tensor:
    """Return √(E[aⱼ²] / median + ½ · eⱼ / median), `[neurons]`.

    eⱼ = Π ‖Wⱼ‖² over the input matrices, each `[neurons, channels]`: the energy E[aⱼ²] of a residual stream
    without a preferred direction, up to a factor.
    """
    norms = torch.stack([matrix.float().norm(dim=1) for matrix in mlp.input_weights])
    predicted = norms.prod(dim=0).square()
    return (_over_median(moments.square) + PRIOR * _over_median(predicted)).sqrt()


def _over_median(energy: torch.Tensor) -> torch.Tensor:
    """Divide by the median of what is not zero; a few massive activations would dominate a mean."""
    positive = energy[energy > 0]
    return energy / positive.median() if len(positive) else energy
