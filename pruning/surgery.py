"""Base model + kept units → a new model on a new shape, sharing every tensor that was not cut."""

import copy
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from accelerate import dispatch_model
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pruning.architectures.anatomy import Anatomy, TensorSpec
from pruning.architectures.config import build_on_meta
from pruning.architectures.families import CHANNEL, KEY_VALUE, LAYER, Label, family_of, kind_of, parts_of
from pruning.architectures.placement import DISK, device_map, loaded_values, parameter
from pruning.architectures.shape import Shape

KeptIndices = Mapping[str, Sequence[torch.Tensor]]
"""For each kind of unit, the kept indices of each layer, ascending.

`neuron:gate` and `neuron:up` may be given apart from `neuron`; otherwise they follow it. For the
layers themselves there is one entry, which holds the layers that stay.
"""


def cut(
    base: PreTrainedModel,
    shape: Shape,
    kept: KeptIndices,
    replaced: Mapping[str, torch.Tensor] | None = None,
) -> PreTrainedModel:
    """A new model of the given shape, made of what is kept of the base.

    The base is not changed. Tensors without a cut axis share the base's memory; tensors in
    `replaced` (by parameter name in the base, already in the new shape) are used instead of slices.
    """
    layers = kept_layers(shape.anatomy, kept)
    return assemble(base, shape.config_of(layers), pieces(base, shape.anatomy, kept, replaced), layers)


def pieces(
    base: PreTrainedModel,
    anatomy: Anatomy,
    kept: KeptIndices,
    replaced: Mapping[str, torch.Tensor] | None = None,
) -> "LazyTensors":
    """The parameters of the new model, each cut out of the base's when it is asked for; see `cut`."""
    replaced, there = replaced or {}, dict(base.named_parameters())

    def make(spec: TensorSpec) -> torch.Tensor:
        whole = loaded_values(base, spec.name, there[spec.name])
        new = replaced.get(spec.name)
        return cut_tensor(whole, spec, anatomy, kept) if new is None else new.to(whole)

    return LazyTensors({name: partial(make, spec) for name, spec in kept_parameters(anatomy, kept).items()})


class LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors by name, each made anew whenever it is asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], torch.Tensor]]):
        self._makers = makers

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers  # Mapping's own would make the tensor.


def kept_layers(anatomy: Anatomy, kept: KeptIndices) -> list[int]:
    """The layers that stay, ascending, by their numbers in the base."""
    return kept[LAYER][0].tolist() if LAYER in kept else list(range(anatomy.layers))


def kept_parameters(anatomy: Anatomy, kept: KeptIndices) -> dict[str, TensorSpec]:
    """The parameters of the new model: the name of each, and which of the base's it is made of."""
    place = {layer: number for number, layer in enumerate(kept_layers(anatomy, kept))}
    return {
        anatomy.renamed(spec, place.get(spec.layer)): spec
        for spec in anatomy.tensors
        if spec.layer is None or spec.layer in place
    }


def cut_tensor(tensor: torch.Tensor, spec: TensorSpec, anatomy: Anatomy, kept: KeptIndices) -> torch.Tensor:
    """What is kept of one parameter; the tensor itself where none of its axes is cut."""
    for axis, label in enumerate(spec.labels):
        index = _indices(anatomy, label, tensor.shape[axis], spec.layer, kept)
        if index is not None:
            tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor


