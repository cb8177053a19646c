"""What llama.cpp's architectures cannot express of a config, and would otherwise leave out without a word."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pruning.sharing.gguf.architectures import ARCHITECTURES, Architecture
from pruning.sharing.gguf.converter_child.config_keys import layer_period, leading_period

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


_INSTEAD = "Run it with transformers instead."
"""What a user can do about what no other cut would change."""


def limit_of(config: PreTrainedConfig) -> str:
    """Return why llama.cpp cannot compute what a config says, as a sentence; empty if nothing is known.

    What is not known here is found when the file is opened and compared.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    if (reason := _yarn(config)) or architecture is None:
        return reason
    return next(filter(None, (check(config, architecture) for check in _CHECKS)), "")


def window_of(config: PreTrainedConfig) -> int:
    """Return how many tokens some layers read at most, by whichever name the config has for it; 0 if all of them."""
    return getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None) or 0


def _yarn(config: PreTrainedConfig) -> str:
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    for each in (rope, *(values for values in rope.values() if isinstance(values, Mapping))):
        if each.get("rope_type") == "yarn" and not each.get("truncate", True):
            return (
                "llama.cpp rounds the range of dimensions that YaRN interpolates, and the config of this model says "
                f"not to (rope_parameters, truncate: {each['truncate']}). {_INSTEAD}"
            )
    return ""


def _packing(config: PreTrainedConfig, architecture: Architecture) -> str:
    if not architecture.packed:
        return ""
    return (
        f"llama.cpp's converter reads experts of models of type {config.model_type} in 4 bits alone (MXFP4), as they "
        f"are published, and those of a model that can be cut have 16 or 32. {_INSTEAD}"
    )


def _activation(config: PreTrainedConfig, architecture: Architecture) -> str:
    names = ("hidden_activation", "activation_function", "hidden_act")
    function = next(filter(None, (getattr(config, name, None) for name in names)), None)
    if function in (None, *architecture.activations):
        return ""
    return (
        f"llama.cpp computes {architecture.activations[0]} in models of type {config.model_type}, and the config of "
        f"this one says {function}. {_INSTEAD}"
    )


def _window(config: PreTrainedConfig, architecture: Architecture) -> str:
    window = window_of(config)
    if not 0 < window < getattr(config, "max_position_embeddings", 0) or window == architecture.chunk:
        return ""
    if architecture.chunk:
        return (
            f"llama.cpp attends within chunks of {architecture.chunk:,} tokens in models of type {config.model_type}, "
            f"and the config of this one says {window:,} (attention_chunk_size). {_INSTEAD}"
        )
    kinds: Sequence[str] = getattr(config, "layer_types", None) or ("sliding_attention",)
    if "sliding_attention" not in kinds and architecture.period is None:
        return ""
    if architecture.windows == "none":
        return (
            f"llama.cpp has no sliding window for models of type {config.model_type}, so that texts of more than "
            f"{window:,} tokens (sliding_window) would continue differently. {_INSTEAD}"
        )
    if architecture.windows == "any":
        return ""
    if architecture.windows == "but first":
        follows, layers = bool(leading_period(kinds)), "the first layer and every n-th after it"
    else:
        follows, layers = (
            _is_periodic(kinds, architecture.period),
            f"every {_ordinal(architecture.period)} layer",
        )
    if follows:
        return ""
    return (
        f"llama.cpp gives {layers} the whole text and all others a sliding window; the layers that this model has "
        "left do not follow such a pattern (layer_types). Remove other layers."
    )


