"""The anatomy of a model, from its config alone: every tensor, and how many units of each kind there are."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from transformers import PreTrainedConfig

from pruning.architectures.config import build_on_meta, config_from_dict
from pruning.architectures.families import CHANNEL, LAYER, NEURON, Family, Label, _kind, family_of, parts_of
from pruning.errors import ModelError


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

    def output_projection(self, layer: int, kind: str = NEURON) -> str:
        """The full name of the projection through which a layer's neurons or heads write."""
        return f"{self.family.layers}.{layer}.{self.family.writes[kind]}"

    def input_axis(self, spec: TensorSpec) -> int:
        """The axis of a projection inside a layer that its inputs run along: what writes into the
        residual stream has the channels on the other one."""
        writes = (self.output_projection(spec.layer, kind) for kind in self.family.writes)
        axis = spec.labels.index(CHANNEL)
        return 1 - axis if spec.module in writes else axis

    @property
    def norms(self) -> tuple[TensorSpec, ...]:
        """The weights of the norms over the channels."""
        return tuple(
            spec for spec in self.tensors if spec.component == "norms" and spec.name.endswith(".weight")
        )

    def input_projections(self, layer: int, component: str) -> tuple[TensorSpec, ...]:
        """The matrices of a layer's attention or MLP that read the residual stream; all see the same."""
        return tuple(
            spec
            for spec in self.of_layer(layer)
            if spec.component == component
            and len(spec.shape) == 2
            and spec.labels[self.input_axis(spec)] == CHANNEL
        )

    def is_post_norm(self, norm: TensorSpec) -> bool:
        """Whether a norm stands between a layer's output and the residual stream."""
        return norm.module.rpartition(".")[2] in self.family.post_norms

    def layer_module(self, layer: int) -> str:
        return f"{self.family.layers}.{layer}"

    def renamed(self, spec: TensorSpec, layer: int | None) -> str:
        """The name of a tensor once its layer has another number."""
        if spec.layer is None:
            return spec.name
        return spec.name.replace(self.layer_module(spec.layer), self.layer_module(layer), 1)


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
