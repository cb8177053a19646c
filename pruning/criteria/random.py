import torch

from pruning.criteria.base import Criterion

CRITERION = Criterion(
    name="random",
    title="At random",
    formula="a draw from the recipe's seed",
    source="The floor: a criterion that does no better knows nothing",
    url="",
    score=lambda mlp, moments, generator: torch.rand(mlp.output_weight.shape[1], generator=generator),
)
