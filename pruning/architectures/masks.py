"""Remove units of a small model by hand, with hooks on the model itself: what a cut must compute."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.families import CHANNEL, EXPERT, KEY_VALUE, LAYER, NEURON, QUERY, SHARED, TOKEN

Kept = Mapping[str, Sequence[torch.Tensor]]
"""For each kind of unit, the kept indices of each layer; for the layers themselves, one entry."""


class Removable(Protocol):
    """Something that was done to a model, and can be undone."""

    def remove(self) -> None:
        """Undo it."""


@contextmanager
def masked(model: PreTrainedModel, anatomy: Anatomy, kept: Kept) -> Iterator[None]:
    """Mask the units of a model that are not kept, as long as the block runs.

    - Neurons and query heads: the inputs of the projection through which they write are zero.
    - Layers: their output is their input.
    - Channels: embeddings and norms give zero there, and a norm divides by the moments of the channels kept.
    - Experts: the router never chooses them.
    - Tokens need no mask: their logits are left out.

    Args:
        model: The uncut model.
        anatomy: Its anatomy.
        kept: The units kept.
    """
    with ExitStack() as stack:
        for kind in kept:
            for handle in _MASKS[kind](model, anatomy, kept):
                stack.callback(handle.remove)
        yield


def _mask_inputs(kind: str) -> Callable[..., Iterator[Removable]]:
    def mask(model: PreTrainedModel, anatomy: Anatomy, kept: Kept) -> Iterator[Removable]:
        for layer in range(anatomy.layers):
            name = anatomy.output_projection(layer, kind)
            if f"{name}.weight" not in anatomy.names:
                continue
            spec = anatomy.tensor(f"{name}.weight")
            units = torch.zeros(anatomy.units[kind])
            units[kept[kind][layer]] = 1
            entries = units.repeat_interleave(spec.shape[spec.labels.index(kind)] // len(units))

            def zero(
                _module: nn.Module, args: tuple[Any, ...], entries: torch.Tensor = entries
            ) -> tuple[Any, ...]:
                return (args[0] * entries, *args[1:])

            yield model.get_submodule(name).register_forward_pre_hook(zero)

    return mask


def _mask_neurons(model: PreTrainedModel, anatomy: Anatomy, kept: Kept) -> Iterator[Removable]:
    """Mask the inputs of the projection that neurons write through; inside experts, its columns."""
    if not anatomy.family.neurons_in_experts:
        yield from _mask_inputs(NEURON)(model, anatomy, kept)
        return
    remaining = set(kept[LAYER][0].tolist()) if LAYER in kept else set(range(anatomy.layers))
    for spec in anatomy.tensors:
        # What a removed layer would keep is not known.
        if spec.layer is None or spec.layer not in remaining or CHANNEL not in spec.labels:
            continue
        if anatomy.writes_neurons(spec) and spec.labels[0] == EXPERT:
            removed = torch.ones(anatomy.units[EXPERT], anatomy.units[NEURON], dtype=torch.bool)
            removed.scatter_(1, kept[NEURON][spec.layer], False)
            across = removed[:, None] if spec.labels[2] == NEURON else removed[:, :, None]
            yield _Replaced(model, spec.name, across, 0.0)
        elif spec.labels == (CHANNEL, SHARED):
            units = torch.ones(anatomy.units[NEURON], dtype=torch.bool)
            units[kept[SHARED][spec.layer]] = False
            yield _Replaced(model, spec.name, units.repeat_interleave(spec.shape[1] // len(units)), 0.0)


def _skip_layers(model: PreTrainedModel, anatomy: Anatomy, kept: Kept) -> Iterator[Removable]:
    remaining = set(kept[LAYER][0].tolist())

    def skip(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        given = args[0] if args else named["hidden_states"]
        return given if isinstance(output, torch.Tensor) else (given, *output[1:])

    for layer in range(anatomy.layers):
        if layer not in remaining:
            module = model.get_submodule(anatomy.layer_module(layer))
            yield module.register_forward_hook(skip, with_kwargs=True)


def _mask_channels(model: PreTrainedModel, anatomy: Anatomy, kept: Kept) -> Iterator[Removable]:
    mask = torch.zeros(anatomy.units[CHANNEL])
    mask[kept[CHANNEL][0]] = 1
    # Embeddings that are multiplied by √(hidden size) become smaller.
    embedded = mask * (mask.mean().sqrt() if anatomy.family.embedding_scale else 1)
    for name in sorted({spec.module for spec in anatomy.tensors if CHANNEL in spec.labels}):
        module = model.get_submodule(name)
        if isinstance(module, nn.Embedding):
            yield module.register_forward_hook(lambda _module, _args, output: output * embedded)
    for spec in anatomy.norms:
        module = model.get_submodule(spec.module)
        yield module.register_forward_pre_hook(_NormInput(mask))
        yield module.register_forward_hook(_NormOutput(mask))


class _NormInput:
    """Give a norm an input whose moments are those of the channels kept, up to a scale."""

    def __init__(self, mask: torch.Tensor) -> None:
        self._mask = mask

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        mask, states = self._mask, args[0]
        scale = (len(mask) / mask.sum()).sqrt()
        if isinstance(module, nn.LayerNorm) or _subtracts_mean(module):
            mean = (states * mask).sum(-1, keepdim=True) / mask.sum()
            return (torch.where(mask.bool(), mean + scale * (states - mean), mean), *args[1:])
        return (states * mask * scale, *args[1:])


class _NormOutput:
    """Undo the scale of `_NormInput`, and give nothing on the channels that were removed."""

    def __init__(self, mask: torch.Tensor) -> None:
        self._mask = mask

    def __call__(self, module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        mask = self._mask
        bias = getattr(module, "bias", None)
        shift = bias if isinstance(bias, torch.Tensor) else torch.zeros(())
        return ((output - shift) * (mask.sum() / len(mask)).sqrt() + shift) * mask


def _subtracts_mean(module: nn.Module) -> bool:
    """Return whether a norm of transformers' own gives the same for an input moved by a constant."""
    width = next(module.parameters()).shape[-1]
    probe = torch.linspace(-1, 1, width)[None]
    raw = type(module).forward
    return bool(torch.allclose(raw(module, probe), raw(module, probe + 1), atol=1e-4))


