"""What each axis of a small model's tensors counts: from how they grow, and from names where sizes cannot tell."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from pruning.architectures.differences import KEYS, Axis, Probe
from pruning.architectures.families import CHANNEL, EXPERT, GATE, KEY_VALUE, NEURON, QUERY, SHARED, UP, Label
from pruning.architectures.interleaving import rows_alternate

_GATE_NAME = re.compile(r"gate|(^|\.)(w1|wi_0|linear_v)$")

_KEY_OR_VALUE = re.compile(r"(^|[._])(k|v|key|value|k_lin|v_lin|kv)([._]|$)|[kv]_proj|wk$|wv$")

_ATTENTION_INPUT = re.compile(
    r"(^|[._])(q|k|v|qkv|query|key|value)([._]|$)|[qkv]_proj|c_attn|query_key_value|Wqkv"
)

_FUSED = re.compile(r"qkv|query_key_value|c_attn")

ATTENTION = re.compile(r"attn|attention|mixer|mamba|conv|ssm|recurrent|temporal|linear_attn|short_conv")


@dataclass
class AxisLabels:
    """The labels of a small model's tensors, as its differences show them.

    Attributes:
        probe: The small model.
        place: The module that holds its layers.
        found: For each kind of unit, the key that counts it and the entries of a unit on every axis; None if
            nothing grows with a key.
        unprunable: For kinds that cannot be cut, the reason, filled as labels are read.
    """

    probe: Probe
    place: str
    found: Mapping[str, tuple[str, dict[Axis, int]] | None]
    unprunable: dict[str, str] = field(default_factory=dict)

    def _widths(self, axis: Axis) -> dict[str, int]:
        """Return the kinds of unit that an axis counts, each with the entries of one unit."""
        return {kind: found[1][axis] for kind, found in self.found.items() if found and axis in found[1]}

    def count(self, kind: str) -> int:
        found = self.found[kind]
        return self.probe.count(found[0]) if found else 0

    def labels(self, name: str, shape: tuple[int, ...]) -> tuple[Label, ...]:
        labels = tuple(self._label(name, axis, length) for axis, length in enumerate(shape))
        if self.has_head_size or not self.in_layer(name) or CHANNEL not in labels:
            return labels
        return self._attention_labels(name, labels)

    def _label(self, name: str, axis: int, length: int) -> Label:
        widths = self._widths((name, axis))
        kinds = frozenset(widths)
        whole = sum(self.count(kind) * width for kind, width in widths.items())
        if kinds == {QUERY, KEY_VALUE} and whole == length and widths[KEY_VALUE] == 2 * widths[QUERY]:
            return (QUERY, KEY_VALUE, KEY_VALUE)
        if len(kinds) == 1 and whole == length:
            (kind,) = kinds
            reader = _READERS.get(kind)
            return reader(self, name, widths[kind]) if reader else kind
        if not kinds and self.found[CHANNEL] is None and length == self._hidden:
            return CHANNEL
        for kind in kinds:
            self.unprunable.setdefault(
                kind,
                f"{short_name(name)} has an axis of {length} entries in a small model that also counts something else",
            )
        return None

    @cached_property
    def _packed(self) -> frozenset[str]:
        """The tensors that hold a matrix of neurons for each expert."""
        neurons, experts = self.found[NEURON], self.found[EXPERT]
        if neurons is None or experts is None:
            return frozenset()
        return frozenset(name for name, _ in neurons[1] if (name, 0) in experts[1])

    def _neuron(self, name: str, width: int) -> Label:
        if self._packed and name not in self._packed:
            return SHARED
        if width == 2:
            return NEURON if name in self._packed and self._rows_alternate else (GATE, UP)
        if width > 2:
            self.unprunable.setdefault(NEURON, f"{short_name(name)} has {width} entries for each neuron")
            return None
        return self._gate_or_up.get(name.rpartition(".")[0], NEURON)

    @cached_property
    def _rows_alternate(self) -> bool:
        """Whether the two rows of a neuron stand beside each other in the experts' input matrices."""
        found = self.found[NEURON]
        axes = found[1] if found else {}
        matrices = {axis: width for axis, width in axes.items() if axis[0] in self._packed and axis[1] > 0}
        fused = next(
            axis for axis, width in matrices.items() if width == 2 and len(self.probe.shapes[axis[0]]) == 3
        )
        module = fused[0].rpartition(".")[0]
        output = next(
            (axis for axis, width in matrices.items() if width == 1 and axis[0].rpartition(".")[0] == module),
            None,
        )
        return output is not None and rows_alternate(self.probe.config, fused, output)

    def _channel(self, name: str, width: int) -> Label:
        if width == 1:
            return CHANNEL
        reason = (
            f"{short_name(name)} is {width} times as wide as the residual stream, and would shrink with it"
        )
        self.unprunable.setdefault(CHANNEL, reason)
        return None

    def _query(self, name: str, _width: int) -> Label:
        """Tell keys and values from queries where one number counts all heads."""
        module = short_name(name).rpartition(".")[0]
        if self.found[KEY_VALUE] is not None:
            return QUERY
        if _KEY_OR_VALUE.search(module) and "kv_b" not in module:
            return KEY_VALUE
        return (QUERY, KEY_VALUE, KEY_VALUE) if _FUSED.search(module) else QUERY

    def _attention_labels(self, name: str, labels: tuple[Label, ...]) -> tuple[Label, ...]:
        """Label the projections of attention that are as wide as the residual stream on both sides."""
        place = short_name(name).rpartition(".")[0]
        reads = _ATTENTION_INPUT.search(place)
        if not (reads or ATTENTION.search(place)) or not self.is_projection(name):
            return labels
        outputs = len(labels) - 1 if self.is_transposed(name) else 0
        new = list(labels)
        if reads:
            new[outputs] = KEY_VALUE if _KEY_OR_VALUE.search(place) else QUERY
        elif len(labels) == 2:
            new[1 - outputs] = QUERY
        return tuple(new)

    @cached_property
    def _gate_or_up(self) -> dict[str, Label]:
        """Tell the gate from the other matrix where two of a module compute neurons."""
        by_parent: dict[str, list[str]] = defaultdict(list)
        found = self.found[NEURON]
        for name, axis in found[1] if found else {}:
            outputs = 1 if self.is_transposed(name) else 0
            if name.endswith(".weight") and len(self.probe.shapes[name]) == 2 and axis == outputs:
                owner = name.removesuffix(".weight")
                by_parent[owner.rpartition(".")[0]].append(owner)
        named: dict[str, Label] = {}
        for owners in by_parent.values():
            gates = [owner for owner in owners if _GATE_NAME.search(owner.rpartition(".")[2])]
            if len(owners) == 2 and len(gates) == 1:
                named |= {owner: GATE if owner in gates else UP for owner in owners}
        return named

    @cached_property
    def _hidden(self) -> int:
        return next((self.probe.count(key) for key in KEYS[CHANNEL] if key in self.probe.values), 0)

    @cached_property
    def has_head_size(self) -> bool:
        found = self.found[QUERY]
        return found is not None and all(width > 0 for width in found[1].values())

    def split(self, name: str) -> tuple[int | None, str]:
        match = re.match(rf"{re.escape(self.place)}\.(\d+)\.(.+)", name)
        return (int(match[1]), match[2]) if match else (None, name)

    def in_layer(self, name: str) -> bool:
        return self.split(name)[0] is not None

    def module(self, name: str) -> nn.Module:
        return self.probe.model.get_submodule(name.rpartition(".")[0])

    def is_transposed(self, name: str) -> bool:
        """Return whether a weight is `[in, out]`."""
        return type(self.module(name)).__name__ == "Conv1D"

    def is_projection(self, name: str) -> bool:
        return isinstance(self.module(name), nn.Linear) or self.is_transposed(name)

    def is_norm(self, name: str) -> bool:
        return "norm" in type(self.module(name)).__name__.lower()


_READERS = {
    NEURON: AxisLabels._neuron,
    CHANNEL: AxisLabels._channel,
    QUERY: AxisLabels._query,
}


def short_name(name: str) -> str:
    """Return a tensor's name without the numbers of layers."""
    return re.sub(r"^.*?\.\d+\.", "", name)
