"""A config as plain values, with what is known of its model: enough for arithmetic, and read without transformers."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pruning.architectures.config import config_from_dict
from pruning.architectures.families import CHANNEL, FAMILIES, KEY_VALUE, QUERY, Family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TensorShapes = tuple[tuple[str, tuple[int, ...]], ...]
"""The name and the shape of each tensor of a model, in its order."""


@dataclass(frozen=True, eq=False)
class PlainConfig:
    """A config that was checked before, and reads like the one of transformers that it was made of.

    Attributes:
        values: What `to_dict` of that config returns.
        attributes: What it has under further names, such as `hidden_size` in GPT-2.
        derived: The entry of the table of families if it was derived, as plain values; None if it is a line of the
            table.
        tensors: The parameters of its model.
        buffers: The buffers that are saved with them.
        free_sizes: The kinds of unit whose number transformers takes as it is, and changes nothing else of the config.
        reasons: Why units cannot be removed, as far as that was asked.
        keep: Writes the reasons where the config came from.
    """

    values: Mapping[str, Any]
    attributes: Mapping[str, Any]
    derived: Mapping[str, Any] | None
    tensors: TensorShapes
    buffers: TensorShapes
    free_sizes: frozenset[str]
    reasons: dict[str, str | None] = field(default_factory=dict)
    keep: Callable[["PlainConfig"], None] = lambda _config: None

    def __getattr__(self, name: str) -> Any:
        """Return a value of the config."""
        if not name.startswith("_"):
            for known in (self.attributes, self.values):
                if name in known:
                    return known[name]
        raise AttributeError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return a copy of the values."""
        return copy.deepcopy(dict(self.values))

    def full(self) -> "PreTrainedConfig":
        """Return the config of transformers."""
        return config_from_dict(self.to_dict())

    @cached_property
    def family(self) -> Family:
        """The entry of the table of families."""
        return (
            FAMILIES[self.values["model_type"]] if self.derived is None else family_from_values(self.derived)
        )

    def may_have(self, units: Mapping[str, int], values: Mapping[str, Any]) -> bool:
        """Return whether transformers would take a config with other numbers of units as it is.

        Args:
            units: The new numbers.
            values: The values of the config that has them.
        """
        if units.keys() & {QUERY, KEY_VALUE, CHANNEL}:
            # Some types of model refuse a hidden size that the heads do not divide.
            sizes = self.family.sizes
            channels, heads = values.get(sizes.get(CHANNEL, "")), values.get(sizes.get(QUERY, ""))
            if not isinstance(channels, int) or not isinstance(heads, int) or channels % heads:
                return False
        return units.keys() <= self.free_sizes

    def resized(self, values: Mapping[str, Any]) -> "PlainConfig":
        """Return the config with other values. It knows nothing of its model."""
        return PlainConfig(values, {}, self.derived, (), (), frozenset())


def full(config: "PreTrainedConfig | PlainConfig") -> "PreTrainedConfig":
    """Return the config of transformers of any config."""
    return config.full() if isinstance(config, PlainConfig) else config


def family_to_values(family: Family) -> dict[str, Any]:
    """Return an entry of the table of families as plain values."""
    return {**vars(family), "transposed": sorted(family.transposed)}


def family_from_values(values: Mapping[str, Any]) -> Family:
    """Return the entry of the table of families that `family_to_values` was given, read from JSON."""
    entry = {name: with_tuples(value) for name, value in values.items()}
    return Family(**entry | {"transposed": frozenset(entry["transposed"])})


def with_tuples(value: Any) -> Any:
    """Return plain values with tuples in place of lists, at any depth."""
    if isinstance(value, Mapping):
        return {key: with_tuples(each) for key, each in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value
