"""Prune small language models: cut, repair, compare, save, publish.

The names of the public API are listed in `__init__.pyi` and imported on first use, so that importing `pruning` loads
neither PyTorch nor transformers.
"""

from importlib import import_module
from importlib.util import find_spec

import lazy_loader

from pruning.version import __version__ as __version__

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Import a public name, or a module of the package such as `pruning.recipe`."""
    if name in __all__ or find_spec(f"{__name__}.{name}") is None:
        return _load(name)
    return import_module(f"{__name__}.{name}")
