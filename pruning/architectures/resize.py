"""Give a config other numbers of units, under the keys that its family uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from pruning.architectures.config import config_from_dict
from pruning.architectures.families import CHANNEL, LAYER, NEURON, QUERY
from pruning.architectures.layer_numbers import EXACT, keep_layers
from pruning.architectures.lookup import family_for
from pruning.architectures.plain import PlainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def resize(
    config: PreTrainedConfig, units: Mapping[str, int], layers: Sequence[int] | None = None
) -> PreTrainedConfig:
    """Return a copy of the config with new numbers of units, under the keys that the family uses.

    Args:
        config: The config.
        units: The new number of each kind of unit that changes.
        layers: Which layers are kept, if some are removed: what depends on their numbers (such as
            `layer_types`) follows. If it is not yet known which, the first ones stand in.

    Raises:
        ModelError: The new numbers make no model of the family.
    """
    family = family_for(config)
    values = config.to_dict()
    if QUERY in units or CHANNEL in units:
        values["head_dim"] = head_size(config)
    if LAYER in units:
        kept_layers = range(units[LAYER]) if layers is None else layers
        values = keep_layers(values, kept_layers, values[family.sizes[LAYER]])
    for kind, count in units.items():
        for key in (family.sizes[kind], *family.companions.get(kind, ())):
            values[key] = [count] * len(values[key]) if isinstance(values.get(key), list) else count
    if NEURON in units:
        values |= {key: value for key, value in EXACT.items() if key in values}
    if isinstance(config, PlainConfig):
        # It stands for the config of transformers, which is built if it would check or change something.
        plain = config.resized(values) if config.may_have(units, values) else config_from_dict(values)
        return cast("PreTrainedConfig", plain)
    resized = config_from_dict(values)
    resized._attn_implementation = config._attn_implementation
    return resized


def head_size(config: PreTrainedConfig) -> int:
    """Return the number of entries of one head's query."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
