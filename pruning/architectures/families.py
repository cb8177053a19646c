"""The table of model families: what each axis of each tensor counts, and which config keys hold the sizes.

Counting, cutting and repairing read these labels and nothing else, so a new family is one entry in
`FAMILIES`.

For example, `mlp.down_proj.weight` of SmolLM2-135M is a matrix `[576, 1536]`. Each row writes to one of the
576 channels of the residual stream, and each column reads one of the layer's 1,536 neurons, so its axes are
labeled `(CHANNEL, NEURON)`. In `mlp.up_proj.weight`, `[1536, 576]`, each row computes a neuron from the
channels: `(UP, CHANNEL)`. Removing 384 neurons therefore removes 384 columns of the first matrix and 384 rows
of the second, and the library needs no other knowledge of a Llama to do so. An axis may have several entries
for each unit: the 576 rows of `self_attn.q_proj.weight` are labeled `QUERY`, 64 for each of the 9 heads.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import overload

from pruning.errors import ModelError

NEURON = "neuron"
"""An entry between the matrices of the MLP."""

GATE, UP = "neuron:gate", "neuron:up"
"""The two rows that compute a neuron of a gated MLP. They are usually cut together, but need not be."""

SHARED = "neuron:shared"
"""A neuron of an MLP that reads every token beside the experts of a mixture, and that is as wide as they are."""

QUERY, KEY_VALUE = "query head", "key/value head"
"""The attention heads; several query heads may share one key/value head."""

CHANNEL = "channel"
"""An entry of the residual stream: the hidden size."""

TOKEN = "token"
"""An entry of the vocabulary."""

LAYER = "layer"

EXPERT = "expert"
"""An MLP of a mixture, to which a router sends some of the tokens."""

UNITS = {
    "neurons": NEURON,
    "heads": QUERY,
    "groups": KEY_VALUE,
    "layers": LAYER,
    "channels": CHANNEL,
    "vocabulary": TOKEN,
    "experts": EXPERT,
}
"""What can be proven, by name, and the kind of unit that is counted."""

COMPARED_VERSION = "4.57.1"
"""The older version of transformers that saved models are compared with."""

COMPONENTS = ("embeddings", "attention", "mlp", "norms", "head")

Label = str | tuple[str, ...] | None
"""What one axis of a tensor counts.

A tuple if several kinds follow one another on the axis, as in fused projections: the rows of Phi-3's
`gate_up_proj` are all gate rows, then all up rows, `(GATE, UP)`. None for an axis that is never cut.
"""

TensorLabels = dict[str, tuple[Label, ...]]
"""For each tensor, by its name, the labels of its axes."""

_TOO_FEW_HEADS = (
    "its config has no head size of its own: it follows from the embedding size and the number of heads, "
    "so a model with fewer heads would not load"
)

_TOO_FEW_CHANNELS = (
    "its config has no head size of its own: it follows from the embedding size and the number of heads, "
    "so the heads would shrink with the channels, and their weights would no longer fit"
)


def _linear(name: str, outputs: Label, inputs: Label) -> TensorLabels:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _conv1d(name: str, inputs: Label, outputs: Label) -> TensorLabels:
    """Label a projection of GPT-2, which keeps them transposed: `[in, out]`."""
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def _norm(*names: str, axis: Label = CHANNEL) -> TensorLabels:
    return {f"{name}.{part}": (axis,) for name in names for part in ("weight", "bias")}


def _numberless(tensor: str) -> str:
    return re.sub(r"\b\d+\b", "#", tensor)


@dataclass(frozen=True)
class Family:
    """One architecture: the labels of its tensors by component, and the config keys that hold its sizes.

    Attributes:
        model_type: Its name in a config.
        title: Its name for people.
        layers: The name of the module that holds the layers.
        embeddings: Labels of the tensors before the layers, by full name. A model need not have all of them.
        attention: Labels of the tensors of a layer's attention, by their names in the layer.
        mlp: Labels of the tensors of a layer's MLP, by their names in the layer.
        norms: Labels of the norms over the channels, by their names in the layer.
        final_norm: Labels of the norm after the layers, by full name.
        head: Labels of the output head, by full name.
        output_projections: For neurons and for query heads, the name in the layer of the projection that
            writes them back into the residual stream; calibration observes its inputs.
        sizes: For each kind of unit, the config key that holds their number.
        unprunable: For the kinds of unit that cannot be cut, the reason.
        norm_offset: What a norm adds to its weight before it multiplies.
        embedding_scale: The buffer, if there is one, that holds √(hidden size) and multiplies every
            embedding.
        post_norms: The names in the layer of the norms through which its outputs pass on their way into the
            residual stream.
        companions: For kinds of unit, further config keys that hold their number.
        transposed: Of a derived entry, the names in the layer of weights that are `[in, out]`.
        derived: Whether the entry was derived (`pruning.architectures.derive`) and is not a line of the table.
        read_by: The oldest version of transformers that was shown to compute what the installed one does.
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
    output_projections: Mapping[str, str]
    sizes: Mapping[str, str]
    unprunable: Mapping[str, str] = field(default_factory=dict)
    norm_offset: float = 0.0
    embedding_scale: str = ""
    post_norms: tuple[str, ...] = ()
    companions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    derived: bool = False
    read_by: str = ""

    @property
    def gated(self) -> bool:
        """Whether a neuron has a gate row and an up row that only make sense together."""
        return any(GATE in parts_of(label) for axes in self.mlp.values() for label in axes)

    @property
    def neurons_in_experts(self) -> bool:
        """Whether neurons are those inside the experts of a mixture, whose weights are packed into one tensor."""
        return any(
            axes[0] == EXPERT and any(kind_of(part) == NEURON for label in axes for part in parts_of(label))
            for axes in self.mlp.values()
            if axes
        )

    def component(self, tensor: str) -> tuple[str, int | None, tuple[Label, ...]]:
        """Look up a tensor by its full name.

        Returns:
            Its component, its layer (None outside the layers) and the labels of its axes.

        Raises:
            ModelError: The family has no such tensor.
        """
        match = re.match(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", tensor)
        if match:
            name, layer = match[2], int(match[1])
            components = {"attention": self.attention, "mlp": self.mlp, "norms": self.norms}
        else:
            name, layer = tensor, None
            components = {"embeddings": self.embeddings, "norms": self.final_norm, "head": self.head}
        for component, tensors in components.items():
            if name in tensors:
                return component, layer, tensors[name]
        if self.derived:
            # The small model has fewer layers, and its other lists may be shorter too.
            alike = {
                (component, axes)
                for component, tensors in components.items()
                for known, axes in tensors.items()
                if _numberless(known) == _numberless(name)
            }
            if len(alike) == 1:
                ((component, axes),) = alike
                return component, layer, axes
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
    read_by=COMPARED_VERSION,
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
    output_projections={NEURON: "mlp.down_proj", QUERY: "self_attn.o_proj"},
    sizes=_SIZES,
)

