"""The matrices of a model by what they compute: neurons, those of experts, and the values of attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pruning.architectures.anatomy import Anatomy, TensorSpec
from pruning.architectures.families import (
    CHANNEL,
    EXPERT,
    KEY_VALUE,
    NEURON,
    SHARED,
    Label,
    kind_of,
    parts_of,
)
from pruning.architectures.placement import parameter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def neuron_matrices(
    model: PreTrainedModel, anatomy: Anatomy, layer: int
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Return the matrices that compute a layer's neurons, and the one that reads them.

    Returns:
        The input weights, each `[neurons, channels]`, gate before up, and the output weight,
        `[channels, neurons]`. Views, not copies.
    """
    output_name = f"{anatomy.output_projection(layer)}.weight"
    input_weights = [
        matrix
        for spec in anatomy.of_layer(layer)
        if spec.component == "mlp" and len(spec.shape) == 2 and spec.name != output_name
        if any(kind_of(part) == NEURON for label in spec.labels for part in parts_of(label))
        for _, matrix in _unfused(model, anatomy, spec)
    ]
    output_weight = as_channels_first(parameter(model, output_name), anatomy.tensor(output_name))
    return tuple(input_weights), output_weight


def expert_matrices(
    model: PreTrainedModel, anatomy: Anatomy, layer: int
) -> list[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """Return, for each expert of a layer, the matrices that compute its neurons and the one that reads them.

    Returns:
        As `neuron_matrices`, one pair for each expert; empty for a layer without experts.
    """
    specs = [
        spec
        for spec in anatomy.of_layer(layer)
        if len(spec.shape) == 3 and spec.labels[0] == EXPERT
        if any(kind_of(part) == NEURON for label in spec.labels for part in parts_of(label))
    ]
    # The projection back into the residual stream comes last.
    parts = [[matrices for _, matrices in _unfused(model, anatomy, spec)] for spec in specs]
    if not parts:
        return []
    inputs, (outputs,) = [matrix for matrices in parts[:-1] for matrix in matrices], parts[-1]
    return [(tuple(each[expert] for each in inputs), outputs[expert].T) for expert in range(len(outputs))]


def shared_matrices(
    model: PreTrainedModel, anatomy: Anatomy, layer: int
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor] | None:
    """Return the matrices of an MLP beside the experts, as `neuron_matrices` does; None if there is none."""
    specs = [spec for spec in anatomy.of_layer(layer) if len(spec.shape) == 2 and SHARED in spec.labels]
    inputs = tuple(parameter(model, spec.name) for spec in specs if spec.labels[0] == SHARED)
    outputs = [parameter(model, spec.name) for spec in specs if spec.labels[1] == SHARED]
    return (inputs, outputs[0]) if inputs and outputs else None


def shared_output(anatomy: Anatomy, layer: int) -> str | None:
    """Return the name of the module through which an MLP beside the experts writes; None if there is none."""
    specs = (spec for spec in anatomy.of_layer(layer) if len(spec.shape) == 2 and spec.labels[1] == SHARED)
    return next((spec.module for spec in specs), None)


def value_matrix(model: PreTrainedModel, anatomy: Anatomy, layer: int) -> torch.Tensor:
    """Return the matrix that computes the values of a layer's attention, if `has_value_matrix`.

    Returns:
        `[key/value heads · head size, channels]`. A view, not a copy.
    """
    matrices = [
        matrix
        for spec in _key_value_specs(anatomy, layer)
        for part, matrix in _unfused(model, anatomy, spec)
        if part == KEY_VALUE
    ]
    return matrices[-1]  # In every family, the values come after the keys.


def has_value_matrix(anatomy: Anatomy) -> bool:
    """Return whether each layer computes its values from the residual stream by one matrix.

    Multi-head latent attention computes them from a latent vector instead, and layers may share those of another.
    """
    return all(_key_value_specs(anatomy, layer) for layer in range(anatomy.layers))


def _key_value_specs(anatomy: Anatomy, layer: int) -> list[TensorSpec]:
    """Return the matrices that compute keys and values from the residual stream."""
    return [
        spec
        for spec in anatomy.of_layer(layer)
        if spec.component == "attention" and len(spec.shape) == 2 and CHANNEL in spec.labels
        if any(KEY_VALUE in (label if isinstance(label, tuple) else (label,)) for label in spec.labels)
    ]


def _unfused(
    model: PreTrainedModel, anatomy: Anatomy, spec: TensorSpec
) -> Iterator[tuple[Label, torch.Tensor]]:
    """Yield the matrices side by side in one that reads the residual stream.

    Yields:
        The kind of unit, and the part of the matrix `[entries, channels]`, or one for each expert
        `[experts, entries, channels]`. Views, not copies.
    """
    tensor = parameter(model, spec.name)
    last = len(spec.labels) - 1
    axis = 2 * last - 1 - spec.labels.index(CHANNEL)
    start = 0
    for part, count, width in anatomy.segments(spec.labels[axis], tensor.shape[axis]):
        matrix = tensor.narrow(axis, start, count * width)
        matrix = matrix if axis < last else matrix.mT
        if kind_of(part) == NEURON:
            # Several rows of one neuron stand beside each other.
            yield from ((part, matrix[..., row::width, :]) for row in range(width))
        else:
            yield part, matrix
        start += count * width


def as_channels_first(weight: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """Turn an output projection from the family's layout to `[channels, neurons]`, or back."""
    return weight if spec.labels[0] == CHANNEL else weight.T
