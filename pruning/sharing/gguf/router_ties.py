"""Round a mixture's hidden states at random, so that undecided routers choose other experts.

A router gives each token to the experts with the highest scores. If two scores are almost equal, the last bits decide,
and another program may choose the other expert: both are right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pruning.architectures.anatomy import Anatomy
from pruning.calibration.hooks import hooks, output_states
from pruning.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def rounded_states(model: PreTrainedModel, anatomy: Anatomy, epsilon: float, seed: int) -> Iterator[None]:
    """Multiply every hidden state that enters or leaves a layer by a number close to one, while the block runs.

    Args:
        model: The model.
        anatomy: Its anatomy.
        epsilon: The standard deviation of these numbers, which are one on average.
        seed: Determines them.
    """
    draw = torch.Generator().manual_seed(seed)

    def rounded(_args: tuple, _kwargs: Mapping[str, object], output: object) -> object:
        states = output_states(output)
        noise = torch.randn(states.shape, generator=draw).to(states)
        states = states * (1 + epsilon * noise)
        return type(output)((states, *output[1:])) if isinstance(output, tuple | list) else states

    embeddings = model.get_input_embeddings()
    names = [name for name, module in model.named_modules() if module is embeddings]
    names += [anatomy.layer_module(layer) for layer in range(anatomy.layers)]
    with hooks(model, after=dict.fromkeys(names, rounded)):
        yield
