"""The files of a model on this machine: config, tokenizer and safetensors headers."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from pruning.architectures.config import config_from_dict
from pruning.errors import ModelError

TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")

RECIPE_FILE = "recipe.yaml"
"""The recipe in the folder of a model that Secateur saved."""

MAX_RECIPE_BYTES = 100_000
"""The largest recipe that is read for its `kept_layers` alone."""

WEIGHT_FILES = ("model*.safetensors",)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of each tensor, as the headers of safetensors files give them."""


def is_complete(folder: Path) -> bool:
    """Return whether a cached folder holds everything that a model needs, with no file cut short."""
    if not is_readable(folder / "config.json") or not has_tokenizer(os.listdir(folder)):
        return False
    try:
        return bool(read_headers(weight_files(folder))) and all(map(is_readable, folder.glob("*.json")))
    except ModelError:
        return False


def is_readable(file: Path) -> bool:
    """Return whether a file holds valid JSON."""
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return True


def has_tokenizer(names: Iterable[str]) -> bool:
    """Return whether a list of file names has a tokenizer in it."""
    return any(name in names for name in TOKENIZER_FILES)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a file name matches any of some patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def read_config_file(folder: Path) -> PreTrainedConfig:
    """Read the config in a folder. Raises `ModelError` if it is not one of a known family."""
    return config_from_values(read_json(folder / "config.json"))


def config_from_values(values: dict[str, Any]) -> PreTrainedConfig:
    """Build a config from the values of a config.json. Raises `ModelError`."""
    # Attention kernels that a config asks for may be missing here, or be code to download.
    ours = {key: value for key, value in values.items() if not key.endswith("attn_implementation")}
    return config_from_dict(ours)


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a model, none outside its folder; an empty list if one is missing."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single] if single.is_file() else []
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError(f"{index.name} in {folder.name} has no weight_map. Save the model again.")
    names = sorted({str(name) for name in shards.values()})
    if any("/" in name or "\\" in name for name in names):
        raise ModelError("The index of the weights names files outside of its folder. It is refused.")
    files = [folder / name for name in names]
    return files if all(file.is_file() for file in files) else []


def kept_layers_in(folder: Path) -> tuple[int, ...] | None:
    """Return the `kept_layers` that the recipe in a folder records, or None."""
    file = folder / RECIPE_FILE
    try:
        if file.stat().st_size > MAX_RECIPE_BYTES:
            return None
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        layers = values.get("kept_layers") if isinstance(values, dict) else None
        return tuple(map(int, layers)) if layers else None
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return None


def digest_of(files: list[Path]) -> str:
    """Return the SHA-256 of some files' SHA-256s: the revision of a model in a folder."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{total.hexdigest()}"


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `ModelError` if there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"There is no {file.name} in {file.parent.name}, so it is not a model.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file.name} in {file.parent.name} cannot be read: {error}.") from None
    if not isinstance(values, dict):
        raise ModelError(f"{file.name} in {file.parent.name} is not a JSON object.")
    return values


def first_line(error: Exception) -> str:
    """Return the first line of another library's message, at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def read_headers(files: Iterable[Path]) -> Tensors:
    """Read the dtype and shape of each tensor in safetensors files, but no values.

    Raises:
        ModelError: A file is damaged.
    """
    headers: Tensors = {}
    for file in files:
        with reading_weights(file), safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                part = tensors.get_slice(name)
                headers[name] = part.get_dtype(), tuple(part.get_shape())
    return headers


def main_dtype(tensors: Tensors) -> torch.dtype:
    """Return the dtype that most weights have."""
    numbers: Counter[str] = Counter()
    for dtype, shape in tensors.values():
        numbers[dtype] += prod(shape)
    dtype = max(FLOATS, key=lambda name: numbers[name])
    return FLOATS[dtype] if numbers[dtype] else torch.bfloat16


@contextmanager
def reading_weights(file: Path) -> Iterator[None]:
    """Turn the errors that safetensors raises on a damaged file into one sentence."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"The weights file {file.name} is damaged ({first_line(error)}). "
            "Delete it and load the model again."
        ) from error