def _ordinal(number: int | None) -> str:
    return {None: "n-th", 2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _is_periodic(kinds: Sequence[str], period: int | None) -> bool:
    """Return whether each n-th layer, and no other, reads the whole text, for some n or for a given one."""
    found = layer_period(kinds)
    if period is None or found is None:
        return found is not None
    return found == period if found else len(kinds) < period


def _recurrence(config: PreTrainedConfig, architecture: Architecture) -> str:
    if not architecture.recurrent or _is_periodic(config.layer_types, None):
        return ""
    return (
        "In llama.cpp, every n-th layer attends to the whole text and all others have linear attention; the layers "
        "that this model has left do not follow such a pattern (layer_types). Remove other layers."
    )


def _score_scale(config: PreTrainedConfig, architecture: Architecture) -> str:
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is None:
        return ""
    is_largest = config.num_hidden_layers == architecture.largest
    expected = config.hidden_size // config.num_attention_heads if is_largest else config.head_dim
    if scalar == expected:
        return ""
    return (
        f"llama.cpp divides attention scores by the root of {expected} in models of type {config.model_type}, and the "
        f"config of this one says {scalar:g} (query_pre_attn_scalar). {_INSTEAD}"
    )


def _bias(config: PreTrainedConfig, architecture: Architecture) -> str:
    if architecture.biased or not getattr(config, "attention_bias", False):
        return ""
    return (
        f"llama.cpp has no bias after attention in models of type {config.model_type}, and this one has it "
        f"(attention_bias). {_INSTEAD}"
    )


def _output(config: PreTrainedConfig, architecture: Architecture) -> str:
    if architecture.untied or config.tie_word_embeddings:
        return ""
    return (
        f"llama.cpp reads one matrix for input and output tokens in models of type {config.model_type}, and this one "
        f"has two. {_INSTEAD}"
    )


def _fixed(config: PreTrainedConfig, architecture: Architecture) -> str:
    for name, value in architecture.fixed.items():
        found = getattr(config, name, value)
        if found == value or (value is False and found is None):
            continue
        return (
            f"llama.cpp computes models of type {config.model_type} as if their config said {name}: {value}, and the "
            f"config of this one says {found}. {_INSTEAD}"
        )
    return ""


def _needed(config: PreTrainedConfig, architecture: Architecture) -> str:
    for name in architecture.needed:
        if getattr(config, name, None) is None:
            return (
                f"llama.cpp always caps scores in models of type {config.model_type}, and the config of this one says "
                f"not to ({name}). {_INSTEAD}"
            )
    return ""


def _groups(config: PreTrainedConfig, architecture: Architecture) -> str:
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    if architecture.grouped or groups in (None, heads):
        return ""
    return (
        f"In llama.cpp, each head has keys and values of its own in models of type {config.model_type}, and {heads} "
        f"heads share {groups} in this one (num_key_value_heads). {_INSTEAD}"
    )


def _own_keys(config: PreTrainedConfig, architecture: Architecture) -> str:
    own = config.num_hidden_layers - getattr(config, "num_kv_shared_layers", 0)
    if architecture.keyed in (None, own):
        return ""
    return (
        f"In llama.cpp, the first {architecture.keyed} layers of models of type {config.model_type} have keys and "
        f"values of their own, and {own} of this one do (num_kv_shared_layers). Keep these layers, or run it with "
        "transformers."
    )


def _rotary_base(config: PreTrainedConfig, architecture: Architecture) -> str:
    if not architecture.one_rotation or "sliding_attention" not in config.layer_types:
        return ""
    full, sliding = (
        config.rope_parameters[f"{kind}_attention"]["rope_theta"] for kind in ("full", "sliding")
    )
    if full == sliding:
        return ""
    return (
        f"llama.cpp rotates queries and keys of all layers of models of type {config.model_type} by one base, and the "
        f"config of this one says {full:g}, and {sliding:g} for layers with a sliding window (rope_parameters, "
        f"rope_theta). {_INSTEAD}"
    )


def _indexer(config: PreTrainedConfig, architecture: Architecture) -> str:
    least, size = architecture.indexer, getattr(config, "index_head_dim", None)
    if not least or not size or (size >= least and size.bit_count() == 1):
        return ""
    return (
        f"llama.cpp opens models of type {config.model_type} if the size of their indexers' heads is a power of two "
        f"and at least {least}, and the config of this one says {size} (index_head_dim). {_INSTEAD}"
    )


def _unrotated(config: PreTrainedConfig, architecture: Architecture) -> str:
    step = architecture.unrotated
    if step is None:
        return ""
    expected = [int((number + 1) % step != 0) for number in range(config.num_hidden_layers)]
    if list(map(int, config.no_rope_layers)) == expected:
        return ""
    return (
        f"llama.cpp leaves out the rotary embedding in layer {step} and each {step}th after it, and this model does "
        f"so in others (no_rope_layers). Remove {step} layers in a row, or other layers."
    )


def _layers(config: PreTrainedConfig, architecture: Architecture) -> str:
    layers = config.num_hidden_layers
    if layers < architecture.fewest:
        return (
            f"llama.cpp opens models of type {config.model_type} with at least {architecture.fewest} layers, and this "
            f"one has {layers}. Remove fewer."
        )
    kinds: Sequence[str] = getattr(config, "layer_types", None) or ()
    missing = [kind for kind in architecture.kinds if kind not in kinds]
    if missing:
        return (
            f"llama.cpp opens models of type {config.model_type} with at least one layer of each kind, and this one "
            f"has none of the kind {missing[0]} (layer_types). Keep one, or run it with transformers."
        )
    return ""


def _experts(config: PreTrainedConfig, architecture: Architecture) -> str:
    """Say which layers have no experts, or have them where llama.cpp does not look for them."""
    layers = range(config.num_hidden_layers)
    if architecture.mixtures:
        step = config.decoder_sparse_step
        without = [layer for layer in layers if layer in config.mlp_only_layers or (layer + 1) % step]
        if without:
            named = ", ".join(map(str, without))
            return (
                f"llama.cpp has experts in every layer of models of type {config.model_type}, and this one has none "
                f"in layers {named} (mlp_only_layers, decoder_sparse_step). Remove these layers, or run it with "
                "transformers."
            )
    mixtures: Sequence[int] | None = getattr(config, "moe_layers", None)
    step = getattr(config, "interleave_moe_layer_step", None)
    if mixtures is not None and step and list(layers[step - 1 :: step]) != sorted(mixtures):
        return (
            f"llama.cpp looks for experts in layers {', '.join(map(str, layers[step - 1 :: step]))} of this model "
            f"(interleave_moe_layer_step: {step}), and they are in {', '.join(map(str, mixtures))} (moe_layers). "
            "Remove other layers, or run it with transformers."
        )
    return ""


_CHECKS: tuple[Callable[[PreTrainedConfig, Architecture], str], ...] = (
    _packing,
    _activation,
    _window,
    _recurrence,
    _score_scale,
    _bias,
    _output,
    _fixed,
    _needed,
    _layers,
    _groups,
    _own_keys,
    _unrotated,
    _rotary_base,
    _indexer,
    _experts,
)
