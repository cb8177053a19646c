"""The sizes of a model, computed before any weight is touched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

from pruning.architectures.anatomy import Anatomy, TensorSpec, anatomy_of, anatomy_of_model
from pruning.architectures.families import COMPONENTS, LAYER, Label, kind_of
from pruning.architectures.resize import resize

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """The shape that a model has, or would have with other numbers of units.

    It follows from the config alone; previewing a cut is arithmetic on it.

    Attributes:
        anatomy: The model as it is.
        units: The number of each kind of unit that differs from the anatomy's.
        layers: Which layers of the anatomy it has, ascending; None if these are all, or if it is not known yet.
    """

    anatomy: Anatomy
    units: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Shape:
        """Return the shape of a config; raise `ModelError` if its family is unknown."""
        return cls(anatomy_of(config))

    @classmethod
    def of_model(cls, model: PreTrainedModel) -> Shape:
        """Return the shape of a model in memory; raise `ModelError` if its family is unknown."""
        return cls(anatomy_of_model(model))

    def count(self, kind: str) -> int:
        """Return how many units of a kind there are (neurons and heads: in each layer)."""
        return self.units.get(kind, self.anatomy.units.get(kind, 1))

    def resized(self, kind: str, count: int) -> Shape:
        """Return the shape with another number of units of a kind; of layers, it is not known which they are."""
        layers = None if kind == LAYER else self.layers
        return replace(self, units={**self.units, kind: count}, layers=layers)

    def keeping(self, layers: Sequence[int]) -> Shape:
        """Return the shape with some of its layers.

        Args:
            layers: Their numbers in this shape, ascending.
        """
        resized = self.resized(LAYER, len(layers))
        known = self.layers if LAYER in self.units else range(self.anatomy.layers)
        return resized if known is None else replace(resized, layers=tuple(known[layer] for layer in layers))

    @property
    def config(self) -> PreTrainedConfig:
        """The config of this shape."""
        return self.config_of()

    def config_of(self, layers: Sequence[int] | None = None) -> PreTrainedConfig:
        """Return the config of this shape; see `resize`.

        Args:
            layers: Which layers are kept, if the shape does not know it.
        """
        return resize(self.anatomy.config, self.units, self.layers if layers is None else layers)

    @property
    def components(self) -> dict[str, int]:
        """Parameters by component; tied embeddings are counted once, under `embeddings`."""
        return self._components(self.weighted())

    def layer_components(self, layer: int) -> dict[str, int]:
        """Return the parameters of a layer by component.

        Args:
            layer: Its number in the model that the shape is of. Whether this shape has it does not matter.
        """
        return self._components((spec, 1) for spec in self.anatomy.of_layer(layer))

    def _components(self, tensors: Iterable[tuple[TensorSpec, int]]) -> dict[str, int]:
        totals = dict.fromkeys(COMPONENTS, 0)
        for spec, times in tensors:
            totals[spec.component] += times * prod(
                self.length(label, length) for label, length in zip(spec.labels, spec.shape, strict=True)
            )
        return totals

    def weighted(self) -> Iterator[tuple[TensorSpec, int]]:
        """Yield tensors, and how many like them this shape has; a tensor of the first layer stands for all."""
        for spec in self.anatomy.tensors:
            if times := self.times(spec):
                yield spec, times

    def times(self, spec: TensorSpec) -> int:
        """Return how many tensors of this shape a tensor stands for: none, if another one stands for it."""
        if spec.layer is None:
            return 1
        if self.anatomy.layers_are_alike:
            return self.count(LAYER) if spec.layer == 0 else 0
        # Until it is known which layers are kept, the first ones stand in for them.
        return int(spec.layer in (range(self.count(LAYER)) if self.layers is None else self.layers))

    @property
    def parameters(self) -> int:
        """The number of parameters, tied ones counted once."""
        return sum(self.components.values())

    def length(self, label: Label, length: int) -> int:
        """Return how many entries an axis of the model has in this shape.

        Args:
            label: What the axis counts.
            length: How many entries it has in the model.
        """
        if not self.units:
            return length
        return sum(
            (count if part is None else self.units.get(kind_of(part), count)) * width
            for part, count, width in self.anatomy.segments(label, length)
        )
