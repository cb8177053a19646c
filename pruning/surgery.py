"""Base model + kept units → a new model on a new shape, sharing every tensor that was not cut."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pruning.anatomy import CHANNEL, LAYER, Anatomy, Label, TensorSpec, build_on_meta, kind_of
from pruning.shape import Shape

Kept = Mapping[str, Sequence[torch.Tensor]]
"""For each kind of unit, the kept indices of each layer, ascending.

`neuron:gate` and `neuron:up` may be given apart from `neuron`; otherwise they follow it. For the
layers themselves there is one entry, which holds the layers that stay.
"""


def cut(
    base: PreTrainedModel,
    shape: Shape,
    kept: Kept,
    replaced: Mapping[str, torch.Tensor] | None = None,
) -> PreTrainedModel:
    """A new model of the given shape, made of what is kept of the base.

    The base is not changed. Tensors without a cut axis share the base's memory; tensors in
    `replaced` (by parameter name, already in the new shape) are used instead of slices.
    """
    replaced = replaced or {}
    anatomy = shape.anatomy
    parameters = dict(base.named_parameters())
    staying = kept[LAYER][0].tolist() if LAYER in kept else list(range(anatomy.layers))
    number = {layer: place for place, layer in enumerate(staying)}
    tensors = {}
    for spec in anatomy.tensors:
        if spec.layer is not None and spec.layer not in number:
            continue
        name = anatomy.moved(spec, number.get(spec.layer))
        if spec.name in replaced:
            tensors[name] = replaced[spec.name].to(parameters[spec.name])
            continue
        tensor = parameters[spec.name].detach()
        for axis, label in enumerate(spec.labels):
            index = _indices(anatomy, label, tensor.shape[axis], spec.layer, kept)
            if index is not None:
                tensor = tensor.index_select(axis, index.to(tensor.device))
        tensors[name] = tensor
    return assemble(base, shape.config_of(staying), tensors)


def assemble(
    base: PreTrainedModel, config: PreTrainedConfig, tensors: Mapping[str, torch.Tensor]
) -> PreTrainedModel:
    """An ordinary model of a config around given parameters; buffers come from the base."""
    dtype = next(iter(tensors.values())).dtype
    config = copy.deepcopy(config)
    config._attn_implementation = base.config._attn_implementation
    config.dtype = dtype
    model = build_on_meta(config, dtype)
    buffers = dict(base.named_buffers())
    for name, _ in list(model.named_buffers()):
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, buffers[name])
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if left:
        raise AssertionError(f"surgery left tensors without values: {left}")
    model.requires_grad_(False)
    model.generation_config = copy.deepcopy(base.generation_config)
    model.name_or_path = base.name_or_path
    return model.eval()


def recast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same model in another precision, as a new model."""
    tensors = {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
    return assemble(model, model.config, tensors)


def neuron_matrices(
    model: nn.Module, anatomy: Anatomy, layer: int
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """The matrices that read into a layer's neurons, each `[neurons, channels]`, gate before up, and
    the one that writes from them, `[channels, neurons]`. Views, not copies."""
    reads, write = [], None
    for spec in anatomy.tensors:
        if spec.layer != layer or spec.component != "mlp" or len(spec.shape) != 2:
            continue
        tensor = model.get_parameter(spec.name).detach()
        if spec.name == f"{anatomy.write_module(layer)}.weight":
            write = oriented(tensor, spec)
            continue
        axis = 1 - spec.labels.index(CHANNEL)
        start = 0
        for _, count, width in anatomy.segments(spec.labels[axis], tensor.shape[axis]):
            part = tensor.narrow(axis, start, count * width)
            reads.append(part if axis == 0 else part.T)
            start += count * width
    return tuple(reads), write


def oriented(weight: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """A writing projection turned from the family's layout to `[channels, neurons]`, or back."""
    return weight if spec.labels[0] == CHANNEL else weight.T


def _indices(
    anatomy: Anatomy, label: Label, length: int, layer: int | None, kept: Kept
) -> torch.Tensor | None:
    """Which entries of an axis stay; None where all do."""
    pieces, start, touched = [], 0, False
    for part, count, width in anatomy.segments(label, length):
        chosen = kept.get(part, kept.get(kind_of(part)))
        if chosen is None:
            pieces.append(torch.arange(start, start + count * width))
        else:
            touched = True
            units = chosen[layer if layer is not None else 0].cpu()
            pieces.append((start + units[:, None] * width + torch.arange(width)).flatten())
        start += count * width
    return torch.cat(pieces) if touched else None
