"""What a size in a config changes: which axes of which tensors grow with it, and by how much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pruning.architectures.config import LAYER_KEYS, build_on_meta
from pruning.architectures.families import CHANNEL, EXPERT, KEY_VALUE, LAYER, NEURON, QUERY, TOKEN
from pruning.architectures.layer_numbers import keep_layers
from pruning.architectures.probe import config_of_values
from pruning.architectures.tiny_model import saved_buffers
from pruning.errors import ModelError

Axis = tuple[str, int]
"""The name of a tensor, and one of its axes."""

KEYS: Mapping[str, Sequence[str]] = {
    NEURON: (
        "intermediate_size",
        "ffn_dim",
        "n_inner",
        "decoder_ffn_dim",
        "ffn_hidden_size",
        "d_inner",
        "dff",
        "dim_ff",
        "feed_forward_size",
        "intermediate_size_mlp",
        "dense_intermediate_size",
        "moe_intermediate_size",
        "expert_ffn_hidden_size",
    ),
    QUERY: (
        "num_attention_heads",
        "decoder_attention_heads",
        "num_decoder_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "attention_heads",
    ),
    KEY_VALUE: ("num_key_value_heads", "num_kv_heads"),
    CHANNEL: ("hidden_size", "d_model", "n_embd", "embedding_dim", "emb_dim"),
    TOKEN: ("vocab_size", "decoder_vocab_size"),
    EXPERT: ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"),
    LAYER: LAYER_KEYS,
}
"""For each kind of unit, the keys of configs that may hold their number, the likeliest first."""

EXPERT_KEYS = ("moe_intermediate_size", "expert_ffn_hidden_size")
"""Keys that hold the number of neurons of an expert, if other MLPs have another one."""

COMPANIONS: Mapping[str, Sequence[str]] = {TOKEN: ("vocab_size_per_layer_input",)}
"""Further keys that hold the same number, if a config has them."""

STEPS: Mapping[str, Sequence[int]] = {
    NEURON: (16,),
    QUERY: (4, 2, 1),
    KEY_VALUE: (2, -1),
    CHANNEL: (64,),
    TOKEN: (32,),
    EXPERT: (8,),
}
"""By how much each number is changed; the first change that still makes a model counts."""


@dataclass(frozen=True)
class Probe:
    """A small model without weights, and what its tensors become when a size changes.

    Attributes:
        config: Its config.
        model: The model, on the meta device.
    """

    config: PreTrainedConfig
    model: PreTrainedModel

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Probe":
        """Build the model of a config. Raises `ModelError`."""
        return cls(config, build_on_meta(config))

    @cached_property
    def values(self) -> dict[str, Any]:
        """The values of the config."""
        return self.config.to_dict()

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter and of each buffer that is saved, by name."""
        return shapes_of(self.model)

    def with_values(self, **changed: Any) -> "Probe | None":
        """Return the probe with some values changed, or None if that makes no model."""
        try:
            return Probe.of(config_of_values(type(self.config), self.values | changed))
        except ModelError:
            return None

    def count(self, key: str) -> int:
        """Return the number that a key of the config holds, or the first one of a list for all layers."""
        value = self.values.get(key)
        first = value[0] if isinstance(value, list) and value else value
        return first if isinstance(first, int) and not isinstance(first, bool) else 0

    def companions(self, kind: str) -> tuple[str, ...]:
        """Return further keys that hold the number of units of a kind."""
        return tuple(key for key in COMPANIONS.get(kind, ()) if self.count(key))

    def grown(self, other: "Probe") -> dict[Axis, int] | None:
        """Return by how much each axis is longer in another model; None if its tensors are others."""
        if self.shapes.keys() != other.shapes.keys():
            return None
        return {
            (name, axis): other.shapes[name][axis] - length
            for name, shape in self.shapes.items()
            for axis, length in enumerate(shape)
            if other.shapes[name][axis] != length
        }

    def widths(self, kind: str, keys: Sequence[str] = ()) -> tuple[str, dict[Axis, int]] | None:
        """Find the key that counts the units of a kind, and the entries that each has on every axis.

        Args:
            kind: The kind of unit.
            keys: The keys to try; by default those of `KEYS`.

        Returns:
            The key, and the entries of one unit by axis; None if no key changes anything.
        """
        for key in keys or KEYS[kind]:
            if not self.count(key):
                continue
            for step in STEPS[kind]:
                changed = (key, *self.companions(kind))
                other = self.with_values(**{each: _added(self.values[each], step) for each in changed})
                grown = None if other is None else self.grown(other)
                if grown is None:
                    continue
                if grown and all(change % step == 0 for change in grown.values()):
                    return key, {axis: change // step for axis, change in grown.items()}
                break
        return None

    def layers(self) -> "LayerList | None":
        """Find the key that counts the layers, and the module that holds them; None if no key does."""
        lists = {
            name: len(module)
            for name, module in self.model.named_modules()
            if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.ParameterList))
        }
        for key in LAYER_KEYS:
            count = self.values.get(key)
            if not isinstance(count, int) or count < 2:
                continue
            kept = keep_layers(self.values, list(range(count - 1)), count)
            other = self.with_values(**kept | {key: count - 1})
            if other is None:
                continue
            modules = dict(other.model.named_modules())
            shorter = [
                name for name, length in lists.items() if name in modules and len(modules[name]) == length - 1
            ]
            if shorter:
                weight = {name: _parameters(self.model.get_submodule(name)) for name in shorter}
                largest = max(shorter, key=weight.__getitem__)
                others = [name for name in shorter if name != largest and weight[name]]
                return LayerList(key, largest, tuple(others), self._grown_outside(largest, other))
        return None

    def _grown_outside(self, place: str, shorter: "Probe") -> dict[Axis, int]:
        """Return by how much axes of tensors outside the layers are longer than in a model with one layer less."""
        return {
            (name, axis): length - other
            for name, shape in self.shapes.items()
            if not name.startswith(f"{place}.") and len(shorter.shapes.get(name, ())) == len(shape)
            for axis, (length, other) in enumerate(zip(shape, shorter.shapes[name], strict=True))
            if length != other
        }


@dataclass(frozen=True)
class LayerList:
    """Where the layers of a model are.

    Attributes:
        key: The key of the config that counts them.
        place: The name of the module that holds them.
        others: The names of other modules with parameters that have an entry for each layer.
        widths: For axes of tensors outside the layers, the entries that each layer has there.
    """

    key: str
    place: str
    others: tuple[str, ...]
    widths: Mapping[Axis, int]


def _added(value: Any, step: int) -> Any:
    """Return a size, or one size for each layer, changed by a step."""
    return [each + step for each in value] if isinstance(value, list) else value + step


def _parameters(module: nn.Module) -> int:
    return sum(values.numel() for values in module.parameters())


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter and of each buffer that is saved, by name."""
    parameters = {name: tuple(values.shape) for name, values in model.named_parameters()}
    return parameters | {name: tuple(values.shape) for name, values in saved_buffers(model).items()}
