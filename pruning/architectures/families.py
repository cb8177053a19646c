"""The table of model families: what each axis of each tensor counts, and which config keys hold the sizes.

Counting, cutting and repairing read these labels and nothing else, so a new family is one entry in
`FAMILIES`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pruning.errors import ModelError

NEURON = "neuron"

GATE, UP = "neuron:gate", "neuron:up"

QUERY, KEY_VALUE = "query head", "key/value head"

CHANNEL = "channel"

TOKEN = "token"

LAYER = "layer"

COMPONENTS = ("embeddings", "attention", "mlp", "norms", "head")

Label = str | tuple[str, ...] | None
"""What one axis counts. A tuple: several kinds one after the other, as in fused projections."""

TensorLabels = Mapping[str, tuple[Label, ...]]

_HEAD_SIZE_DERIVED = (
    "its config has no head size of its own: it follows from the embedding size and the number of heads, "
    "so a model with fewer heads would not load"
)

_HEAD_SIZE_FOLLOWS = (
    "its config has no head size of its own: it follows from the embedding size and the number of heads, "
    "so the heads would shrink with the channels, and their weights would no longer fit"
)


def _linear(name: str, outputs: Label, inputs: Label) -> TensorLabels:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _conv1d(name: str, inputs: Label, outputs: Label) -> TensorLabels:
    """GPT-2 keeps its projections transposed: `[in, out]`."""
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def _norm(*names: str, axis: Label = CHANNEL) -> TensorLabels:
    return {f"{name}.{part}": (axis,) for name in names for part in ("weight", "bias")}


@dataclass(frozen=True)
class Family:
    """One architecture: its tensors by component, and the config keys that hold its sizes.

    Names of tensors inside a layer are relative to the layer. `writes` names, for neurons and for
    heads, the projection that writes them back into the residual stream; its input is what
    calibration observes. `unprunable` says, for the kinds of unit that cannot be cut, why.

    `norm_offset`: what a norm adds to its weight before it multiplies. `embedding_scale`: the buffer, if
    there is one, that holds √(hidden size) and multiplies every embedding; `post_norms`: the norms
    that a layer's outputs pass on their way into the residual stream.
    """

    model_type: str
    title: str
    layers: str
    embeddings: TensorLabels
    attention: TensorLabels
    mlp: TensorLabels
    norms: TensorLabels
    final_norm: TensorLabels
    head: TensorLabels
    writes: Mapping[str, str]
    sizes: Mapping[str, str]
    unprunable: Mapping[str, str] = field(default_factory=dict)
    norm_offset: float = 0.0
    embedding_scale: str = ""
    post_norms: tuple[str, ...] = ()

    @property
    def gated(self) -> bool:
        """Whether a neuron has a gate row and an up row that only make sense together."""
        return any(GATE in parts_of(label) for axes in self.mlp.values() for label in axes)

    def component(self, tensor: str) -> tuple[str, int | None, tuple[Label, ...]]:
        """The component, the layer (None outside the layers) and the axis labels of a tensor."""
        match = re.match(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", tensor)
        if match:
            name, layer = match[2], int(match[1])
            places = {"attention": self.attention, "mlp": self.mlp, "norms": self.norms}
        else:
            name, layer = tensor, None
            places = {"embeddings": self.embeddings, "norms": self.final_norm, "head": self.head}
        for component, tensors in places.items():
            if name in tensors:
                return component, layer, tensors[name]
        raise ModelError(
            f"The tensor {tensor} is not one that {self.title} models are known to have. "
            "This variant of the family is not supported."
        )


_SIZES = {
    NEURON: "intermediate_size",
    QUERY: "num_attention_heads",
    KEY_VALUE: "num_key_value_heads",
    CHANNEL: "hidden_size",
    TOKEN: "vocab_size",
    LAYER: "num_hidden_layers",
}

_LLAMA = Family(
    model_type="llama",
    title="Llama",
    layers="model.layers",
    embeddings={"model.embed_tokens.weight": (TOKEN, CHANNEL)},
    attention=_linear("self_attn.q_proj", QUERY, CHANNEL)
    | _linear("self_attn.k_proj", KEY_VALUE, CHANNEL)
    | _linear("self_attn.v_proj", KEY_VALUE, CHANNEL)
    | _linear("self_attn.o_proj", CHANNEL, QUERY)
    | _norm("self_attn.q_norm", "self_attn.k_norm", axis=None),
    mlp=_linear("mlp.gate_proj", GATE, CHANNEL)
    | _linear("mlp.up_proj", UP, CHANNEL)
    | _linear("mlp.down_proj", CHANNEL, NEURON),
    norms=_norm(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    final_norm=_norm("model.norm"),
    head=_linear("lm_head", TOKEN, CHANNEL),
    writes={NEURON: "mlp.down_proj", QUERY: "self_attn.o_proj"},
    sizes=_SIZES,
)

_GPT2 = Family(
    model_type="gpt2",
    title="GPT-2",
    layers="transformer.h",
    embeddings={
        "transformer.wte.weight": (TOKEN, CHANNEL),
        "transformer.wpe.weight": (None, CHANNEL),
    },
    attention=_conv1d("attn.c_attn", CHANNEL, (QUERY, KEY_VALUE, KEY_VALUE))
    | _conv1d("attn.c_proj", QUERY, CHANNEL),
    mlp=_conv1d("mlp.c_fc", CHANNEL, NEURON) | _conv1d("mlp.c_proj", NEURON, CHANNEL),
    norms=_norm("ln_1", "ln_2"),
    final_norm=_norm("transformer.ln_f"),
    head=_linear("lm_head", TOKEN, CHANNEL),
    writes={NEURON: "mlp.c_proj", QUERY: "attn.c_proj"},
    sizes={
        NEURON: "n_inner",
        QUERY: "n_head",
        KEY_VALUE: "n_head",
        CHANNEL: "n_embd",
        TOKEN: "vocab_size",
        LAYER: "n_layer",
    },
    unprunable={QUERY: _HEAD_SIZE_DERIVED, CHANNEL: _HEAD_SIZE_FOLLOWS},
)

_OPT = Family(
    model_type="opt",
    title="OPT",
    layers="model.decoder.layers",
    embeddings={
        "model.decoder.embed_tokens.weight": (TOKEN, None),
        "model.decoder.embed_positions.weight": (None, CHANNEL),
        "model.decoder.project_in.weight": (CHANNEL, None),
        "model.decoder.project_out.weight": (None, CHANNEL),
    },
    attention=_linear("self_attn.q_proj", QUERY, CHANNEL)
    | _linear("self_attn.k_proj", KEY_VALUE, CHANNEL)
    | _linear("self_attn.v_proj", KEY_VALUE, CHANNEL)
    | _linear("self_attn.out_proj", CHANNEL, QUERY),
    mlp=_linear("fc1", NEURON, CHANNEL) | _linear("fc2", CHANNEL, NEURON),
    norms=_norm("self_attn_layer_norm", "final_layer_norm"),
    final_norm=_norm("model.decoder.final_layer_norm"),
    head=_linear("lm_head", TOKEN, None),
    writes={NEURON: "fc2", QUERY: "self_attn.out_proj"},
    sizes=_SIZES | {NEURON: "ffn_dim", KEY_VALUE: "num_attention_heads"},
    unprunable={QUERY: _HEAD_SIZE_DERIVED, CHANNEL: _HEAD_SIZE_FOLLOWS},
)

_GPT_NEOX = Family(
    model_type="gpt_neox",
    title="GPT-NeoX",
    layers="gpt_neox.layers",
    embeddings={"gpt_neox.embed_in.weight": (TOKEN, CHANNEL)},
    # One block of query, key and value rows per head, head after head.
    attention=_linear("attention.query_key_value", QUERY, CHANNEL)
    | _linear("attention.dense", CHANNEL, QUERY),
    mlp=_linear("mlp.dense_h_to_4h", NEURON, CHANNEL) | _linear("mlp.dense_4h_to_h", CHANNEL, NEURON),
    norms=_norm("input_layernorm", "post_attention_layernorm"),
    final_norm=_norm("gpt_neox.final_layer_norm"),
    head=_linear("lm_head", TOKEN, CHANNEL),
    writes={NEURON: "mlp.dense_4h_to_h", QUERY: "attention.dense"},
    sizes=_SIZES | {KEY_VALUE: "num_attention_heads"},
    unprunable={QUERY: _HEAD_SIZE_DERIVED, CHANNEL: _HEAD_SIZE_FOLLOWS},
)

_GEMMA = replace(
    _LLAMA,
    norm_offset=1.0,
    embedding_scale="model.embed_tokens.embed_scale",
    post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
)

_PHI3 = replace(
    _LLAMA,
    model_type="phi3",
    title="Phi-3",
    attention=_linear("self_attn.qkv_proj", (QUERY, KEY_VALUE, KEY_VALUE), CHANNEL)
    | _linear("self_attn.o_proj", CHANNEL, QUERY),
    mlp=_linear("mlp.gate_up_proj", (GATE, UP), CHANNEL) | _linear("mlp.down_proj", CHANNEL, NEURON),
)

FAMILIES = {
    family.model_type: family
    for family in (
        _GPT2,
        _OPT,
        _GPT_NEOX,
        _LLAMA,
        replace(_LLAMA, model_type="mistral", title="Mistral"),
        replace(_LLAMA, model_type="qwen2", title="Qwen2"),
        replace(_LLAMA, model_type="qwen3", title="Qwen3"),
        replace(_GEMMA, model_type="gemma2", title="Gemma 2"),
        replace(_GEMMA, model_type="gemma3_text", title="Gemma 3 (text)"),
        _PHI3,
    )
}


def family_of(model_type: str | None) -> Family:
    """The family of a `model_type`; raises `ModelError` naming the known ones."""
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    raise ModelError(
        f"Models of type {model_type!r} cannot be pruned here. Known families: {', '.join(sorted(FAMILIES))}."
    )


def parts_of(label: Label) -> tuple[str | None, ...]:
    """The kinds that an axis counts, one after the other."""
    return label if isinstance(label, tuple) else (label,)


def _kind(label: str | None) -> str | None:
    return label.split(":")[0] if label else None


def kind_of(label: str | None) -> str | None:
    """`neuron:gate` and `neuron:up` are both kinds of `neuron`."""
    return _kind(label)
