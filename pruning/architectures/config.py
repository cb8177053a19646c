"""Check a config, and build the model that it describes without weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from pruning.architectures.families import FAMILIES, unknown_family
from pruning.errors import ModelError
from pruning.lazy import nn, torch, transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MAX_LAYERS = 1_000

MAX_WIDTH = 1_000_000

LAYER_KEYS = (
    "num_hidden_layers",
    "decoder_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
)
"""The keys of configs that hold the number of layers."""

SIZE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "head_dim",
    "n_positions",
)
"""The keys that are checked in every config; a family of the table has further ones."""


def config_from_dict(values: dict) -> PreTrainedConfig:
    """Build a config of a causal language model.

    Args:
        values: The content of a `config.json`.

    Raises:
        ModelError: transformers has no such model, or a value makes no model of it.
    """
    name = values.get("model_type")
    if not isinstance(name, str) or name not in known_types():
        raise unknown_family(name)
    for key in LAYER_KEYS:
        _check_size(values, key, MAX_LAYERS)
    family = FAMILIES.get(name)
    for key in {*SIZE_KEYS, *(family.sizes.values() if family else ()), "max_position_embeddings"}:
        _check_size(values, key, MAX_WIDTH if key != "max_position_embeddings" else 10 * MAX_WIDTH)
    kind = transformers.CONFIG_MAPPING[name]
    title = family.title if family else kind.__name__.removesuffix("Config")
    values = {key: _decoded(value) for key, value in values.items() if key != "model_type"}
    try:
        return kind(**values)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The config describes no valid {title} model: {reason}") from error


def _decoded(value: Any) -> Any:
    """Return a value of a `config.json` with the numbers that JSON lacks: transformers writes them as a tagged text."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return {key: _decoded(each) for key, each in value.items()}
    return [_decoded(each) for each in value] if isinstance(value, list) else value


def known_types() -> list[str]:
    """Return the names of the causal language models that the installed transformers has."""
    return sorted(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _check_size(values: dict, key: str, largest: int) -> None:
    value = values.get(key)
    if value is None:
        return
    if isinstance(value, list):  # One for each layer.
        for each in value:
            _check_size({key: each}, key, largest)
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= largest:
        raise ModelError(
            f"The config sets {key} to {str(value)[:40]!r}; a whole number from 1 to {largest:,} is needed."
        )


@cache
def _unfilled() -> Any:
    """Return the class of a context in which weights are not initialized."""

    class Unfilled(torch.overrides.TorchFunctionMode):
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

    return Unfilled


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
        with torch.device("meta"), _unfilled()():
            model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=False
            )
            model.tie_weights()  # Some classes only tie what was loaded.
            return model
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The config describes a model that cannot be built: {reason}") from error
