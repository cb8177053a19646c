"""Find the family of a config: its line in the table, or else the entry that is derived for its type and options."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

from pruning.architectures.config import known_types
from pruning.architectures.families import FAMILIES, Family, unknown_family
from pruning.architectures.plain import PlainConfig
from pruning.lazy import LazyModule, transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

if TYPE_CHECKING:
    from pruning.architectures import derive
else:
    derive = LazyModule("pruning.architectures.derive")


_NO_OPTIONS = ("architectures", "dtype", "transformers_version", "_name_or_path")
"""Keys of a config that change when a model is built or saved, but do not affect its tensors."""


def family_for(config: PreTrainedConfig) -> Family:
    """Return the family of a config.

    Raises:
        ModelError: transformers has no causal language model of the type, or nothing can be derived for it.
    """
    if isinstance(config, PlainConfig):
        return config.family
    name = getattr(config, "model_type", None)
    if name in FAMILIES:
        return FAMILIES[name]
    if name not in known_types():
        raise unknown_family(name)
    values = {key: value for key, value in config.to_dict().items() if key not in _NO_OPTIONS}
    return _derived(json.dumps(values, sort_keys=True, default=str))


@lru_cache(maxsize=256)
def _derived(config_json: str) -> Family:
    values = json.loads(config_json)
    return derive.derive(transformers.CONFIG_MAPPING[values.pop("model_type")](**values))
