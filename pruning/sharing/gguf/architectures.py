"""What llama.cpp's architectures compute, whatever the metadata of a file says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

_SILU = ("silu", "swish")
_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu")
_TANH_GELU = ("gelu_pytorch_tanh",)


@dataclass(frozen=True)
class Architecture:
    """What one of llama.cpp's architectures computes, whatever the metadata of a file says.

    Attributes:
        activations: The names of its activation function.
        windows: Which of its layers read through a sliding window: none, all but each n-th, all but the first and
            each n-th after it, or any that the file names.
        biased: Whether its attention may have a bias after it.
        untied: Whether input and output may have a matrix each.
        largest: The number of layers by which it recognizes a model that scales attention scores by its channels.
        fixed: Other keys of a config, each with the one value that it computes.
        needed: Keys of a config that must have a value.
        period: It gives each n-th layer, and no other, the whole text; None if the file says which.
        recurrent: Whether all layers but each n-th have linear attention.
        unrotated: It rotates the queries and keys of all layers but each n-th; None if of all.
        fewest: The least number of layers that it opens.
        chunk: The number of tokens of each chunk that layers attend within; None if they do not.
        kinds: The kinds of layers of which it needs at least one each.
        mixtures: Whether each layer must have experts.
        packed: Whether the converter reads experts only if they have 4 bits.
        grouped: Whether heads may share keys and values.
        one_rotation: Whether all layers rotate queries and keys by one base.
        keyed: The number of layers with keys and values of their own; None if the file says it.
        indexer: The smallest size of an indexer's heads, which must be a power of two.
    """

    activations: Sequence[str] = _SILU
    windows: Literal["none", "but nth", "but first", "any"] = "none"
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
    packed: bool = False
    grouped: bool = True
    one_rotation: bool = False
    keyed: int | None = None
    indexer: int | None = None


ARCHITECTURES: Mapping[str, Architecture] = {
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
        windows="but nth",
        untied=False,
        largest=46,
        needed=("attn_logit_softcapping", "final_logit_softcapping"),
    ),
    "gemma3_text": Architecture(
        _TANH_GELU,
        windows="but nth",
        largest=62,
        fixed={"attn_logit_softcapping": None, "use_bidirectional_attention": False},
    ),
    "exaone4": Architecture(),
    "qwen3_next": Architecture(recurrent=True),
    "qwen3_5_text": Architecture(recurrent=True),
    "qwen3_5_moe_text": Architecture(recurrent=True),
    "cohere2": Architecture(windows="but nth", period=4),
    "gpt_oss": Architecture(windows="but nth", period=2, biased=True),
    "deepseek_v4": Architecture(packed=True),
    "smollm3": Architecture(unrotated=4),
    "bitnet": Architecture(untied=False),
    "starcoder2": Architecture(_GELU, biased=True),
    "phi": Architecture(_GELU, fixed={"qk_layernorm": False}),
    "falcon": Architecture(_GELU, fixed={"parallel_attn": True, "alibi": False, "bias": False}),
    "qwen2_moe": Architecture(mixtures=True, fixed={"norm_topk_prob": False}),
    "qwen3_moe": Architecture(mixtures=True, fixed={"norm_topk_prob": True}),
    "dots1": Architecture(grouped=False),
    "olmoe": Architecture(grouped=False, fixed={"norm_topk_prob": False}),
    "mellum": Architecture(windows="any", one_rotation=True, fixed={"norm_topk_prob": True}),
    "deepseek_v32": Architecture(indexer=64),
    "glm_moe_dsa": Architecture(indexer=64),
    "gemma3n_text": Architecture(
        _TANH_GELU,
        windows="but nth",
        period=5,
        keyed=20,
        fixed={
            "hidden_size_per_layer_input": 256,
            "laurel_rank": 64,
            "altup_num_inputs": 4,
            "altup_active_idx": 0,
        },
    ),
    "lfm2": Architecture(kinds=("conv", "full_attention"), fixed={"conv_bias": False}),
    "minicpm3": Architecture(fixed={"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}),
    # Without a layer that attends to everything, llama.cpp ends in a failed assertion.
    "llama4_text": Architecture(unrotated=4, fewest=4, chunk=8192),
    "afmoe": Architecture(windows="but nth", period=4, fixed={"mup_enabled": True}),
    "laguna": Architecture(windows="but first", fixed={"moe_router_logit_softcapping": 0.0}),
}
"""By the model type that transformers has for it. Of other types nothing is known until their file is compared."""
