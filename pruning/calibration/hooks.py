"""Observe the inputs and outputs of a model's modules while it reads a text, or replace the outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import cast

from pruning.lazy import nn, torch

InputHook = Callable[[tuple, Mapping[str, object]], None]
"""Receives the positional and the keyword arguments of a module's call."""

OutputHook = Callable[[tuple, Mapping[str, object], object], object]
"""Receives the positional and the keyword arguments of a module's call, and its output. What it returns, unless None,
replaces that output."""


@contextmanager
def hooks(
    model: nn.Module,
    before: Mapping[str, InputHook] | None = None,
    after: Mapping[str, OutputHook] | None = None,
) -> Iterator[None]:
    """Observe the calls of some modules while the block runs.

    Only calls by this thread are observed: another one may be generating text with the same model.

    Args:
        model: The model that holds the modules.
        before: For the name of a module, the function that receives its arguments.
        after: For the name of a module, the function that receives its arguments and its output, and may replace it.
    """
    observing_thread = threading.get_ident()

    def observe(_module: nn.Module, *values: object, hook: Callable[..., object]) -> object:
        return hook(*values) if threading.get_ident() == observing_thread else None

    handles = [
        model.get_submodule(name).register_forward_pre_hook(partial(observe, hook=hook), with_kwargs=True)
        for name, hook in (before or {}).items()
    ] + [
        model.get_submodule(name).register_forward_hook(partial(observe, hook=hook), with_kwargs=True)
        for name, hook in (after or {}).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_states(args: tuple, kwargs: Mapping[str, object]) -> torch.Tensor:
    """Return the hidden states among the arguments of a layer's call, `[1, tokens, channels]`."""
    return cast(torch.Tensor, args[0] if args else kwargs["hidden_states"])


def output_states(output: object) -> torch.Tensor:
    """Return the hidden states among the outputs of a layer, `[1, tokens, channels]`."""
    return cast(torch.Tensor, output[0] if isinstance(output, tuple | list) else output)