def _mask_experts(model: PreTrainedModel, anatomy: Anatomy, kept: Kept) -> Iterator[Removable]:
    """Make the score of removed experts the least there is, in the router and in what corrects its choice."""
    routers: dict[int, torch.Tensor] = {}
    for spec in (*anatomy.tensors, *anatomy.buffers):
        if spec.layer is None or spec.labels[0] != EXPERT or len(spec.shape) > 2:
            continue
        removed = torch.ones(anatomy.units[EXPERT], dtype=torch.bool)
        removed[kept[EXPERT][spec.layer]] = False
        name = spec.name.rpartition(".")[2]
        if spec.labels == (EXPERT, CHANNEL):
            routers[id(getattr(model.get_submodule(spec.module), name))] = removed
        elif spec.labels == (EXPERT,) and name != "bias":
            yield _Replaced(model, spec.name, removed, float("-inf"))
    yield _Routing(routers)


class _Replaced:
    """A tensor of a model in whose place stands another, with one value where units were removed."""

    def __init__(self, model: PreTrainedModel, name: str, removed: torch.Tensor, by: float) -> None:
        module, _, self._name = name.rpartition(".")
        self._module = model.get_submodule(module)
        self._before = getattr(self._module, self._name)
        values = self._before.masked_fill(removed, by)
        is_parameter = isinstance(self._before, nn.Parameter)
        setattr(
            self._module, self._name, nn.Parameter(values, requires_grad=False) if is_parameter else values
        )

    def remove(self) -> None:
        """Put the tensor back."""
        setattr(self._module, self._name, self._before)


class _Routing(TorchFunctionMode):
    """Give removed experts the logit -∞ wherever a router's matrix is multiplied."""

    def __init__(self, routers: Mapping[int, torch.Tensor]) -> None:
        super().__init__()
        self._routers = routers
        self.__enter__()

    def remove(self) -> None:
        """Leave products as they are."""
        self.__exit__(None, None, None)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        output = func(*args, **(kwargs or {}))
        weight = args[1] if len(args) > 1 else (kwargs or {}).get("weight")
        if func is nn.functional.linear and (removed := self._routers.get(id(weight))) is not None:
            return output.masked_fill(removed, float("-inf"))
        return output


def _nothing(_model: PreTrainedModel, _anatomy: Anatomy, _kept: Kept) -> Iterator[Removable]:
    return iter(())


_MASKS = {
    NEURON: _mask_neurons,
    SHARED: _nothing,  # Masked with the experts beside them.
    QUERY: _mask_inputs(QUERY),
    KEY_VALUE: _nothing,  # Their query heads are masked.
    LAYER: _skip_layers,
    CHANNEL: _mask_channels,
    EXPERT: _mask_experts,
    TOKEN: _nothing,
}
