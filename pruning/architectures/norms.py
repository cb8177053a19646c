"""What the norms of a model do, found by running them: what is added to their weights, and where they stand."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from pruning.architectures.tiny_model import random_model


def norm_offset(norm: nn.Module) -> float | None:
    """Return what a norm adds to its weight before it multiplies: 0 for most, 1 for Gemma's; None if neither.

    Args:
        norm: The norm, on the meta device.
    """
    module = copy.deepcopy(norm).to_empty(device="cpu")
    weight = module.get_parameter("weight")
    states = torch.linspace(-1, 2, len(weight))[None]
    outputs = []
    for value in (0.0, 1.0):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
            weight.fill_(value)
            outputs.append(module(states))
    step = outputs[1] - outputs[0]
    return next(
        (offset for offset in (0.0, 1.0) if torch.allclose(outputs[0], offset * step, atol=1e-4)), None
    )


def post_norms(config: PreTrainedConfig, place: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the norms of a layer whose input is what another part of the layer just put out.

    Args:
        config: The config of a small model.
        place: The name of the module that holds the layers.
        names: The norms of a layer, by their names in it.
    """
    model = random_model(config)
    layer = model.get_submodule(place).get_submodule("0")
    outputs: set[int] = set()
    found: dict[str, bool] = {}
    held: list[torch.Tensor] = []  # So that no other tensor takes the place of one that was put out.

    def note_output(_module: nn.Module, _args: Any, _named: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if isinstance(states, torch.Tensor):
            held.append(states)
            outputs.add(states.data_ptr())

    def note_input(name: str) -> Any:
        def note(_module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            states = args[0] if args else next(iter(named.values()))
            found[name] = states.data_ptr() in outputs

        return note

    handles = [
        child.register_forward_hook(note_output, with_kwargs=True)
        for name, child in layer.named_children()
        if name not in names
    ] + [
        layer.get_submodule(name).register_forward_pre_hook(note_input(name), with_kwargs=True)
        for name in names
    ]
    try:
        with torch.inference_mode():
            model(input_ids=torch.arange(8)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(name for name in names if found.get(name))