def assemble(
    base: PreTrainedModel,
    config: PreTrainedConfig,
    tensors: Mapping[str, torch.Tensor],
    layers: Sequence[int] | None = None,
) -> PreTrainedModel:
    """An ordinary model of a config around given parameters; buffers come from the base, but for the
    one that follows from the number of channels.

    `layers`: which of the base's layers the new ones are, where some are gone. Where accelerate placed
    the base on several devices, each layer stays on its own; those it left on disk stay there, and
    `tensors` is asked for them whenever they are needed.
    """
    places = _new_device_map(base, layers)
    held = {name: tensors[name] for name in tensors if _device_of(name, places) != DISK}
    dtype = next(iter((held or tensors).values())).dtype
    model = build_on_meta(config, dtype, base.config._attn_implementation)
    family = family_of(config.model_type)
    buffers = dict(base.named_buffers())
    if family.embedding_scale:
        scale = getattr(config, family.sizes[CHANNEL]) ** 0.5
        buffers[family.embedding_scale] = torch.full_like(buffers[family.embedding_scale], scale)
    modules, expected = dict(model.named_modules()), dict(model.named_parameters())
    filled = {name: buffers[name] for name, _ in model.named_buffers()}
    for name, tensor in held.items():
        if tensor.shape != expected[name].shape:
            raise AssertionError(f"surgery cut {name} to {[*tensor.shape]}, not {[*expected[name].shape]}")
        filled[name] = nn.Parameter(tensor, requires_grad=False)
    for name, value in filled.items():
        module, _, attribute = name.rpartition(".")
        setattr(modules[module], attribute, value)
    model.tie_weights()
    left = [
        name for name, each in model.named_parameters() if each.is_meta and _device_of(name, places) != DISK
    ]
    if left:
        raise AssertionError(f"surgery left tensors without values: {left}")
    if places:
        waiting = {name: partial(tensors.__getitem__, name) for name in tensors if name not in held}
        waiting |= {tied: waiting[to] for tied, to in model.all_tied_weights_keys.items() if to in waiting}
        dispatch_model(
            model,
            device_map=places,
            state_dict=ChainMap(held, LazyTensors(waiting)),
            offload_index={},
            skip_keys=model._skip_keys_device_placement,
        )
    model.requires_grad_(False)
    model.generation_config = copy.deepcopy(base.generation_config)
    model.name_or_path = base.name_or_path
    return model.eval()


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same model in another precision, as a new model."""

    def make(name: str) -> torch.Tensor:
        return parameter(model, name).to(dtype)

    tensors = LazyTensors({name: partial(make, name) for name, _ in model.named_parameters()})
    return assemble(model, model.config, tensors)


def _new_device_map(
    base: PreTrainedModel, layers: Sequence[int] | None
) -> dict[str, int | str | torch.device]:
    """Where the modules of a base are, by their names in the new model."""
    places = device_map(base)
    if layers is None:
        return places
    prefix = f"{family_of(base.config.model_type).layers}."
    number = {str(old): new for new, old in enumerate(layers)}
    moved = {}
    for module, place in places.items():
        if module.startswith(prefix):
            layer, dot, rest = module.removeprefix(prefix).partition(".")
            if layer not in number:
                continue
            module = f"{prefix}{number[layer]}{dot}{rest}"
        moved[module] = place
    return moved


def _device_of(name: str, places: Mapping[str, int | str | torch.device]) -> int | str | torch.device | None:
    """Where a parameter belongs; None where accelerate placed nothing."""
    return next(
        (place for module, place in places.items() if not module or f"{name}.".startswith(f"{module}.")), None
    )


def neuron_matrices(
    model: nn.Module, anatomy: Anatomy, layer: int
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """The matrices that read into a layer's neurons, each `[neurons, channels]`, gate before up, and
    the one that writes from them, `[channels, neurons]`. Views, not copies."""
    reads, write = [], None
    for spec in anatomy.of_layer(layer):
        if spec.component != "mlp" or len(spec.shape) != 2:
            continue
        if spec.name == f"{anatomy.output_projection(layer)}.weight":
            write = as_channels_first(parameter(model, spec.name), spec)
        else:
            reads += [matrix for _, matrix in _fused(model, anatomy, spec)]
    return tuple(reads), write


def value_matrix(model: nn.Module, anatomy: Anatomy, layer: int) -> torch.Tensor:
    """The matrix that reads the values of a layer's attention, `[key/value heads · head size, channels]`.
    A view, not a copy."""
    found = [
        matrix
        for spec in anatomy.of_layer(layer)
        if spec.component == "attention" and CHANNEL in spec.labels
        if len(spec.shape) == 2
        for part, matrix in _fused(model, anatomy, spec)
        if part == KEY_VALUE
    ]
    return found[-1]  # In every family, the values come after the keys.


def _fused(model: nn.Module, anatomy: Anatomy, spec: TensorSpec) -> Iterator[tuple[Label, torch.Tensor]]:
    """The matrices side by side in one that reads the residual stream: the kind of unit, and the part
    `[entries, channels]`. Views, not copies."""
    tensor = parameter(model, spec.name)
    axis = 1 - spec.labels.index(CHANNEL)
    start = 0
    for part, count, width in anatomy.segments(spec.labels[axis], tensor.shape[axis]):
        matrix = tensor.narrow(axis, start, count * width)
        yield part, matrix if axis == 0 else matrix.T
        start += count * width


def as_channels_first(weight: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """A writing projection turned from the family's layout to `[channels, neurons]`, or back."""
    return weight if spec.labels[0] == CHANNEL else weight.T


def _indices(
    anatomy: Anatomy, label: Label, length: int, layer: int | None, kept: KeptIndices
) -> torch.Tensor | None:
    """Which entries of an axis stay; None where all do."""
    if not any(part in kept or kind_of(part) in kept for part in parts_of(label)):
        return None
    pieces, start = [], 0
    for part, count, width in anatomy.segments(label, length):
        chosen = kept.get(part, kept.get(kind_of(part)))
        units = torch.arange(count) if chosen is None else chosen[layer if layer is not None else 0].cpu()
        pieces.append((start + units[:, None] * width + torch.arange(width)).flatten())
        start += count * width
    return torch.cat(pieces)
