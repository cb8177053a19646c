"""From a base model and the units to keep, make a new model that shares every tensor that was not cut."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pruning.architectures.anatomy import Anatomy, TensorSpec
from pruning.architectures.config import build_on_meta
from pruning.architectures.families import (
    CHANNEL,
    LAYER,
    Label,
    kind_of,
    parts_of,
)
from pruning.architectures.layer_numbers import differing_layer
from pruning.architectures.lookup import family_for
from pruning.architectures.placement import (
    DISK,
    DeviceMap,
    device_map_of_kept,
    device_of,
    loaded_values,
    parameter,
)
from pruning.architectures.shape import Shape
from pruning.errors import ModelError
from pruning.lazy import accelerate, nn, torch
from pruning.progress import Progress, Reporter, silent

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

KeptIndices = Mapping[str, Sequence["torch.Tensor"]]
"""For each kind of unit, the kept indices of each layer, ascending.

`neuron:gate` and `neuron:up` may be given apart from `neuron`; otherwise they follow it. For the
layers themselves there is one entry, which holds the kept layers. Neurons inside experts are `[experts, kept]`, and
`neuron:shared` those of an MLP beside them. Of a kind that is not named, all units are
kept.
"""


def cut(
    base: PreTrainedModel,
    shape: Shape,
    kept: KeptIndices,
    replaced: Mapping[str, torch.Tensor] | None = None,
    progress: Reporter = silent,
) -> PreTrainedModel:
    """Make a new model of the kept units of a base.

    Args:
        base: The base model. It is not changed; the new model shares the memory of its tensors that have
            no cut axis.
        shape: The shape of the new model.
        kept: The units to keep.
        replaced: Tensors to use instead of slices of the base's, by parameter name in the base, already in
            the new shape.
        progress: Called before each tensor.
    """
    layers = kept_layers(shape.anatomy, kept)
    tensors = pieces(base, shape.anatomy, kept, replaced)
    return assemble(base, shape.config_of(layers), tensors, layers, progress)


def pieces(
    base: PreTrainedModel,
    anatomy: Anatomy,
    kept: KeptIndices,
    replaced: Mapping[str, torch.Tensor] | None = None,
) -> LazyTensors:
    """Return the parameters of the new model, each cut out of the base's when it is asked for; see `cut`."""
    replacements = replaced or {}
    stored = dict(base.named_parameters()) | dict(base.named_buffers())

    def make(spec: TensorSpec) -> torch.Tensor:
        values = loaded_values(base, spec.name, stored[spec.name])
        replacement = replacements.get(spec.name)
        if replacement is not None:
            return replacement.to(values)
        return cut_tensor(values, spec, anatomy, kept)

    return LazyTensors({name: partial(make, spec) for name, spec in kept_parameters(anatomy, kept).items()})


class LazyTensors(Mapping[str, "torch.Tensor"]):
    """Tensors by name, each computed whenever it is asked for, and not kept."""

    def __init__(self, makers: Mapping[str, Callable[[], torch.Tensor]]):
        self._makers = makers

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers  # Mapping's own would compute the tensor.


def kept_layers(anatomy: Anatomy, kept: KeptIndices) -> list[int]:
    """Return the kept layers, ascending, by their numbers in the base."""
    return kept[LAYER][0].tolist() if LAYER in kept else list(range(anatomy.layers))


def kept_parameters(anatomy: Anatomy, kept: KeptIndices) -> dict[str, TensorSpec]:
    """Return the name of each tensor that the new model's files hold, and the base's tensor that it is made of."""
    new_numbers = {layer: number for number, layer in enumerate(kept_layers(anatomy, kept))}
    return {
        anatomy.renamed(spec, None if spec.layer is None else new_numbers[spec.layer]): spec
        for spec in (*anatomy.tensors, *anatomy.buffers)
        if spec.layer is None or spec.layer in new_numbers
    }


