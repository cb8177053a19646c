"""Derive the entry of the table of families that a model type has no line for.

A small model of the type is built without weights, once as it is and once with each size changed. An axis that
becomes longer with a size counts what the size counts, and how many entries each unit has is by how much. Names
are asked for what sizes cannot show: which matrix is the gate, and which norm stands where.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from pruning.architectures.axis_labels import ATTENTION, AxisLabels
from pruning.architectures.differences import EXPERT_KEYS, KEYS, Probe
from pruning.architectures.families import (
    CHANNEL,
    EXPERT,
    KEY_VALUE,
    LAYER,
    NEURON,
    QUERY,
    TOKEN,
    Family,
    Label,
    TensorLabels,
    kind_of,
    parts_of,
)
from pruning.architectures.norms import norm_offset, post_norms
from pruning.architectures.probe import HEAD, MOST_PARAMETERS, probe_config
from pruning.errors import ModelError

MOST_REMEMBERED = 256

_DERIVED: dict[str, Family] = {}
"""The entries that were derived, by the values of their probes."""

UNITS = (NEURON, QUERY, KEY_VALUE, CHANNEL, TOKEN, EXPERT)

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
    text = config.get_text_config(decoder=True)
    if text is not config and type(text) is not type(config):
        raise ModelError(
            f"it is a model of more than text, of which only the text half, {text.model_type}, could be cut"
        )
    probe = _probe(config)
    key = json.dumps(probe.values, sort_keys=True, default=str)
    if key not in _DERIVED:
        while len(_DERIVED) >= MOST_REMEMBERED:
            del _DERIVED[next(iter(_DERIVED))]
        _DERIVED[key] = _derive(probe)
    return _DERIVED[key]


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
    found = {kind: probe.widths(kind) for kind in UNITS}
    if found[EXPERT]:
        # Most layers of a mixture have experts, and few an MLP of another width.
        found[NEURON] = probe.widths(NEURON, EXPERT_KEYS) or found[NEURON]
    found[LAYER] = (layers.key, dict(layers.widths))
    reading = _Reading(probe, layers.place, found)
    family = reading.family(layers.key)
    if layers.others:
        reason = f"a layer is not one module: its parts are in {', '.join((layers.place, *layers.others))}"
        family = replace(family, unprunable={**family.unprunable, LAYER: reason})
    return family


class _Reading(AxisLabels):
    """The entry of the table that the labels of a small model make."""

    def family(self, layer_key: str) -> Family:
        """Return the entry of the table."""
        self._check_heads()
        labels = self._all_labels
        components = self._components(labels)
        outputs = self._outputs(labels)
        sizes = {kind: found[0] for kind, found in self.found.items() if found}
        sizes[LAYER] = layer_key
        self._fill_sizes(sizes)
        norms = self._norm_names()
        return Family(
            model_type=self.probe.config.model_type,
            title=type(self.probe.config).__name__.removesuffix("Config"),
            layers=self.place,
            output_projections=outputs,
            sizes=sizes,
            unprunable=self.unprunable,
            norm_offset=self._norm_offset(norms),
            post_norms=self._post_norms(norms),
            companions=self._companions(sizes),
            transposed=frozenset(self.split(name)[1] for name in labels if self.is_transposed(name)),
            derived=True,
            **components,
        )

    @cached_property
    def _all_labels(self) -> dict[str, tuple[Label, ...]]:
        return {name: self.labels(name, shape) for name, shape in self.probe.shapes.items()}

    def _check_heads(self) -> None:
        found = dict(self.found)
        for kind in (QUERY, KEY_VALUE):
            each = found[kind]
            if each and any(width <= 0 for width in each[1].values()):
                found[kind] = None
        self.found = found
        if not self.has_head_size:
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
            self.unprunable[NEURON] = "no key of its config counts MLP neurons one by one"

    def _outputs(self, labels: Mapping[str, tuple[Label, ...]]) -> dict[str, str]:
        """Find the projections through which neurons and heads write, and refuse where some layers have none."""
        outputs: dict[str, str] = {}
        count = len(list(self.probe.model.get_submodule(self.place).children()))
        for kind in (NEURON, QUERY):
            writers: dict[str, set[int]] = defaultdict(set)
            packed = False
            for name, axes in labels.items():
                layer, short = self.split(name)
                if layer is None or not any(
                    kind_of(part) == kind for label in axes for part in parts_of(label)
                ):
                    continue
                if len(axes) > 2 and axes[0] != EXPERT:
                    self.unprunable.setdefault(kind, f"{short} is not a plain projection")
                packed = packed or axes[0] == EXPERT
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
            return  # Each expert has its own.
        elif not writers:
            self.unprunable.setdefault(kind, f"no projection was found through which its {what} write")
        elif len(writers[outputs[kind]]) < count:
            self.unprunable.setdefault(kind, f"only some layers have the {what} that its config counts")

    def _writes(self, name: str, axes: tuple[Label, ...], kind: str) -> bool:
        """Return whether a matrix reads units of a kind and writes channels."""
        inputs = 0 if self.is_transposed(name) else 1
        return self.is_projection(name) and axes[inputs] == kind and axes[1 - inputs] in (CHANNEL, None)

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
            sizes.setdefault(KEY_VALUE, groups if groups and not self.has_head_size else sizes[QUERY])

    def _companions(self, sizes: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """Return keys that must hold the same number as the one that counts a kind."""
        values = self.probe.values
        companions = {kind: self.probe.companions(kind) for kind in UNITS}
        if QUERY in sizes and sizes.get(KEY_VALUE) == sizes[QUERY]:
            companions[QUERY] = tuple(key for key in KEYS[KEY_VALUE] if isinstance(values.get(key), int))
        return {kind: keys for kind, keys in companions.items() if keys}

    def _norm_names(self) -> list[str]:
        """Return the norms over the channels that are parts of a layer, by their names in it."""
        names = [
            name.removesuffix(".weight")
            for full, axes in self._all_labels.items()
            for layer, name in [self.split(full)]
            if layer is not None and axes == (CHANNEL,) and name.endswith(".weight") and self.is_norm(full)
        ]
        return [name for name in dict.fromkeys(names) if "." not in name]

    def _norm_offset(self, names: Sequence[str]) -> float:
        # The first layer may have no norm where the others have one.
        norms = {
            self.split(name)[1].rpartition(".")[0]: self.module(name)
            for name in self.probe.shapes
            if self.in_layer(name)
        }
        offsets = {norm_offset(norms[name]) for name in names}
        if None in offsets or len(offsets) > 1:
            self.unprunable.setdefault(CHANNEL, "its norms do more than to multiply by a weight")
        return next((offset for offset in offsets if offset is not None), 0.0)

    def _post_norms(self, names: Sequence[str]) -> tuple[str, ...]:
        layer = self.probe.model.get_submodule(self.place).get_submodule("0")
        try:
            return post_norms(self.probe.config, self.place, [name for name in names if hasattr(layer, name)])
        except Exception:
            # The proof of each cut will say that the model does not run.
            return ()

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
            layer, short = self.split(name)
            norm = self.is_norm(name) and axes and all(label in (CHANNEL, None) for label in axes)
            if layer is None:
                values = parameters.get(name)
                of_head = values is not None and id(values) in heads and id(values) not in inputs
                part = "head" if of_head else "final_norm" if norm else "embeddings"
            else:
                part = "norms" if norm and axes == (CHANNEL,) else groups[short.split(".")[0]]
            known = sorted_by[part].get(short)
            if known is not None and known != axes:
                self._disagree(short, known, axes)
                alike = len(known) == len(axes)
                axes = tuple(a if a == b and alike else None for a, b in zip(known, axes, strict=False))
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
            layer, short = self.split(name)
            if layer is not None:
                kinds[short.split(".")[0]] |= {kind_of(part) for label in axes for part in parts_of(label)}
        return {
            group: "mlp"
            if found & {NEURON, EXPERT}
            else "attention"
            if found & {QUERY, KEY_VALUE} or ATTENTION.search(group)
            else "mlp"
            for group, found in kinds.items()
        }

    def _disagree(self, name: str, first: tuple[Label, ...], second: tuple[Label, ...]) -> None:
        agreed = {*first} & {*second} if len(first) == len(second) else set()
        for label in {*first, *second} - agreed:
            for part in parts_of(label):
                if part is not None:
                    self.unprunable.setdefault(
                        kind_of(part), f"{name} counts different things in different layers"
                    )
