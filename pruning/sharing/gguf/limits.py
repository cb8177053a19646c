"""What llama.cpp's architectures cannot express of a config, and would otherwise leave out without a word."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pruning.sharing.gguf.converter_child import layer_period

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


_SILU = ("silu", "swish")
_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu")
_TANH_GELU = ("gelu_pytorch_tanh",)

_INSTEAD = "Run it with transformers instead."
"""What a user can do about what no other cut would change."""


@dataclass(frozen=True)
class Architecture:
    """What one of llama.cpp's architectures computes, whatever the metadata of a file says.

    Attributes:
        activations: The names of its activation function.
        windows: Whether some of its layers read through a sliding window.
        biased: Whether its attention may have a bias after it.
        untied: Whether input and output may have a matrix each.
        largest: The number of layers by which it recognizes a model that scales attention scores by its channels.
        fixed: Other keys of a config, each with the one value that it computes.
        needed: Keys of a config that must have a value.
        period: It gives each n-th layer, and no other, the whole text; None if the file says which.
        recurrent: Whether all layers but each n-th have linear attention.
        unrotated: It turns the queries and keys of all layers but each n-th; None if of all.
        fewest: The least number of layers that it opens.
        chunk: The number of tokens of each chunk that layers attend within; None if they do not.
        kinds: The kinds of layers of which it needs at least one each.
        mixtures: Whether each layer must have experts.
    """

    activations: Sequence[str] = _SILU
    windows: bool = False
    biased: bool = False
    untied: bool = True
    largest: int | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    needed: Sequence[str] = ()
    period: int | None = None
    recurrent: bool = False
    unrotated: int | None = None
    fewest: int = 1
    chunk: int | None = None
    kinds: Sequence[str] = ()
    mixtures: bool = False


_ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt2": Architecture(
        _GELU, biased=True, fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
    ),
    "gpt_neox": Architecture(_GELU, biased=True, fixed={"attention_bias": True}),
    "llama": Architecture(biased=True),
    "mistral": Architecture(biased=True),
    "qwen2": Architecture(biased=True),
    "qwen3": Architecture(),
    "phi3": Architecture(),
    "gemma2": Architecture(
        _TANH_GELU,
        windows=True,
        untied=False,
        largest=46,
        needed=("attn_logit_softcapping", "final_logit_softcapping"),
    ),
    "gemma3_text": Architecture(
        _TANH_GELU,
        windows=True,
        largest=62,
        fixed={"attn_logit_softcapping": None, "use_bidirectional_attention": False},
    ),
    "exaone4": Architecture(),
    "qwen3_next": Architecture(recurrent=True),
    "qwen3_5_text": Architecture(recurrent=True),
    "qwen3_5_moe_text": Architecture(recurrent=True),
    "cohere2": Architecture(windows=True, period=4),
    "smollm3": Architecture(unrotated=4),
    "starcoder2": Architecture(_GELU, biased=True),
    "phi": Architecture(_GELU, fixed={"qk_layernorm": False}),
    "falcon": Architecture(_GELU, fixed={"parallel_attn": True, "alibi": False, "bias": False}),
    "qwen2_moe": Architecture(mixtures=True, fixed={"norm_topk_prob": False}),
    "qwen3_moe": Architecture(mixtures=True, fixed={"norm_topk_prob": True}),
    "lfm2": Architecture(kinds=("conv", "full_attention"), fixed={"conv_bias": False}),
    # Without a layer that attends to everything, llama.cpp ends in a failed assertion.
    "llama4_text": Architecture(unrotated=4, fewest=4, chunk=8192),
}
"""By the model type that transformers has for it. Of other types nothing is known until their file is compared."""


def limit_of(config: PreTrainedConfig) -> str:
    """Return why llama.cpp cannot compute what a config says, as a sentence; empty if nothing is known.

    What is not known here is found when the file is opened and compared.
    """
    architecture = _ARCHITECTURES.get(config.model_type)
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
    if "sliding_attention" not in kinds:
        return ""
    if not architecture.windows:
        return (
            f"llama.cpp has no sliding window for models of type {config.model_type}, so that texts of more than "
            f"{window:,} tokens (sliding_window) would continue differently. {_INSTEAD}"
        )
    if not _is_periodic(kinds, architecture.period):
        number = "n-" if architecture.period is None else architecture.period
        return (
            f"llama.cpp gives every {number}th layer the whole text and all others a sliding window; the layers that "
            "this model has left do not follow such a pattern. Remove other layers."
        )
    return ""


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


def _rotation(config: PreTrainedConfig, architecture: Architecture) -> str:
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
    _activation,
    _window,
    _recurrence,
    _score_scale,
    _bias,
    _output,
    _fixed,
    _needed,
    _layers,
    _rotation,
    _experts,
)