_GPT2 = Family(
    model_type="gpt2",
    title="GPT-2",
    read_by=COMPARED_VERSION,
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
    output_projections={NEURON: "mlp.c_proj", QUERY: "attn.c_proj"},
    sizes={
        NEURON: "n_inner",
        QUERY: "n_head",
        KEY_VALUE: "n_head",
        CHANNEL: "n_embd",
        TOKEN: "vocab_size",
        LAYER: "n_layer",
    },
    unprunable={QUERY: _TOO_FEW_HEADS, CHANNEL: _TOO_FEW_CHANNELS},
)

_OPT = Family(
    model_type="opt",
    title="OPT",
    read_by=COMPARED_VERSION,
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
    output_projections={NEURON: "fc2", QUERY: "self_attn.out_proj"},
    sizes=_SIZES | {NEURON: "ffn_dim", KEY_VALUE: "num_attention_heads"},
    unprunable={QUERY: _TOO_FEW_HEADS, CHANNEL: _TOO_FEW_CHANNELS},
)

_GPT_NEOX = Family(
    model_type="gpt_neox",
    title="GPT-NeoX",
    read_by=COMPARED_VERSION,
    layers="gpt_neox.layers",
    embeddings={"gpt_neox.embed_in.weight": (TOKEN, CHANNEL)},
    # One block of query, key and value rows per head, head after head.
    attention=_linear("attention.query_key_value", QUERY, CHANNEL)
    | _linear("attention.dense", CHANNEL, QUERY),
    mlp=_linear("mlp.dense_h_to_4h", NEURON, CHANNEL) | _linear("mlp.dense_4h_to_h", CHANNEL, NEURON),
    norms=_norm("input_layernorm", "post_attention_layernorm"),
    final_norm=_norm("gpt_neox.final_layer_norm"),
    head=_linear("lm_head", TOKEN, CHANNEL),
    output_projections={NEURON: "mlp.dense_4h_to_h", QUERY: "attention.dense"},
    sizes=_SIZES | {KEY_VALUE: "num_attention_heads"},
    unprunable={QUERY: _TOO_FEW_HEADS, CHANNEL: _TOO_FEW_CHANNELS},
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
        # By default, older versions leave out its cap on the scores of attention.
        replace(_GEMMA, model_type="gemma2", title="Gemma 2", read_by=""),
        replace(_GEMMA, model_type="gemma3_text", title="Gemma 3 (text)"),
        _PHI3,
    )
}


def family_of(model_type: str | None) -> Family:
    """Return the family of a `model_type`; raise `ModelError`, which names the known ones, if unknown."""
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    raise unknown_family(model_type)


def unknown_family(model_type: object) -> ModelError:
    """Return the error for a type of model that the installed transformers does not know."""
    return ModelError(
        f"Models of type {str(model_type)[:100]!r} cannot be pruned here: the installed transformers has no causal "
        f"language model of that name. The best known families: {', '.join(sorted(FAMILIES))}."
    )


def known_reason(family: Family, unit: str) -> str | None:
    """Return the reason that the entry of the table already holds."""
    kinds = (KEY_VALUE, QUERY) if unit in ("groups", "heads") else (UNITS[unit],)
    known = next((family.unprunable[kind] for kind in kinds if kind in family.unprunable), None)
    if known is None and UNITS[unit] not in family.sizes:
        return f"its config counts no {unit}"
    return known


def parts_of(label: Label) -> tuple[str | None, ...]:
    """Return the kinds that an axis counts, in their order."""
    return label if isinstance(label, tuple) else (label,)


@overload
def kind_of(part: str) -> str: ...
@overload
def kind_of(part: None) -> None: ...
def kind_of(part: str | None) -> str | None:
    """Return the kind of unit of a part of a label: `neuron` for `neuron:gate` and `neuron:up`."""
    return part.split(":")[0] if part else None
