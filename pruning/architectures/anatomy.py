"""The anatomy of a model, from its config alone: every tensor, and how many units of each kind there are."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

from pruning.architectures.config import build_on_meta, config_from_dict
from pruning.architectures.families import CHANNEL, LAYER, NEURON, QUERY, Family, Label, kind_of
from pruning.architectures.lookup import family_for
from pruning.architectures.plain import PlainConfig, TensorShapes
from pruning.architectures.tiny_model import saved_buffers
from pruning.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MOST_REMEMBERED = 64

_ANATOMIES: dict[str, Anatomy] = {}
"""Anatomies by the values of their configs, the least recently used first."""


@dataclass(frozen=True)
class TensorSpec:
    """One parameter of a model.

    Attributes:
        name: Its full name.
        shape: The length of each axis.
        labels: What each axis counts; see `pruning.architectures.families`.
        component: One of `COMPONENTS`.
        layer: The number of its layer, None outside the layers.
    """

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
    """Every tensor of a model and the number of its units, from the config alone.

    For SmolLM2-135M, `units` counts 30 layers, 576 channels, and in each layer 1,536 neurons and 9 query
    heads; `tensors` begins with `model.embed_tokens.weight`, whose axes count tokens and channels.

    Attributes:
        family: Its entry in the table of families.
        config: The config.
        tensors: All parameters, in the order of `named_parameters()`.
        units: How many units of each kind there are (neurons and heads: in each layer).
        buffers: The buffers that are saved with the parameters.
        reasons: Why units cannot be removed, as far as `pruning.architectures.prove` has been asked.
    """

    family: Family
    config: PreTrainedConfig
    tensors: tuple[TensorSpec, ...]
    units: Mapping[str, int]
    buffers: tuple[TensorSpec, ...] = ()
    reasons: dict[str, str | None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def layers(self) -> int:
        """The number of layers."""
        return self.units[LAYER]

    def segments(self, label: Label, length: int) -> Iterator[tuple[str | None, int, int]]:
        """Split an axis into the runs of entries that belong to one kind of unit.

        Args:
            label: What the axis counts.
            length: Its number of entries.

        Yields:
            Part of the label, number of units, entries for each unit: `("query head", 9, 64)` for the rows
            of SmolLM2-135M's query projection. An axis that is never cut counts as one entry for each unit.
        """
        if not isinstance(label, tuple):
            count = length if label is None else self.units.get(kind_of(label), length)
            yield label, count, length // count
            return
        if kind_of(label[0]) == NEURON:
            widths = [length // len(label)] * len(label)
        else:
            per_head = length // sum(self.units[part] for part in label)
            widths = [self.units[part] * per_head for part in label]
        for part, width in zip(label, widths, strict=True):
            yield part, self.units[kind_of(part)], width // self.units[kind_of(part)]

    def tensor(self, name: str) -> TensorSpec:
        """Return the parameter of a name."""
        return self._by_name[name]

    def of_layer(self, layer: int) -> Sequence[TensorSpec]:
        """Return the parameters of a layer."""
        return self._by_layer.get(layer, ())

    @property
    def names(self) -> Collection[str]:
        """The names of the parameters."""
        return self._by_name.keys()

    @cached_property
    def _by_name(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.tensors}

    @cached_property
    def _by_layer(self) -> dict[int | None, list[TensorSpec]]:
        layers = defaultdict(list)
        for spec in self.tensors:
            layers[spec.layer].append(spec)
        return dict(layers)

    @cached_property
    def layers_are_alike(self) -> bool:
        """Whether all layers have the same tensors."""
        tensors = [
            {(self.renamed(spec, 0), spec.shape, spec.labels) for spec in self.of_layer(layer)}
            for layer in range(self.layers)
        ]
        return all(each == tensors[0] for each in tensors)

    def writes_neurons(self, spec: TensorSpec) -> bool:
        """Return whether neurons write into the residual stream through a tensor: it has one entry for each."""
        if NEURON not in spec.labels or CHANNEL not in spec.labels:
            return False
        return spec.shape[spec.labels.index(NEURON)] == self.units[NEURON]

    def output_projection(self, layer: int, kind: str = NEURON) -> str:
        """Return the full name of the projection through which a layer's neurons or heads write."""
        return f"{self.layer_module(layer)}.{self.family.output_projections[kind]}"

    def output_weight(self, layer: int, kind: str = NEURON) -> TensorSpec | None:
        """Return the weight through which a layer's neurons or heads write; None if the layer has no such matrix."""
        if kind not in self.family.output_projections:
            return None
        return self._by_name.get(f"{self.output_projection(layer, kind)}.weight")

    def input_axis(self, spec: TensorSpec) -> int:
        """Return the axis of a layer's projection that its inputs run along.

        The channels are on the other axis if it writes into the residual stream, and on this one if it reads
        from there.
        """
        if self.family.derived and spec.layer is not None:
            return (
                0
                if spec.name.removeprefix(f"{self.layer_module(spec.layer)}.") in self.family.transposed
                else 1
            )
        channel_axis = spec.labels.index(CHANNEL)
        writes = spec.layer is not None and spec.module in (
            self.output_projection(spec.layer, kind) for kind in self.family.output_projections
        )
        return 1 - channel_axis if writes else channel_axis

    @property
    def head_width(self) -> int:
        """The entries of one query head's output, which attention's output projection reads."""
        spec = next(filter(None, (self.output_weight(layer, QUERY) for layer in range(self.layers))), None)
        if spec is None:
            return getattr(self.config, "head_dim", None) or self.units[CHANNEL] // self.units[QUERY]
        return spec.shape[self.input_axis(spec)] // self.units[QUERY]

    def output_projections(self, kind: str) -> list[str]:
        """Return the full names of the projections through which all layers' neurons or heads write, if any do."""
        weights = (self.output_weight(layer, kind) for layer in range(self.layers))
        return [weight.module for weight in weights if weight is not None]

    @property
    def expert_groups(self) -> int:
        """In how many groups a router sorts the experts: it chooses groups first, and then experts of these."""
        keys = ("n_group", "num_expert_group")
        return max((getattr(self.config, key, None) or 1 for key in keys), default=1)

    @property
    def norms(self) -> tuple[TensorSpec, ...]:
        """The weights of the norms over the channels."""
        return tuple(
            spec for spec in self.tensors if spec.component == "norms" and spec.name.endswith(".weight")
        )

    def input_projections(self, layer: int, component: str) -> tuple[TensorSpec, ...]:
        """Return the matrices of a layer's attention or MLP that read the residual stream.

        They all have the same inputs.
        """
        return tuple(
            spec
            for spec in self.of_layer(layer)
            if spec.component == component
            and len(spec.shape) == 2
            and CHANNEL in spec.labels
            and spec.labels[self.input_axis(spec)] == CHANNEL
        )

    def is_post_norm(self, norm: TensorSpec) -> bool:
        """Return whether a norm stands between a layer's output and the residual stream."""
        return norm.module.rpartition(".")[2] in self.family.post_norms

    def layer_module(self, layer: int) -> str:
        """Return the full name of a layer's module."""
        return f"{self.family.layers}.{layer}"

    def renamed(self, spec: TensorSpec, layer: int | None) -> str:
        """Return the name of a tensor after its layer got another number; None for one outside the layers."""
        if spec.layer is None or layer is None:
            return spec.name
        return spec.name.replace(self.layer_module(spec.layer), self.layer_module(layer), 1)


