"""Which files of a model are read: a table of names, each with the largest size that is accepted.

A file that is not in the table is never downloaded, whatever it is called.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pruning.architectures.config import known_types
from pruning.architectures.multimodal import is_multimodal
from pruning.errors import ModelError
from pruning.loading.metadata import MAX_RECIPE_BYTES, RECIPE_FILE

CONFIG_FILE = "config.json"

CARD_FILE = "README.md"

INDEX_FILE = "model.safetensors.index.json"

SINGLE_WEIGHTS_FILE = "model.safetensors"

MAX_CONFIG_BYTES = 1_000_000

MAX_INDEX_BYTES = 10_000_000

TEXT_FILES: Mapping[str, int] = {
    CONFIG_FILE: MAX_CONFIG_BYTES,
    "generation_config.json": 1_000_000,
    "tokenizer.json": 50_000_000,  # Gemma's, the largest of the known families, has 35 MB.
    "tokenizer_config.json": 5_000_000,
    "special_tokens_map.json": 1_000_000,
    "added_tokens.json": 2_000_000,
    "vocab.json": 20_000_000,
    "merges.txt": 20_000_000,
    "tokenizer.model": 20_000_000,
    "chat_template.jinja": 1_000_000,
}
"""The largest size of each file of text that a model may have, in bytes. A larger one is refused."""

OPTIONAL_FILES: Mapping[str, int] = {CARD_FILE: 1_000_000, RECIPE_FILE: MAX_RECIPE_BYTES}
"""Files that describe a model, and that it runs without: a larger one is left out."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""A model needs one of these to read text."""

CODE_KEYS = frozenset(
    {"auto_map", "auto_mapping", "custom_pipelines", "custom_generate", "trust_remote_code", "kernel_config"}
)
"""Keys by which transformers, its pipelines or peft would find code to load, at any depth of a JSON file."""

MAX_WEIGHT_FILES = 100

SETTINGS_FILES = (
    CONFIG_FILE,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
)
"""The JSON files whose keys are settings. In the others, such as vocab.json, keys are tokens."""

MAX_DEPTH = 32

_WEIGHTS_NAME = re.compile(r"model[\w.-]*\.safetensors")

_SHARD_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")


def has_tokenizer(names: Iterable[str]) -> bool:
    """Return whether a list of file names has a tokenizer in it."""
    return any(name in names for name in TOKENIZER_FILES)


def weight_candidates(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes of the files that may hold the weights; which ones do, a model's index says."""
    if SINGLE_WEIGHTS_FILE in sizes:
        return {SINGLE_WEIGHTS_FILE: sizes[SINGLE_WEIGHTS_FILE]}
    return {name: size for name, size in sizes.items() if _WEIGHTS_NAME.fullmatch(name)}


def text_files(name: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes of a model's files of text, the card and the recipe too.

    Args:
        name: The model, for the message.
        sizes: The bytes of each of its files.

    Raises:
        ModelError: One that a model needs is too large.
    """
    for file, limit in TEXT_FILES.items():
        if sizes.get(file, 0) > limit:
            raise ModelError(
                f"{file} of {name} has {format_bytes(sizes[file])}; the limit for this file is "
                f"{format_bytes(limit)}. Choose another model."
            )
    optional = {file for file, limit in OPTIONAL_FILES.items() if sizes.get(file, 0) <= limit}
    return {file: size for file, size in sizes.items() if file in TEXT_FILES or file in optional}


def shards_of(index: Path, name: str) -> list[str]:
    """Return the names of the files that an index of weights lists, all of them beside it.

    Raises:
        ModelError: The index is damaged, or names files elsewhere.
    """
    shards = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ModelError(f"{index.name} of {name} has no weight_map. Save the model again.")
    names = sorted(set(shards.values()))
    if any("/" in shard or "\\" in shard for shard in names):
        raise ModelError(
            f"The index of the weights of {name} names files outside of its folder. It is refused."
        )
    for shard in names:
        if not _SHARD_NAME.fullmatch(shard):
            raise ModelError(
                f"The index of the weights of {name} names {shard[:100]!r}, which is not a safetensors file. "
                "Choose another model."
            )
    if len(names) > MAX_WEIGHT_FILES:
        raise ModelError(
            f"{name} keeps its weights in {len(names)} files; the limit is {MAX_WEIGHT_FILES}. "
            "Choose another model."
        )
    return names


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a model in a folder; an empty list if there are none.

    Raises:
        ModelError: The index names a file that is missing, or one outside the folder.
    """
    single, index = folder / SINGLE_WEIGHTS_FILE, folder / INDEX_FILE
    if single.is_file() or not index.is_file():
        return [single] if single.is_file() else []
    files = [folder / shard for shard in shards_of(index, folder.name)]
    for file in files:
        if not file.is_file():
            raise missing_shard(file.name, folder.name)
    return files


def missing_shard(shard: str, name: str) -> ModelError:
    """Return the error for a file that the index of the weights names, and that is not there."""
    return ModelError(
        f"The weights of {name} are incomplete: {INDEX_FILE} names {shard[:100]}, which is missing. "
        "Download or save the model again."
    )


def read_json(file: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes. Raises `ModelError` if there is none."""
    place = f"{file.name} in {file.parent.name}"
    try:
        if (size := file.stat().st_size) > limit:
            raise ModelError(f"{place} has {format_bytes(size)}; the limit is {format_bytes(limit)}.")
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"There is no {file.name} in {file.parent.name}, so it is not a model.") from None
    except RecursionError:
        raise ModelError(f"{place} cannot be read: it is nested too deeply.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(f"{place} cannot be read: {reason}.") from None
    if not isinstance(values, dict):
        raise ModelError(f"{place} is not a JSON object.")
    return values


def check_settings_files(folder: Path, name: str) -> None:
    """Refuse a model that asks for code of its own in any of its settings, and files that are too large.

    Raises:
        ModelError: A file asks for code, is too large, or is not a JSON object.
    """
    sizes = {file: (folder / file).stat().st_size for file in TEXT_FILES if (folder / file).is_file()}
    text_files(name, sizes)
    for file in SETTINGS_FILES:
        if (folder / file).is_file():
            check_brings_no_code(read_json(folder / file, TEXT_FILES.get(file, MAX_CONFIG_BYTES)), file, name)


def check_brings_no_code(values: Any, file: str, name: str) -> None:
    """Refuse settings that ask for code, at any depth. Raises `ModelError`.

    A config may name code for a type of model that transformers knows itself: its own class is used then.
    """
    # transformers is asked only if that decides.
    if file == CONFIG_FILE and isinstance(values, dict) and "auto_map" in values:
        known = values.get("model_type") in known_types() or is_multimodal(values)
        values = values if not known else {key: value for key, value in values.items() if key != "auto_map"}
    for key, value in _entries(values, file, name):
        if key in CODE_KEYS and value:
            raise ModelError(
                f"{name} brings code of its own ({key} in {file}), which is never run here. Remove {key} from "
                "the file if transformers knows the model without it, or choose another model."
            )


def _entries(values: object, file: str, name: str) -> Iterator[tuple[str, object]]:
    """Yield each key and value of nested JSON objects."""
    level = [values]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for value in level:
            if isinstance(value, dict):
                yield from value.items()
                inner += value.values()
            elif isinstance(value, list):
                inner += value
        level = inner
        if not level:
            return
    raise ModelError(f"{file} of {name} is nested more than {MAX_DEPTH} levels deep. Choose another model.")


def format_bytes(number: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
