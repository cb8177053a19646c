"""What llama.cpp's architectures cannot express of a config, and would otherwise leave out without a word."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

_SILU = ("silu", "swish")
_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu")
_TANH_GELU = ("gelu_pytorch_tanh",)


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
        unrotated: It turns the queries and keys of all layers but each n-th; None if of all.
    """

    activations: Sequence[str] = _SILU
    windows: bool = False
    biased: bool = False
    untied: bool = True
    largest: int | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    needed: Sequence[str] = ()
    unrotated: int | None = None


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
    "smollm3": Architecture(unrotated=4),
    "starcoder2": Architecture(_GELU, biased=True),
}
"""By the model type that transformers has for it. Of other types nothing is known until their file is compared."""


def limit_of(config: PreTrainedConfig) -> str:
    """Return why llama.cpp cannot compute what a config says, as a sentence; empty if nothing is known.

    What is not known here is found when the file is opened and compared.
    """
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        return ""
    return next(filter(None, (check(config, architecture) for check in _CHECKS)), "")


def _activation(config: PreTrainedConfig, architecture: Architecture) -> str:
    names = ("hidden_activation", "activation_function", "hidden_act")
    function = next(filter(None, (getattr(config, name, None) for name in names)), None)
    if function in (None, *architecture.activations):
        return ""
    return (
        f"llama.cpp computes {architecture.activations[0]} in models of type {config.model_type}, and the config of "
        f"this one says {function}."
    )


def _window(config: PreTrainedConfig, architecture: Architecture) -> str:
    window = getattr(config, "sliding_window", None)
    if window is None or window >= getattr(config, "max_position_embeddings", 0):
        return ""
    kinds: Sequence[str] = getattr(config, "layer_types", None) or ("sliding_attention",)
    if "sliding_attention" not in kinds:
        return ""
    if not architecture.windows:
        return (
            f"llama.cpp has no sliding window for models of type {config.model_type}, so that texts of more than "
            f"{window:,} tokens would continue differently."
        )
    if not _is_periodic(kinds):
        return (
            "llama.cpp gives every n-th layer the whole text and all others a sliding window; the layers that this "
            "model has left do not follow such a pattern. Remove other layers."
        )
    return ""


def _is_periodic(kinds: Sequence[str]) -> bool:
    """Return whether each n-th layer, and no other, reads the whole text."""
    full = [kind == "full_attention" for kind in kinds]
    if not any(full):
        return True
    period = full.index(True) + 1
    return all(whole == (number % period == 0) for number, whole in enumerate(full, 1))


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
        f"config of this one says {scalar:g} (query_pre_attn_scalar)."
    )


def _bias(config: PreTrainedConfig, architecture: Architecture) -> str:
    if architecture.biased or not getattr(config, "attention_bias", False):
        return ""
    return (
        f"llama.cpp has no bias after attention in models of type {config.model_type}, and this one has it "
        "(attention_bias)."
    )


def _output(config: PreTrainedConfig, architecture: Architecture) -> str:
    if architecture.untied or config.tie_word_embeddings:
        return ""
    return (
        f"llama.cpp reads one matrix for input and output tokens in models of type {config.model_type}, and this one "
        "has two."
    )


def _fixed(config: PreTrainedConfig, architecture: Architecture) -> str:
    for name, value in architecture.fixed.items():
        found = getattr(config, name, value)
        if found == value or (value is False and found is None):
            continue
        return (
            f"llama.cpp computes models of type {config.model_type} as if their config said {name}: {value}, and the "
            f"config of this one says {found}."
        )
    return ""


def _needed(config: PreTrainedConfig, architecture: Architecture) -> str:
    for name in architecture.needed:
        if getattr(config, name, None) is None:
            return (
                f"llama.cpp always caps scores in models of type {config.model_type}, and the config of this one says "
                f"not to ({name})."
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


_CHECKS: tuple[Callable[[PreTrainedConfig, Architecture], str], ...] = (
    _activation,
    _window,
    _score_scale,
    _bias,
    _output,
    _fixed,
    _needed,
    _rotation,
)