def anatomy_of(config: PreTrainedConfig) -> Anatomy:
    """Return the anatomy of a model without allocating weights.

    Raises:
        ModelError: The family is unknown, or the config describes no model of it.
    """
    if isinstance(config, PlainConfig):
        return _plain_anatomy(config)
    return _remembered(config, lambda own: anatomy_with(own, family_for(own)))


def anatomy_of_model(model: PreTrainedModel) -> Anatomy:
    """Return the anatomy of a model in memory, which has the tensors of its config.

    Raises:
        ModelError: The family is unknown.
    """
    return _remembered(model.config, lambda own: _anatomy(own, family_for(own), model))


def _plain_anatomy(config: PlainConfig) -> Anatomy:
    anatomy = _with_tensors(cast("PreTrainedConfig", config), config.family, config.tensors, config.buffers)
    return replace(anatomy, reasons=config.reasons)


def _remembered(config: PreTrainedConfig, make: Callable[[PreTrainedConfig], Anatomy]) -> Anatomy:
    """Return the anatomy that is remembered for a config; if there is none, make it of a copy of the config."""
    key = json.dumps(config.to_dict(), sort_keys=True, default=str)
    anatomy = _ANATOMIES.pop(key, None) or make(config_from_dict(json.loads(key)))
    _ANATOMIES[key] = anatomy
    while len(_ANATOMIES) > MOST_REMEMBERED:
        del _ANATOMIES[next(iter(_ANATOMIES))]
    return anatomy


def anatomy_with(config: PreTrainedConfig, family: Family) -> Anatomy:
    """Return the anatomy of a model by an entry of the table that is not necessarily the right one.

    Raises:
        ModelError: The config describes no model of the family.
    """
    return _anatomy(config, family, build_on_meta(config))


def _anatomy(config: PreTrainedConfig, family: Family, model: PreTrainedModel) -> Anatomy:
    tensors = tuple((name, tuple(values.shape)) for name, values in model.named_parameters())
    buffers = tuple((name, tuple(values.shape)) for name, values in saved_buffers(model).items())
    return _with_tensors(config, family, tensors, buffers)


def _with_tensors(
    config: PreTrainedConfig, family: Family, parameters: TensorShapes, saved: TensorShapes
) -> Anatomy:
    """Return the anatomy of a model with tensors of these names and shapes."""
    tensors = tuple(_spec(family, name, shape) for name, shape in parameters)
    buffers = tuple(_buffer_spec(family, name, shape) for name, shape in saved)
    units = {
        kind: size
        for kind, key in family.sizes.items()
        if isinstance(size := getattr(config, key, None), int) and not isinstance(size, bool)
    }
    numbers = [spec.layer for spec in tensors if spec.layer is not None]
    if not numbers:
        raise ModelError(f"This {family.title} config has no layers: there is nothing to cut.")
    units[LAYER] = 1 + max(numbers)
    output = family.output_projections.get(NEURON)
    for spec in tensors:
        if (
            output
            and spec.layer is not None
            and spec.name.endswith(f".{output}.weight")
            and NEURON in spec.labels
        ):
            units[NEURON] = spec.shape[spec.labels.index(NEURON)]
            break
    return Anatomy(family, config, tensors, units, buffers)


def _buffer_spec(family: Family, name: str, shape: tuple[int, ...]) -> TensorSpec:
    """Return a buffer, whose axes count nothing unless the family says what."""
    try:
        return _spec(family, name, shape)
    except ModelError:
        match = re.match(rf"{re.escape(family.layers)}\.(\d+)\.", name)
        return TensorSpec(name, shape, (None,) * len(shape), "attention", int(match[1]) if match else None)


def _spec(family: Family, name: str, shape: tuple[int, ...]) -> TensorSpec:
    component, layer, labels = family.component(name)
    if len(labels) != len(shape):
        # Layers disagree about its axes, so `derive` has refused to cut what they count.
        labels = (None,) * len(shape)
    return TensorSpec(name, shape, labels, component, layer)
