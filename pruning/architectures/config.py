"""Check a config, resize it, and build the model that it describes without weights."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from pruning.architectures.families import CHANNEL, LAYER, QUERY, family_of
from pruning.errors import ModelError

MAX_LAYERS = 1_000

MAX_WIDTH = 1_000_000


def config_from_dict(values: dict) -> PreTrainedConfig:
    """Build a config of a known family.

    Args:
        values: The content of a `config.json`.

    Raises:
        ModelError: The family is unknown, or a value makes no model of it.
    """
    family = family_of(values.get("model_type"))
    for key in ("num_hidden_layers", "n_layer"):
        _check_size(values, key, MAX_LAYERS)
    for key in {*family.sizes.values(), "head_dim", "max_position_embeddings", "n_positions"}:
        _check_size(values, key, MAX_WIDTH if key != "max_position_embeddings" else 10 * MAX_WIDTH)
    values = {key: value for key, value in values.items() if key != "model_type"}
    try:
        return CONFIG_MAPPING[family.model_type](**values)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The config describes no valid {family.title} model: {reason}") from error


def _check_size(values: dict, key: str, largest: int) -> None:
    value = values.get(key)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= largest:
        raise ModelError(
            f"The config says {key} = {str(value)[:40]!r}; a whole number from 1 to {largest:,} is needed."
        )


class _Unfilled(TorchFunctionMode):
    """Skip the random initialization of weights, which takes half of the time and fills nothing on meta."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_on_meta(
    config: PreTrainedConfig, dtype: torch.dtype | None = None, attention: str | None = None
) -> PreTrainedModel:
    """Build the model that a config describes on the meta device, without weights.

    Args:
        config: The config. It is not changed.
        dtype: The precision of the parameters; by default the config's.
        attention: The implementation of attention, if it is not to be the config's.

    Raises:
        ModelError: transformers cannot build it.
    """
    config = copy.deepcopy(config)
    if attention is not None:
        config._attn_implementation = attention
    try:
        with torch.device("meta"), _Unfilled():
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The config describes a model that cannot be built: {reason}") from error


def resize(
    config: PreTrainedConfig, units: Mapping[str, int], layers: Sequence[int] | None = None
) -> PreTrainedConfig:
    """Return a copy of the config with new numbers of units, under the keys that the family uses.

    Args:
        config: The config.
        units: The new number of each kind of unit that changes.
        layers: Which layers are kept, if some are removed: lists with an entry for each layer (such as
            `layer_types`) keep the entries of these. If it is not yet known which, the first ones stand in.

    Raises:
        ModelError: The new numbers make no model of the family.
    """
    family = family_of(config.model_type)
    values = config.to_dict()
    if QUERY in units or CHANNEL in units:
        values["head_dim"] = head_size(config)
    if LAYER in units:
        layer_count = values[family.sizes[LAYER]]
        kept_layers = range(units[LAYER]) if layers is None else layers
        for key, value in values.items():
            if isinstance(value, list) and len(value) == layer_count and "layer" in key:
                values[key] = [value[layer] for layer in kept_layers]
    for kind, count in units.items():
        values[family.sizes[kind]] = count
    resized = config_from_dict(values)
    resized._attn_implementation = config._attn_implementation
    return resized


def head_size(config: PreTrainedConfig) -> int:
    """Return the number of entries of one head's query."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
