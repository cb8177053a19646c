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

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from pruning.architectures.config import config_from_dict
from pruning.errors import ModelError

TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")

RECIPE_FILE = "recipe.yaml"
"""The recipe that a model made here carries."""

WEIGHT_FILES = ("model*.safetensors",)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of each tensor, as the headers of safetensors files give them."""


def is_complete(folder: Path) -> bool:
    """Whether a folder of a cache holds all that a model needs, and none of it was cut short."""
    if not is_readable(folder / "config.json") or not has_tokenizer(os.listdir(folder)):
        return False
    try:
        return bool(read_headers(weight_files(folder))) and all(map(is_readable, folder.glob("*.json")))
    except ModelError:
        return False


def is_readable(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return True


def has_tokenizer(names: Iterable[str]) -> bool:
    return any(name in names for name in TOKENIZER_FILES)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def read_config_file(folder: Path) -> PreTrainedConfig:
    return config_from_values(read_json(folder / "config.json"))


def config_from_values(values: dict) -> PreTrainedConfig:
    # Attention kernels that a config asks for may not be here, or be code to download.
    ours = {key: value for key, value in values.items() if not key.endswith("attn_implementation")}
    return config_from_dict(ours)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, none outside of its folder; empty where one is missing."""
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


def digest_of(files: list[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{total.hexdigest()}"


def read_json(file: Path) -> dict:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"There is no {file.name} in {file.parent.name}: it is no model.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file.name} in {file.parent.name} cannot be read: {error}.") from None
    if not isinstance(values, dict):
        raise ModelError(f"{file.name} in {file.parent.name} is not a JSON object.")
    return values


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def read_headers(files: Iterable[Path]) -> Tensors:
    """What safetensors files hold, without reading it. Raises `ModelError` where one is damaged."""
    found: Tensors = {}
    for file in files:
        with reading_weights(file), safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                part = tensors.get_slice(name)
                found[name] = part.get_dtype(), tuple(part.get_shape())
    return found


def main_dtype(tensors: Tensors) -> torch.dtype:
    """The dtype of most weights."""
    numbers: Counter[str] = Counter()
    for dtype, shape in tensors.values():
        numbers[dtype] += prod(shape)
    dtype = max(FLOATS, key=lambda name: numbers[name])
    return FLOATS[dtype] if numbers[dtype] else torch.bfloat16


@contextmanager
def reading_weights(file: Path) -> Iterator[None]:
    """Turn what safetensors says of a damaged file into one sentence."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"The weights file {file.name} is damaged ({first_line(error)}). "
            "Delete it and load the model again."
        ) from error
