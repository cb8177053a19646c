"""Which axis of which tensor belongs to a neuron, a head, a channel: all that is known of model families.

Every axis of every tensor is labelled with the kind of unit that it is made of. Counting, cutting and
repairing read these labels and nothing else, so a new family is one entry in `FAMILIES`.
"""

import copy
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from pruning.errors import ModelError

NEURON = "neuron"
GATE, UP = "neuron:gate", "neuron:up"
QUERY, KEY_VALUE = "query head", "key/value head"
CHANNEL = "channel"
TOKEN = "token"
LAYER = "layer"

COMPONENTS = ("embeddings", "attention", "mlp", "norms", "head")

MAX_LAYERS = 1_000
MAX_WIDTH = 1_000_000

Label = str | tuple[str, ...] | None
"""What one axis counts. A tuple: several kinds one after the other, as in fused projections."""

Tensors = Mapping[str, tuple[Label, ...]]

_HEAD_SIZE_DERIVED = (
    "its config has no head size of its own: it follows from the embedding size and the number of heads, "
    "so a model with fewer heads would not load"
)

_HEAD_SIZE_FOLLOWS = (
    "its config has no head size of its own: it follows from the embedding size and the number of heads, "
    "so the heads would shrink with the channels, and their weights would no longer fit"
)


def _linear(name: str, outputs: Label, inputs: Label) -> Tensors:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _conv1d(name: str, inputs: Label, outputs: Label) -> Tensors:
    """GPT-2 keeps its projections transposed: `[in, out]`."""
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def _norm(*names: str, axis: Label = CHANNEL) -> Tensors:
    return {f"{name}.{part}": (axis,) for name in names for part in ("weight", "bias")}


@dataclass(frozen=True)
class Family:
    """One architecture: its tensors by component, and the config keys that hold its sizes.

    Names of tensors inside a layer are relative to the layer. `writes` names, for neurons and for
    heads, the projection that writes them back into the residual stream; its input is what
    calibration observes. `fixed` says, for the kinds of unit that cannot be cut, why.

    `norm_offset`: what a norm adds to its weight before it multiplies. `embedding_scale`: the buffer, if
    there is one, that holds √(hidden size) and multiplies every embedding; `closing_norms`: the norms
    that a layer's outputs pass on their way into the residual stream.
    """

    model_type: str
    title: str
    layers: str
    embeddings: Tensors
    attention: Tensors
    mlp: Tensors
    norms: Tensors
    final_norm: Tensors
    head: Tensors
    writes: Mapping[str, str]
    sizes: Mapping[str, str]
    fixed: Mapping[str, str] = field(default_factory=dict)
    norm_offset: float = 0.0
    embedding_scale: str = ""
    closing_norms: tuple[str, ...] = ()

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
    fixed={QUERY: _HEAD_SIZE_DERIVED, CHANNEL: _HEAD_SIZE_FOLLOWS},
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
    fixed={QUERY: _HEAD_SIZE_DERIVED, CHANNEL: _HEAD_SIZE_FOLLOWS},
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
    fixed={QUERY: _HEAD_SIZE_DERIVED, CHANNEL: _HEAD_SIZE_FOLLOWS},
)