def cut_tensor(tensor: torch.Tensor, spec: TensorSpec, anatomy: Anatomy, kept: KeptIndices) -> torch.Tensor:
    """Return the kept part of one parameter; the tensor itself if none of its axes is cut."""
    for axis, label in enumerate(spec.labels):
        index = _indices(anatomy, label, tensor.shape[axis], spec.layer, kept)
        if index is not None and index.ndim == 1:
            tensor = tensor.index_select(axis, index.to(tensor.device))
        elif index is not None:
            rows = zip(tensor, index.to(tensor.device), strict=True)
            tensor = torch.stack([expert.index_select(axis - 1, kept_rows) for expert, kept_rows in rows])
    return tensor


def assemble(
    base: PreTrainedModel,
    config: PreTrainedConfig,
    tensors: Mapping[str, torch.Tensor],
    layers: Sequence[int] | None = None,
    progress: Reporter = silent,
) -> PreTrainedModel:
    """Build an ordinary model of a config around given parameters.

    If accelerate placed the base on several devices, each layer remains on its own. Parameters that it
    left on disk are not kept in memory: `tensors` is asked for them whenever they are needed.

    Args:
        base: The base model, from which buffers come that are not saved (except the one that depends on the
            number of channels), the placement and the generation config.
        config: The config of the new model.
        tensors: Its parameters and saved buffers by name.
        layers: Which of the base's layers it keeps; None for all.
        progress: Called before each tensor.

    Raises:
        ModelError: A layer would become another one under its new number, or a buffer has another size.
    """
    devices = device_map_of_kept(base, layers)
    in_memory = {}
    for number, name in enumerate(tensors):
        progress(Progress("Building the model, tensors", number, len(tensors)))
        if device_of(name, devices) != DISK:
            in_memory[name] = tensors[name]
    dtype = next(iter((in_memory or tensors).values())).dtype
    model = build_on_meta(config, dtype, base.config._attn_implementation)
    if layers is not None:
        _check_layers(base, model, layers)
    _fill(model, in_memory, _buffers(base, config, layers))
    model.tie_weights()
    missing = [
        name
        for name, values in model.named_parameters()
        if values.is_meta and device_of(name, devices) != DISK
    ]
    if missing:
        raise AssertionError(f"surgery gave these tensors no values: {missing}")
    if devices:
        _dispatch(model, devices, in_memory, tensors)
    model.requires_grad_(False)
    model.generation_config = copy.deepcopy(base.generation_config)
    model.name_or_path = base.name_or_path
    return model.eval()


