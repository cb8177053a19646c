"""A criterion from a file of the user's own, which is run: only for the owner of the machine."""

import importlib.util
import sys
from pathlib import Path

from pruning.criteria.base import OWN, Criterion
from pruning.errors import PruningError, RecipeError


def is_file_name(text: str) -> bool:
    """Return whether a text names a criterion in a file, as `file.py:name`."""
    file, colon, _ = text.rpartition(":")
    return bool(colon) and file.endswith(".py")


def load_criterion(text: str) -> Criterion:
    """Run a file of Python and return a criterion that it defines.

    Args:
        text: `file.py:name`.

    Raises:
        RecipeError: The file does not exist or fails, or does not define the criterion.
    """
    path, _, name = text.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise RecipeError(f"There is no file {path} to read the criterion {name} from.")
    module_name = f"secateur_criteria_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # Dataclasses and the source of functions are looked up there.
    before = dict(OWN)
    try:
        spec.loader.exec_module(module)
    except PruningError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise RecipeError(f"{path} cannot be run: {type(error).__name__}: {reason}") from error
    if name in OWN and OWN[name] is not before.get(name):
        return OWN[name]
    named = getattr(module, name, None)
    if isinstance(named, Criterion):
        return named
    hint = "Decorate the function with @pruning.criterion." if callable(named) else "Check the name."
    raise RecipeError(f"{path} defines no criterion {name}. {hint}")
