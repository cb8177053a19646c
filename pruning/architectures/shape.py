"""The size of a model before any weight is touched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from transformers import PreTrainedConfig

from pruning.architectures.anatomy import Anatomy, anatomy_of
from pruning.architectures.config import resize
from pruning.architectures.families import COMPONENTS, LAYER, Label, kind_of


@dataclass(frozen=True)
class Shape:
    """The shape that a model has, or would have with other numbers of units.

    Follows from the config alone; previewing a cut is arithmetic on it. `units` holds only the
    kinds whose number differs from the anatomy's.
    """

    anatomy: Anatomy
    units: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Shape":
        return cls(anatomy_of(config))

    def count(self, kind: str) -> int:
        """How many units of a kind there are (neurons and heads: in each layer)."""
        return self.units.get(kind, self.anatomy.units[kind])

    def resized(self, kind: str, count: int) -> "Shape":
        return replace(self, units={**self.units, kind: count})

    @property
    def config(self) -> PreTrainedConfig:
        return self.config_of()

    def config_of(self, layers: Sequence[int] | None = None) -> PreTrainedConfig:
        """The config of this shape; `layers` says which stay, once that is known."""
        return resize(self.anatomy.config, self.units, layers)

    @property
    def components(self) -> dict[str, int]:
        """Parameters by component; tied embeddings are counted once, under `embeddings`."""
        totals = dict.fromkeys(COMPONENTS, 0)
        for spec in self.anatomy.tensors:
            # All layers of a model have one shape, so the first stands in for those that stay.
            if spec.layer in (None, 0):
                size = prod(
                    self.length(label, length) for label, length in zip(spec.labels, spec.shape, strict=True)
                )
                totals[spec.component] += size * (1 if spec.layer is None else self.count(LAYER))
        return totals

    @property
    def parameters(self) -> int:
        return sum(self.components.values())

    def length(self, label: Label, length: int) -> int:
        """How long an axis of `length` entries becomes."""
        if not self.units:
            return length
        return sum(
            self.units.get(kind_of(part), count) * width
            for part, count, width in self.anatomy.segments(label, length)
        )
