"""What in a config depends on the number of a layer, and how it follows when layers are removed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pruning.lazy import nn

EXACT: Mapping[str, Any] = {"block_auto_adjust_ff_dim": False}
"""Values with which the number of neurons in a config is that of the tensors."""

_FIRST_LAYERS = ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "moe_layer_start_index")
"""Keys that hold how many layers at the beginning differ from the others."""

_LAST_LAYERS = ("num_kv_shared_layers",)
"""Keys that hold how many layers at the end differ from the others."""

_NUMBER = re.compile(r"layer|block|idx|index|pattern|rope|type|hybrid|size|per")

_NO_NUMBERS = re.compile(r"token|architectures|label|dim|shape|group")

_PLAIN = (bool, int, float, str, type(None))

_NUMBERS_OF_LAYERS = ("layer_idx", "layer_id", "layer_number", "layer_index", "training", "num_hidden_layers")


def keep_layers(values: Mapping[str, Any], layers: Sequence[int], count: int) -> dict[str, Any]:
    """Return the values of a config after some of its layers were removed.

    Lists and texts with an entry for each layer keep the entries of the layers kept; lists of the numbers of
    layers are renumbered; numbers of layers at the beginning or at the end are counted again. The key that
    holds the number of layers is not changed.

    Args:
        values: The values of the config.
        layers: The layers kept, ascending.
        count: How many layers there were.
    """
    return {key: _kept_value(key, value, layers, count) for key, value in values.items()}


def _kept_value(key: str, value: Any, layers: Sequence[int], count: int) -> Any:
    if key in _SPECIAL:
        return _SPECIAL[key](value, layers)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if key in _FIRST_LAYERS and whole:
        return sum(layer < value for layer in layers)
    if key in _LAST_LAYERS and whole:
        return sum(layer >= count - value for layer in layers)
    if key == "per_layer_config" and isinstance(value, Mapping):
        by_number = {int(layer): (str(layer), each) for layer, each in value.items()}
        return {
            str(new).zfill(len(by_number[old][0])): by_number[old][1]
            for new, old in enumerate(layers)
            if old in by_number
        }
    if isinstance(value, str) and "pattern" not in key:
        return value
    if not isinstance(value, (list, tuple, str)) or not _NUMBER.search(key) or _NO_NUMBERS.search(key):
        return value
    if _are_numbers(value, count) and len(value) != count:
        return [new for new, old in enumerate(layers) if old in value]
    if len(value) == count:
        kept = [value[layer] for layer in layers]
        if _are_numbers(value, count):
            return list(range(len(layers)))
        return "".join(kept) if isinstance(value, str) else kept
    return value


def _are_numbers(value: Sequence[Any], count: int) -> bool:
    """Return whether a list holds the numbers of layers, ascending."""
    return (
        not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value)
        and list(value) == sorted(set(value))
        and value[0] >= 0
        and value[-1] < count
    )


def _kept_attention_types(value: Any, layers: Sequence[int]) -> Any:
    """Return GPT-Neo's nested list, `[[[kind, …], times], …]`, for the layers kept."""
    if not isinstance(value, (list, tuple)):
        return value
    kinds = [kind for cycle, times in value for _ in range(times) for kind in cycle]
    return [[[kinds[layer]], 1] for layer in layers]


def _kept_cycle(value: Any, layers: Sequence[int]) -> Any:
    """Return a list that is repeated over the layers, for those kept."""
    if not isinstance(value, (list, tuple)) or not value:
        return value
    return [value[layer % len(value)] for layer in layers]


_SPECIAL: Mapping[str, Callable[[Any, Sequence[int]], Any]] = {
    "attention_types": _kept_attention_types,
    "block_types": _kept_cycle,
}


def differing_layer(
    base: nn.Module, new: nn.Module, place: str, layers: Sequence[int], resized: bool = False
) -> str | None:
    """Compare the layers of a model with those of its base, without their weights.

    Args:
        base: The base.
        new: The model made of some of its layers.
        place: The name of the module that holds the layers.
        layers: The layers kept, by their numbers in the base.
        resized: Whether widths have changed too, so that whole numbers differ.

    Returns:
        What became different in which layer, or None if nothing did.
    """
    old_layers, new_layers = base.get_submodule(place), new.get_submodule(place)
    for number, layer in enumerate(layers):
        before = dict(old_layers.get_submodule(str(layer)).named_modules())
        after = dict(new_layers.get_submodule(str(number)).named_modules())
        if before.keys() != after.keys():
            return f"layer {layer} is built of other parts when it is layer {number}"
        for name, module in before.items():
            if type(module) is not type(after[name]):
                return f"layer {layer} is of another kind when it is layer {number}"
            for key, value in vars(module).items():
                other = vars(after[name]).get(key)
                if key.startswith("_") or key in _NUMBERS_OF_LAYERS or not isinstance(value, _PLAIN):
                    continue
                if resized and isinstance(value, (int, float)) and not isinstance(value, bool):
                    continue
                if value != other:
                    return f"{key} of layer {layer} is {value}, and would be {other} as layer {number}"
    return None
