"""Find by running a small model whether the gate and up rows of its experts alternate, as sizes cannot tell."""

import copy

import torch
from transformers import PreTrainedConfig

from pruning.architectures.differences import Axis
from pruning.architectures.tiny_model import random_model

TOKENS_READ = 16


def rows_alternate(config: PreTrainedConfig, fused: Axis, output: Axis) -> bool:
    """Return whether the first neuron of each expert is computed by the first two rows of its fused input matrix.

    All other neurons are silenced. What still depends on the input matrix is then what computes the first.

    Args:
        config: The config of a small model.
        fused: The input matrices of the experts, and their axis with two entries for each neuron.
        output: The output matrices of the experts, and their axis of neurons.
    """
    model = copy.deepcopy(random_model(config))
    model.config._experts_implementation = "eager"  # Fused kernels have no gradient on every machine.
    weights, axis = model.get_parameter(output[0]), output[1]
    weights.data = weights.data * (torch.arange(weights.shape[axis]) == 0).float().view(
        [-1 if place == axis else 1 for place in range(weights.ndim)]
    )
    matrix = model.get_parameter(fused[0]).requires_grad_()
    with torch.enable_grad():
        logits = model(input_ids=torch.arange(TOKENS_READ)[None], use_cache=False).logits
        (gradient,) = torch.autograd.grad(logits.square().sum(), matrix)
    others = [place for place in range(matrix.ndim) if place != fused[1]]
    rows = gradient.abs().amax(dim=others).nonzero().flatten().tolist()
    return rows == [0, 1]
