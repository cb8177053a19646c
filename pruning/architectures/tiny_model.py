"""Build a small model with random weights, to run it and to cut it."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

from pruning.architectures.config import config_from_dict
from pruning.lazy import nn, torch, transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SEED = 0

SPREAD = 0.2
"""The standard deviation of the weights."""


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model with random weights, norms, biases and saved buffers, none of which is zero or one.

    Args:
        config: Its config. The same one gives the same model, which must not be changed.
    """
    return _random_model(json.dumps(config.to_dict(), sort_keys=True, default=str))


@lru_cache(maxsize=4)
def _random_model(config_json: str) -> PreTrainedModel:
    config = config_from_dict(json.loads(config_json))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(SEED)
    model.requires_grad_(False)
    for values in (*model.parameters(), *saved_buffers(model).values()):
        if values.is_floating_point():
            noise = torch.randn(values.shape, generator=generator) * SPREAD
            values.copy_(values + noise if values.ndim < 2 else noise)
    model.generation_config = transformers.GenerationConfig()
    return model.eval()


def saved_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers of a model that its files hold, by name."""
    return {
        f"{place}.{name}" if place else name: values
        for place, module in model.named_modules()
        for name, values in module._buffers.items()
        if values is not None and name not in module._non_persistent_buffers_set
    }