_GEMMA = replace(
    _LLAMA,
    norm_offset=1.0,
    embedding_scale="model.embed_tokens.embed_scale",
    closing_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
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


@dataclass(frozen=True)
class TensorSpec:
    """One parameter of a model: its name, its shape, and what each axis counts."""

    name: str
    shape: tuple[int, ...]
    labels: tuple[Label, ...]
    component: str
    layer: int | None

    @property
    def module(self) -> str:
        """The name of the module that it belongs to."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Anatomy:
    """A model laid open, from its config alone: every tensor, and how many units of each kind."""

    family: Family
    config: PreTrainedConfig
    tensors: tuple[TensorSpec, ...]
    units: Mapping[str, int]

    @property
    def layers(self) -> int:
        return self.units[LAYER]

    def segments(self, label: Label, length: int) -> Iterator[tuple[str | None, int, int]]:
        """The runs of one axis of `length` entries: (kind, number of units, entries per unit)."""
        parts = parts_of(label)
        if len(parts) == 1:
            count = self.units.get(_kind(parts[0]), length)
            yield parts[0], count, length // count
            return
        if _kind(parts[0]) == NEURON:
            widths = [length // len(parts)] * len(parts)
        else:
            per_head = length // sum(self.units[part] for part in parts)
            widths = [self.units[part] * per_head for part in parts]
        for part, width in zip(parts, widths, strict=True):
            yield part, self.units[_kind(part)], width // self.units[_kind(part)]

    def tensor(self, name: str) -> TensorSpec:
        return self._by_name[name]

    def of_layer(self, layer: int) -> Sequence[TensorSpec]:
        """The parameters of a layer."""
        return self._by_layer.get(layer, ())

    @cached_property
    def _by_name(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.tensors}

    @cached_property
    def _by_layer(self) -> dict[int | None, list[TensorSpec]]:
        found = defaultdict(list)
        for spec in self.tensors:
            found[spec.layer].append(spec)
        return dict(found)

    def write_module(self, layer: int, kind: str = NEURON) -> str:
        """The full name of the projection through which a layer's neurons or heads write."""
        return f"{self.family.layers}.{layer}.{self.family.writes[kind]}"

    def input_axis(self, spec: TensorSpec) -> int:
        """The axis of a projection inside a layer that its inputs run along: what writes into the
        residual stream has the channels on the other one."""
        writes = (self.write_module(spec.layer, kind) for kind in self.family.writes)
        axis = spec.labels.index(CHANNEL)
        return 1 - axis if spec.module in writes else axis

    @property
    def norms(self) -> tuple[TensorSpec, ...]:
        """The weights of the norms over the channels."""
        return tuple(
            spec for spec in self.tensors if spec.component == "norms" and spec.name.endswith(".weight")
        )

    def reads(self, layer: int, component: str) -> tuple[TensorSpec, ...]:
        """The matrices of a layer's attention or MLP that read the residual stream; all see the same."""
        return tuple(
            spec
            for spec in self.of_layer(layer)
            if spec.component == component
            and len(spec.shape) == 2
            and spec.labels[self.input_axis(spec)] == CHANNEL
        )

    def closes(self, norm: TensorSpec) -> bool:
        """Whether a norm stands between a layer's output and the residual stream."""
        return norm.module.rpartition(".")[2] in self.family.closing_norms

    def layer_module(self, layer: int) -> str:
        return f"{self.family.layers}.{layer}"

    def moved(self, spec: TensorSpec, layer: int | None) -> str:
        """The name of a tensor once its layer has another number."""
        if spec.layer is None:
            return spec.name
        return spec.name.replace(self.layer_module(spec.layer), self.layer_module(layer), 1)


def parts_of(label: Label) -> tuple[str | None, ...]:
    """The kinds that an axis counts, one after the other."""
    return label if isinstance(label, tuple) else (label,)


def _kind(label: str | None) -> str | None:
    return label.split(":")[0] if label else None


def kind_of(label: str | None) -> str | None:
    """`neuron:gate` and `neuron:up` are both kinds of `neuron`."""
    return _kind(label)


def anatomy_of(config: PreTrainedConfig) -> Anatomy:
    """Lay a model open without allocating weights. Raises `ModelError` for unknown families."""
    return _anatomy(json.dumps(config.to_dict(), sort_keys=True, default=str))


@lru_cache(maxsize=64)
def _anatomy(config_json: str) -> Anatomy:
    config = config_from_dict(json.loads(config_json))
    family = family_of(config.model_type)
    model = build_on_meta(config)
    tensors = tuple(
        TensorSpec(name, tuple(parameter.shape), labels, component, layer)
        for name, parameter in model.named_parameters()
        for component, layer, labels in [family.component(name)]
    )
    units = {
        kind: int(size)
        for kind, key in family.sizes.items()
        if (size := getattr(config, key, None)) is not None
    }
    write = f"{family.layers}.0.{family.writes[NEURON]}.weight"
    spec = next((spec for spec in tensors if spec.name == write), None)
    if spec is None:
        raise ModelError(f"This {family.title} config has no layers: there is nothing to cut.")
    units[NEURON] = spec.shape[spec.labels.index(NEURON)]
    units[LAYER] = 1 + max(spec.layer for spec in tensors if spec.layer is not None)
    return Anatomy(family, config, tensors, units)


def config_from_dict(values: dict) -> PreTrainedConfig:
    """Build a config of a known family. Raises `ModelError` where its values make no model."""
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
    """Leaves out drawing first weights, which takes half of the time and fills nothing on meta."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_on_meta(
    config: PreTrainedConfig, dtype: torch.dtype | None = None, attention: str | None = None
) -> PreTrainedModel:
    """The model that a config describes, with no weights behind it. The config is not changed.

    `attention`: the implementation to compute it with, where it is not the config's.
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
    """A copy of the config with new numbers of units, under the keys that the family uses.

    `layers`: which layers stay, where some do not; lists with an entry for each layer (such as
    `layer_types`) keep theirs. Before it is known which, the first ones stand in.
    """
    family = family_of(config.model_type)
    values = config.to_dict()
    if QUERY in units or CHANNEL in units:
        values["head_dim"] = head_size(config)
    if LAYER in units:
        before = values[family.sizes[LAYER]]
        staying = range(units[LAYER]) if layers is None else layers
        for key, value in values.items():
            if isinstance(value, list) and len(value) == before and "layer" in key:
                values[key] = [value[layer] for layer in staying]
    for kind, count in units.items():
        values[family.sizes[kind]] = count
    resized = config_from_dict(values)
    resized._attn_implementation = config._attn_implementation
    return resized


def head_size(config: PreTrainedConfig) -> int:
    """Entries of one head's query."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
