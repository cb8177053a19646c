"""The residual stream before and after every layer of a model that reads a text, and single layers run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.families import CHANNEL
from pruning.architectures.lm_head import backbone
from pruning.architectures.placement import device_map
from pruning.calibration.hooks import InputHook, hooks, input_states, output_states
from pruning.lazy import nn, torch
from pruning.memory import available_memory
from pruning.progress import Progress, Reporter, silent
from pruning.text.tokens import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

States = list["torch.Tensor"]
"""`layers + 1` tensors `[tokens, channels]` in float32: before every layer, and after the last one."""

Inputs = Mapping[str, "torch.Tensor"]
"""The inputs of some modules by their names, each `[tokens, inputs]` in float32."""

MEMORY_SHARE = 4
"""Streams are kept if they take at most this part of the free memory: a quarter."""


@dataclass(frozen=True)
class LayerCall:
    """Everything but the hidden states that a model passes to a layer: masks, positions."""

    args: tuple
    kwargs: Mapping[str, object]

    @classmethod
    def of(cls, args: tuple, kwargs: Mapping[str, object]) -> LayerCall:
        """Return what stands beside the hidden states in the arguments of a layer's call."""
        return cls(args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"})

    def __call__(self, layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
        return output_states(layer(states, *self.args, **self.kwargs))


@dataclass(frozen=True)
class ResidualStreams:
    """The residual streams of a model on a text, for the fitting windows, then the held-out ones.

    The model reads the text whenever they are iterated over. If they are kept, it reads it once: what a projection is
    given is then found by running its layer alone, which gives the same, bit for bit.

    Attributes:
        model: The model.
        anatomy: Its anatomy.
        windows: The text.
        progress: Called before each window.
        keep: Whether to keep them, if they fit into memory.
    """

    model: PreTrainedModel
    anatomy: Anatomy
    windows: Windows
    progress: Reporter = silent
    keep: bool = False
    _kept: list[tuple[States, list[LayerCall]]] = field(default_factory=list, init=False, repr=False)

    def __iter__(self) -> Iterator[States]:
        for states, _ in self.with_inputs({}):
            yield states

    def with_inputs(self, modules: Mapping[str, int]) -> Iterator[tuple[States, Inputs]]:
        """Yield the streams in each window, and what some modules are given there.

        Args:
            modules: The names of the modules, and the number of the layer that each belongs to.
        """
        texts = self.windows.fitting + self.windows.heldout
        is_kept = len(self._kept) == len(texts)
        if not is_kept:
            self._kept.clear()  # A pass that was stopped left a part.
        for number, text in enumerate(texts):
            self.progress(Progress("Measuring the layers, windows", number, len(texts)))
            inputs: dict[str, torch.Tensor] = {}
            with torch.no_grad(), hooks(self.model, {name: _recorder(inputs, name) for name in modules}):
                if is_kept:
                    states, calls = self._kept[number]
                    for layer in sorted(set(modules.values())):
                        module = self.model.get_submodule(self.anatomy.layer_module(layer))
                        calls[layer](module, states[layer][None].to(self.model.dtype))
                else:
                    states, calls = self._read(text)
            if self.fits and not is_kept:
                self._kept.append((states, calls))
            yield states, inputs

    def _read(self, text: torch.Tensor) -> tuple[States, list[LayerCall]]:
        states: States = []
        calls: list[LayerCall] = []

        def record_input(args: tuple, kwargs: Mapping[str, object]) -> None:
            states.append(input_states(args, kwargs)[0].float())
            calls.append(LayerCall.of(args, kwargs))

        def record_output(_args: tuple, _kwargs: Mapping[str, object], output: object) -> None:
            states.append(output_states(output)[0].float())

        layers = [self.anatomy.layer_module(layer) for layer in range(self.anatomy.layers)]
        with hooks(self.model, dict.fromkeys(layers, record_input), {layers[-1]: record_output}):
            backbone(self.model)(input_ids=text[None].to(self.model.device), use_cache=False)
        return states, calls

    @cached_property
    def is_one(self) -> bool:
        """Whether the layers pass on one stream, as all families of the table do; Gemma 3n's pass on four."""
        if not self.anatomy.family.derived:
            return True
        shapes: list[torch.Size] = []

        def record(args: tuple, kwargs: Mapping[str, object]) -> None:
            shapes.append(input_states(args, kwargs).shape)

        ids = torch.zeros(1, 2, dtype=torch.long, device=self.model.device)
        with torch.no_grad(), hooks(self.model, {self.anatomy.layer_module(0): record}):
            backbone(self.model)(input_ids=ids, use_cache=False)
        return shapes == [(1, 2, self.anatomy.units[CHANNEL])]

    @cached_property
    def fits(self) -> bool:
        """Whether they are kept: one stream, on a CPU, if the memory free when the text is first read allows it."""
        on_cpu = self.model.device.type == "cpu" and not device_map(self.model)
        size = bytes_kept(self.windows.tokens, self.anatomy.units[CHANNEL], self.anatomy.layers)
        return self.keep and on_cpu and size <= available_memory() // MEMORY_SHARE and self.is_one


def bytes_kept(tokens: int, channels: int, layers: int) -> int:
    """Return how much memory the streams of a text take, in bytes."""
    return 4 * tokens * channels * (layers + 1)


def _recorder(inputs: dict[str, torch.Tensor], name: str) -> InputHook:
    def record(args: tuple, _kwargs: Mapping[str, object]) -> None:
        inputs[name] = args[0].detach().flatten(0, -2).float()

    return record
