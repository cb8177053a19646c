"""Rank the neurons by a formula of your own."""

import torch

import pruning


@pruning.criterion("energy", source="What a neuron adds to the residual stream, on average")
def energy(down: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
    """Return E[a²] · ‖W_down[:, j]‖², `[neurons]`."""
    return square * down.float().square().sum(dim=0)


pruned = pruning.prune(
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    steps=pruning.Neurons(fraction=0.2, criterion=energy),
    calibration="general",
)
print(pruned.recipe.steps[0].criterion)