def _check_layers(base: PreTrainedModel, model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Refuse a config that makes other layers of those kept, such as one that counts every fourth."""
    place = family_for(base.config).layers
    if len(layers) == len(base.get_submodule(place)):  # type: ignore[arg-type]
        return
    if difference := differing_layer(base, model, place, layers):
        raise ModelError(
            f"These layers cannot be removed, because what a layer is depends on its number: {difference}. "
            "Remove other layers."
        )


def _buffers(
    base: PreTrainedModel, config: PreTrainedConfig, layers: Sequence[int] | None
) -> dict[str, torch.Tensor]:
    """Return the base's buffers by their names in a new model, whose layers have other numbers.

    Those that depend on the number of channels are computed for the new config.
    """
    family = family_for(base.config)
    buffers = dict(base.named_buffers())
    if layers is not None:
        old = {number: f"{family.layers}.{layer}." for number, layer in enumerate(layers)}
        new = {number: f"{family.layers}.{number}." for number in old}
        outside = {
            name: values for name, values in buffers.items() if not name.startswith(f"{family.layers}.")
        }
        buffers = outside | {
            name.replace(old[number], new[number], 1): values
            for number in old
            for name, values in buffers.items()
            if name.startswith(old[number])
        }
    if family.embedding_scale:
        scale = getattr(config, family.sizes[CHANNEL]) ** 0.5
        buffers[family.embedding_scale] = torch.full_like(buffers[family.embedding_scale], scale)
    return buffers


def _fill(
    model: PreTrainedModel, parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]
) -> None:
    """Give a model on the meta device its values."""
    modules, expected = dict(model.named_modules()), dict(model.named_parameters())
    places = dict(model.named_buffers())
    values: dict[str, torch.Tensor] = {name: buffers[name] for name in places if name not in parameters}
    for name, buffer in values.items():
        if buffer.shape != places[name].shape:
            raise ModelError(
                f"The buffer {name} of a model of this type has {[*places[name].shape]} entries after such a cut "
                f"instead of {[*buffer.shape]}, and which ones is not known."
            )
    for name, tensor in parameters.items():
        place = expected[name] if name in expected else places[name]
        if tensor.shape != place.shape:
            raise AssertionError(f"surgery cut {name} to {[*tensor.shape]}, not {[*place.shape]}")
        values[name] = nn.Parameter(tensor, requires_grad=False) if name in expected else tensor
    aliases: dict[int, list[str]] = defaultdict(list)
    for name, tied in model.named_parameters(remove_duplicate=False):
        aliases[id(tied)].append(name)
    for name, value in values.items():
        for alias in aliases[id(expected[name])] if name in expected else [name]:
            module, _, attribute = alias.rpartition(".")
            setattr(modules[module], attribute, value)


def _dispatch(
    model: PreTrainedModel,
    devices: DeviceMap,
    in_memory: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Have accelerate move a model's modules to their devices, and fetch what is on disk when needed."""
    on_disk = {name: partial(tensors.__getitem__, name) for name in tensors if name not in in_memory}
    on_disk |= {tied: on_disk[to] for tied, to in model.all_tied_weights_keys.items() if to in on_disk}
    held = {name: partial(in_memory.__getitem__, name) for name in in_memory}
    accelerate.dispatch_model(
        model,
        device_map=devices,
        state_dict=LazyTensors(on_disk | held),
        offload_index={},
        skip_keys=model._skip_keys_device_placement,
    )


def cast(model: PreTrainedModel, dtype: torch.dtype, progress: Reporter = silent) -> PreTrainedModel:
    """Return a new model with the same weights in another precision."""

    def make(name: str) -> torch.Tensor:
        return parameter(model, name).to(dtype)

    tensors = LazyTensors({name: partial(make, name) for name, _ in model.named_parameters()})
    return assemble(model, model.config, tensors, progress=progress)


def with_own_memory(model: PreTrainedModel, base: PreTrainedModel) -> PreTrainedModel:
    """Return a model that shares no memory with its base, and that can be trained.

    Args:
        model: The model, which is changed in place unless it is the base itself. What accelerate left on disk
            stays there.
        base: The model that it was cut from, which is not changed.
    """
    if model is base:
        model = copy.deepcopy(base)
    shared = {_storage(values) for values in (*base.parameters(), *base.buffers()) if not values.is_meta}
    for weight in model.parameters():
        if not weight.is_meta and _storage(weight) in shared:
            weight.data = weight.data.clone()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta and _storage(buffer) in shared:
                module._buffers[name] = buffer.clone()
    return model.requires_grad_(True)


def _storage(values: torch.Tensor) -> int:
    """Return where the memory of a tensor begins."""
    return values.untyped_storage().data_ptr()


def _indices(
    anatomy: Anatomy, label: Label, length: int, layer: int | None, kept: KeptIndices
) -> torch.Tensor | None:
    """Return the kept entries of an axis, ascending; None if all are kept.

    Returns:
        `[entries]`, or `[experts, entries]` if each expert keeps others.
    """
    kinds = {part: kind_of(part) for part in parts_of(label) if part is not None}
    if not any(part in kept or kind in kept for part, kind in kinds.items()):
        return None
    runs, start = [], 0
    for part, count, width in anatomy.segments(label, length):
        kept_units = None if part is None else kept.get(part) or kept.get(kind_of(part))
        units = torch.arange(count) if kept_units is None else kept_units[layer or 0].cpu()
        runs.append((start + units[..., None] * width + torch.arange(width)).flatten(-2))
        start += count * width
    return torch.cat(runs, dim=-1)
