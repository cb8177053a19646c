"""PyTorch, transformers and accelerate, imported when something of theirs is first used.

They take seconds to import. A module that says `from pruning.lazy import torch` instead of `import torch` does not
import them, so commands that read only a config start right away. Such a module must not use them at the top level: not
as a base class, a decorator or a default value. `tests/pruning/test_start.py` shows the place that does.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

_WAITING: dict[str, list[Callable[[], None]]] = {}
"""What is to be done once a module is imported, by its name."""


class LazyModule(ModuleType):
    """A module that is imported when something in it is first used."""

    def __getattr__(self, name: str) -> object:
        """Return what the module itself has under a name."""
        module = import_module(self.__name__)
        while waiting := _WAITING.get(self.__name__):
            waiting.pop()()
        return getattr(module, name)

    def __dir__(self) -> list[str]:
        """Return the names in the module itself."""
        return dir(import_module(self.__name__))


def after_import(name: str, action: Callable[[], None]) -> None:
    """Do something once a module of this file is imported: before anything in it is used, and now if it is imported.

    Args:
        name: Its name.
        action: What to do.
    """
    if name in sys.modules:
        action()
    else:
        _WAITING.setdefault(name, []).append(action)


if TYPE_CHECKING:
    import accelerate as accelerate
    import pyarrow as pyarrow
    import pyarrow.compute as pyarrow_compute
    import pyarrow.parquet as pyarrow_parquet
    import safetensors as safetensors
    import safetensors.torch as safetensors_torch
    import tokenizers as tokenizers
    import torch as torch
    import transformers as transformers
    from torch import nn as nn
else:
    accelerate = LazyModule("accelerate")
    nn = LazyModule("torch.nn")
    pyarrow = LazyModule("pyarrow")
    pyarrow_compute = LazyModule("pyarrow.compute")
    pyarrow_parquet = LazyModule("pyarrow.parquet")
    safetensors = LazyModule("safetensors")
    safetensors_torch = LazyModule("safetensors.torch")
    tokenizers = LazyModule("tokenizers")
    torch = LazyModule("torch")
    transformers = LazyModule("transformers")
