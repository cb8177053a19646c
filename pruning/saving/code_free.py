"""No code goes out: nothing in a saved model makes a program load code that comes with it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pruning.errors import ModelError
from pruning.files import replacing
from pruning.loading.repo_files import CODE_KEYS

KERNEL_KEY = "attn_implementation"
"""The end of the keys that may name an attention kernel on the Hub, as OWNER/NAME."""

CODE_SUFFIXES = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib"})
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
"""Files that run code when they are read as weights."""

_VOCABULARIES = ("vocab.json", "added_tokens.json")
"""Files whose keys are tokens, and nothing that a program obeys."""


def strip_code(folder: Path) -> None:
    """Remove what would load code from the files in a folder: modules, and keys of JSON files."""
    for file in _files(folder):
        if is_code(file.name):
            file.unlink()
        elif file.suffix.lower() == ".json":
            values = _read(file)
            if next(_code_keys(values, file), None) is not None:
                with replacing(file) as temporary:
                    text = json.dumps(_stripped(values), indent=2, ensure_ascii=False) + "\n"
                    temporary.write_text(text, encoding="utf-8")


def check_code_free(folder: Path) -> None:
    """Check that nothing in a folder loads code.

    Raises:
        ModelError: There is a module or a pickle, a JSON file asks for code, or one cannot be read.
    """
    for file in _files(folder):
        name = file.relative_to(folder).as_posix()
        if is_code(name):
            raise ModelError(f"{name} in {folder.name} is code, or can hold some. Remove it from the folder.")
        if file.suffix.lower() == ".json" and (key := next(_code_keys(_read(file), file), None)):
            raise ModelError(
                f"{name} in {folder.name} asks for code of its own ({key}), which is refused. "
                f"Remove {key} from it."
            )


def is_code(name: str) -> bool:
    """Return whether a file of this name is code, or may hold code that runs when it is read."""
    return Path(name).suffix.lower() in CODE_SUFFIXES | PICKLE_SUFFIXES


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ModelError(f"{file.name} in {file.parent.name} cannot be read. Save the model again.") from None


def _code_keys(values: Any, file: Path) -> Iterator[str]:
    """Yield the keys in the values of a JSON file that ask for code, at any depth."""
    if file.name in _VOCABULARIES and all(type(value) is int for value in _items(values).values()):
        return
    waiting = [_without_vocabulary(values, file)]
    while waiting:
        value = waiting.pop()
        waiting += value if isinstance(value, list) else _items(value).values()
        for key, part in _items(value).items():
            if _asks_for_code(key, part):
                yield key


def _asks_for_code(key: str, value: Any) -> bool:
    return key in CODE_KEYS or (key.endswith(KERNEL_KEY) and "/" in str(value)[:1000])


def _without_vocabulary(values: Any, file: Path) -> Any:
    """Return the values of tokenizer.json without the table whose keys are tokens."""
    model = _items(values).get("model") if file.name == "tokenizer.json" else None
    if not isinstance(model, dict):
        return values
    return values | {"model": {key: part for key, part in model.items() if key != "vocab"}}


def _items(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _stripped(values: Any) -> Any:
    """Return the values of a JSON file without the keys that ask for code."""
    if isinstance(values, list):
        return [_stripped(value) for value in values]
    if isinstance(values, dict):
        return {key: _stripped(value) for key, value in values.items() if not _asks_for_code(str(key), value)}
    return values
