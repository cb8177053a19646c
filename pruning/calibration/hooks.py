"""Seeing what passes through the modules of a model while it reads."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

Called = Callable[[tuple, Mapping[str, object]], None]
Returned = Callable[[tuple, Mapping[str, object], object], None]


@contextmanager
def hooks(
    model: nn.Module, before: Mapping[str, Called] | None = None, after: Mapping[str, Returned] | None = None
) -> Iterator[None]:
    """Tell with what each module is called (`before`, by module name) and what it returns (`after`).

    Only of calls by this thread: someone else may be writing text with the same model meanwhile.
    """
    reader = threading.get_ident()

    def watch(module, *values, see):
        if threading.get_ident() == reader:
            see(*values)

    handles = [
        model.get_submodule(name).register_forward_pre_hook(partial(watch, see=see), with_kwargs=True)
        for name, see in (before or {}).items()
    ] + [
        model.get_submodule(name).register_forward_hook(partial(watch, see=see), with_kwargs=True)
        for name, see in (after or {}).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hidden_states(positional: tuple, named: Mapping[str, object]) -> torch.Tensor:
    """What a layer is given to work on, `[1, tokens, channels]`."""
    return positional[0] if positional else named["hidden_states"]


def first(output: object) -> torch.Tensor:
    """The hidden states among what a layer returns."""
    return output[0] if isinstance(output, tuple) else output
