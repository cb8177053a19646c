"""Derive the entry of the table of families that a model type has no line for.

A small model of the type is built without weights, once as it is and once with each size changed. An axis that
becomes longer with a size counts what the size counts, and how many entries each unit has is by how much. Names
are asked for what sizes cannot show: which matrix is the gate, and which norm stands where.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from pruning.architectures.differences import KEYS, Axis, Probe
from pruning.architectures.families import (
    CHANNEL,
    EXPERT,
    GATE,
    KEY_VALUE,
    LAYER,
    NEURON,
    QUERY,
    TOKEN,
    UP,
    Family,
    Label,
    TensorLabels,
    kind_of,
    parts_of,
)
from pruning.architectures.probe import HEAD, MOST_PARAMETERS, probe_config
from pruning.errors import ModelError

UNITS = (NEURON, QUERY, KEY_VALUE, CHANNEL, TOKEN, EXPERT)

_GATE_NAME = re.compile(r"gate|(^|\.)(w1|wi_0|linear_v)$")

_KEY_OR_VALUE = re.compile(r"(^|[._])(k|v|key|value|k_lin|v_lin|kv)([._]|$)|[kv]_proj|wk$|wv$")

_ATTENTION_INPUT = re.compile(
    r"(^|[._])(q|k|v|qkv|query|key|value)([._]|$)|[qkv]_proj|c_attn|query_key_value|Wqkv"
)

_ATTENTION = re.compile(r"attn|attention|mixer|mamba|conv|ssm|recurrent|temporal|linear_attn|short_conv")

_NO_HEAD_SIZE = (
    "its config has no head size of its own: it follows from the hidden size and the number of heads, "
    "so {units} would not keep their size"
)


def derive(config: PreTrainedConfig) -> Family:
    """Derive the family of a config: what each axis of its model's tensors counts.

    Args:
        config: The config of a causal language model. Its options count, and its sizes do not.

    Raises:
        ModelError: transformers builds no small model with these options, or it has no list of layers.
    """
    return _derive(_probe(config))


def _probe(config: PreTrainedConfig) -> Probe:
    """Build the small model, with a head size of its own if it heeds one."""
    own_size = {} if "head_dim" in config.to_dict() else {"head_dim": HEAD}
    failure = None
    for extra in (own_size, {}) if own_size else ({},):
        try:
            probe = Probe.of(probe_config(config, **extra))
        except ModelError as error:
            failure = error
            continue
        if sum(values.numel() for values in probe.model.parameters()) > MOST_PARAMETERS:
            raise ModelError(
                "the smallest model that could be made of this config is too large to try cuts on"
            )
        return probe
    raise failure or AssertionError


def _derive(probe: Probe) -> Family:
    layers = probe.layers()
    if layers is None:
        raise ModelError("no module of this model holds one entry for each layer that its config counts")
    key, place, others = layers
    reading = _Reading(probe, place, {kind: probe.widths(kind) for kind in UNITS})
    family = reading.family(key)
    if others:
        reason = f"a layer is not one module: its parts are in {', '.join((place, *others))}"
        family = replace(family, unprunable={**family.unprunable, LAYER: reason})
    return family


@dataclass
class _Reading:
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

    def family(self, layer_key: str) -> Family:
        """Return the entry of the table."""
        self._check_heads()
        labels = {name: self._labels(name, shape) for name, shape in self.probe.shapes.items()}
        components = self._components(labels)
        outputs = self._outputs(labels)
        sizes = {kind: found[0] for kind, found in self.found.items() if found}
        sizes[LAYER] = layer_key
        self._fill_sizes(sizes)
        norms = self._norm_names()
        gated = any(
            label in ((GATE, UP), (UP, GATE)) or GATE in axes for axes in labels.values() for label in axes
        )
        del gated
        return Family(
            model_type=self.probe.config.model_type,
            title=type(self.probe.config).__name__.removesuffix("Config"),
            layers=self.place,
            output_projections=outputs,
            sizes=sizes,
            unprunable=self.unprunable,
            post_norms=tuple(
                name for name in norms if re.search(r"post.*(feedforward|mlp|ffn|attention_output)", name)
            ),
            companions=self._companions(sizes),
            derived=True,
            **components,
        )

    def _widths(self, axis: Axis) -> dict[str, int]:
        """Return the kinds of unit that an axis counts, each with the entries of one unit."""
        return {kind: found[1][axis] for kind, found in self.found.items() if found and axis in found[1]}

    def _count(self, kind: str) -> int:
        found = self.found[kind]
        return self.probe.count(found[0]) if found else 0

    def _labels(self, name: str, shape: tuple[int, ...]) -> tuple[Label, ...]:
        labels = tuple(self._label(name, axis, length) for axis, length in enumerate(shape))
        if self._has_head_size or not self._in_layer(name) or CHANNEL not in labels:
            return labels
        return self._attention_labels(name, labels)

    def _label(self, name: str, axis: int, length: int) -> Label:
        widths = self._widths((name, axis))
        kinds = frozenset(widths)
        whole = sum(self._count(kind) * width for kind, width in widths.items())
        if kinds == {QUERY, KEY_VALUE} and whole == length and widths[KEY_VALUE] == 2 * widths[QUERY]:
            return (QUERY, KEY_VALUE, KEY_VALUE)
        if len(kinds) == 1 and whole == length:
            (kind,) = kinds
            return _READERS.get(kind, _Reading._plain)(self, name, widths[kind], kind)
        if not kinds and self.found[CHANNEL] is None and length == self._hidden:
            return CHANNEL
        for kind in kinds:
            self.unprunable.setdefault(
                kind,
                f"{_short(name)} has an axis of {length} entries in a small model that also counts something else",
            )
        return None

    def _plain(self, name: str, width: int, kind: str) -> Label:
        return kind

    def _neuron(self, name: str, width: int, kind: str) -> Label:
        if width == 2:
            return (GATE, UP)
        if width > 2:
            self.unprunable.setdefault(kind, f"{_short(name)} has {width} entries for each neuron")
            return None
        return self._gate_or_up.get(
            name.rpartition(".")[0] if name.endswith((".weight", ".bias")) else name, NEURON
        )

    def _channel(self, name: str, width: int, kind: str) -> Label:
        if width == 1:
            return CHANNEL
        self.unprunable.setdefault(
            kind, f"{_short(name)} is {width} times as wide as the residual stream, and would shrink with it"
        )
        return None

    def _query(self, name: str, width: int, kind: str) -> Label:
        short = _short(name)
        if (
            self.found[KEY_VALUE] is None
            and _KEY_OR_VALUE.search(short.rsplit(".", 1)[0])
            and "kv_b" not in short
        ):
            return KEY_VALUE
        if self.found[KEY_VALUE] is None and re.search(r"qkv|query_key_value|c_attn", short):
            return (QUERY, KEY_VALUE, KEY_VALUE)
        return QUERY

    def _attention_labels(self, name: str, labels: tuple[Label, ...]) -> tuple[Label, ...]:
        """Label the projections of attention that are as wide as the residual stream on both sides."""
        short = _short(name)
        if not _ATTENTION.search(short) and not _ATTENTION_INPUT.search(short):
            return labels
        module = self._module(name)
        if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
            return labels
        outputs = 0 if isinstance(module, nn.Linear) else len(labels) - 1
        inner: Label = KEY_VALUE if _KEY_OR_VALUE.search(short.rsplit(".", 1)[0]) else QUERY
        reads = _ATTENTION_INPUT.search(short.rsplit(".", 1)[0])
        new = list(labels)
        if reads:
            new[outputs] = inner
        elif len(labels) == 2:
            new[1 - outputs] = QUERY
        return tuple(new)

    @cached_property
    def _gate_or_up(self) -> dict[str, Label]:
        """Tell the gate from the other matrix where two of a module compute neurons."""
        by_parent: dict[str, list[str]] = defaultdict(list)
        found = self.found[NEURON]
        for (name, axis), width in (found[1] if found else {}).items():
            shape = self.probe.shapes[name]
            owner = name.removesuffix(".weight")
            module = self._module(name)
            outputs = len(shape) - 1 if type(module).__name__ == "Conv1D" else len(shape) - 2
            if (
                len(shape) >= 2
                and axis == outputs
                and width == 1
                and CHANNEL
                in self._widths((name, len(shape) - 1 - axis if len(shape) == 2 else -1)) | {CHANNEL: 0}
            ):
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
    def _has_head_size(self) -> bool:
        found = self.found[QUERY]
        return bool(found) and all(width > 0 for width in found[1].values())

    def _check_heads(self) -> None:
        found = dict(self.found)
        for kind in (QUERY, KEY_VALUE):
            each = found[kind]
            if each and any(width <= 0 for width in each[1].values()):
                found[kind] = None
        self.found = found
        if not self._has_head_size:
            has_heads = any(key in self.probe.values for key in KEYS[QUERY])
            reason = (
                _NO_HEAD_SIZE.format(units="the heads that remain")
                if has_heads
                else "it has no attention heads that its config counts"
            )
            self.unprunable[QUERY] = reason
            if has_heads:
                self.unprunable[CHANNEL] = _NO_HEAD_SIZE.format(units="heads")
            self.found = {**self.found, KEY_VALUE: None, QUERY: None}
        for kind, what in (
            (CHANNEL, "hidden size"),
            (TOKEN, "size of the vocabulary"),
            (EXPERT, "number of experts"),
        ):
            if self.found[kind] is None:
                self.unprunable.setdefault(kind, f"no key of its config changes the {what} alone")
        if self.found[NEURON] is None:
            self.unprunable[NEURON] = "no key of its config changes the number of MLP neurons alone"

    def _outputs(self, labels: Mapping[str, tuple[Label, ...]]) -> dict[str, str]:
        """Find the projections through which neurons and heads write, and refuse where some layers have none."""
        outputs: dict[str, str] = {}
        count = len(self.probe.model.get_submodule(self.place))
        for kind in (NEURON, QUERY):
            writers: dict[str, set[int]] = defaultdict(set)
            packed = False
            for name, axes in labels.items():
                layer, short = self._split(name)
                if layer is None or not any(
                    kind_of(part) == kind for label in axes for part in parts_of(label)
                ):
                    continue
                if len(axes) > 2:
                    packed = True
                if len(axes) == 2 and name.endswith(".weight") and self._writes(name, axes, kind):
                    writers[short.removesuffix(".weight")].add(layer)
            self._choose_output(kind, writers, packed, count, outputs)
        return outputs

    def _choose_output(
        self, kind: str, writers: Mapping[str, set[int]], packed: bool, count: int, outputs: dict[str, str]
    ) -> None:
        what = {NEURON: "neurons", QUERY: "heads"}[kind]
        if writers:
            outputs[kind] = max(writers, key=lambda name: len(writers[name]))
        if len(writers) > 1:
            self.unprunable.setdefault(
                kind, f"one number counts the {what} of {', '.join(sorted(writers))} together"
            )
        elif packed:
            self.unprunable.setdefault(
                kind, f"its {what} are inside experts, whose weights are packed into one tensor"
            )
        elif not writers:
            self.unprunable.setdefault(kind, f"no projection was found through which its {what} write")
        elif len(writers[outputs[kind]]) < count:
            self.unprunable.setdefault(kind, f"only some layers have the {what} that its config counts")

    def _writes(self, name: str, axes: tuple[Label, ...], kind: str) -> bool:
        """Return whether a matrix reads units of a kind and writes channels."""
        module = self._module(name)
        inputs = 0 if type(module).__name__ == "Conv1D" else 1
        if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
            return False
        return axes[inputs] == kind and axes[1 - inputs] in (CHANNEL, None)

    def _fill_sizes(self, sizes: dict[str, str]) -> None:
        """Name the keys of kinds that cannot be cut too: their numbers are shown."""
        for kind in (NEURON, QUERY, CHANNEL, TOKEN):
            key = next((key for key in KEYS[kind] if isinstance(self.probe.values.get(key), int)), None)
            if key is not None:
                sizes.setdefault(kind, key)
        if QUERY in sizes:
            groups = next(
                (key for key in KEYS[KEY_VALUE] if isinstance(self.probe.values.get(key), int)), None
            )
            sizes.setdefault(KEY_VALUE, groups if groups and not self._has_head_size else sizes[QUERY])

    def _companions(self, sizes: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """Return keys that must hold the same number as the one that counts a kind."""
        values = self.probe.values
        companions = {}
        if QUERY in sizes and sizes.get(KEY_VALUE) == sizes[QUERY]:
            companions[QUERY] = tuple(key for key in KEYS[KEY_VALUE] if isinstance(values.get(key), int))
        return {kind: keys for kind, keys in companions.items() if keys}

    def _split(self, name: str) -> tuple[int | None, str]:
        match = re.match(rf"{re.escape(self.place)}\.(\d+)\.(.+)", name)
        return (int(match[1]), match[2]) if match else (None, name)

    def _in_layer(self, name: str) -> bool:
        return self._split(name)[0] is not None

    def _module(self, name: str) -> nn.Module:
        return self.probe.model.get_submodule(name.rpartition(".")[0])

    def _is_norm(self, name: str) -> bool:
        return "norm" in type(self._module(name)).__name__.lower()

    def _norm_names(self) -> list[str]:
        names = (
            self._split(name)[1].removesuffix(".weight")
            for name in self.probe.shapes
            if self._in_layer(name) and self._is_norm(name)
        )
        return list(dict.fromkeys(name for name in names if "." not in name))

    def _components(self, labels: Mapping[str, tuple[Label, ...]]) -> dict[str, Any]:
        """Sort the tensors by what they belong to."""
        head = self.probe.model.get_output_embeddings()
        heads = {id(values) for values in head.parameters()} if head is not None else set()
        inputs = {id(values) for values in self._input_parameters()}
        parameters = dict(self.probe.model.named_parameters())
        sorted_by: dict[str, TensorLabels] = {
            part: {} for part in ("embeddings", "attention", "mlp", "norms", "final_norm", "head")
        }
        groups = self._groups(labels)
        for name, axes in labels.items():
            layer, short = self._split(name)
            norm = self._is_norm(name) and axes and all(label in (CHANNEL, None) for label in axes)
            if layer is None:
                values = parameters.get(name)
                of_head = values is not None and id(values) in heads and id(values) not in inputs
                part = "head" if of_head else "final_norm" if norm else "embeddings"
            else:
                part = "norms" if norm and axes == (CHANNEL,) else groups[short.split(".")[0]]
            known = sorted_by[part].get(short)
            if known is not None and known != axes:
                self._disagree(short, known, axes)
                axes = tuple(a if a == b else None for a, b in zip(known, axes, strict=False))
            sorted_by[part][short] = axes
        return sorted_by

    def _input_parameters(self) -> Iterable[nn.Parameter]:
        try:
            embeddings = self.probe.model.get_input_embeddings()
        except NotImplementedError:
            return ()
        return embeddings.parameters() if isinstance(embeddings, nn.Module) else ()

    def _groups(self, labels: Mapping[str, tuple[Label, ...]]) -> dict[str, str]:
        """Return whether each part of a layer is attention, or something like it, or an MLP."""
        kinds: dict[str, set[str | None]] = defaultdict(set)
        for name, axes in labels.items():
            layer, short = self._split(name)
            if layer is not None:
                kinds[short.split(".")[0]] |= {kind_of(part) for label in axes for part in parts_of(label)}
        return {
            group: "mlp"
            if found & {NEURON, EXPERT}
            else "attention"
            if found & {QUERY, KEY_VALUE} or _ATTENTION.search(group)
            else "mlp"
            for group, found in kinds.items()
        }

    def _disagree(self, name: str, first: tuple[Label, ...], second: tuple[Label, ...]) -> None:
        for label in {*first, *second} - ({*first} & {*second}):
            for part in parts_of(label):
                if part is not None:
                    self.unprunable.setdefault(
                        kind_of(part), f"{name} counts different things in different layers"
                    )


_READERS = {
    NEURON: _Reading._neuron,
    CHANNEL: _Reading._channel,
    QUERY: _Reading._query,
}


def _short(name: str) -> str:
    """Return a tensor's name without the numbers of layers."""
    return re.sub(r"^.*?\.\d+\.", "", name)
