"""The files of a model on this machine: whether they are complete, and the headers of its weights."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pruning.architectures.config import config_from_dict
from pruning.architectures.known import plain_config
from pruning.architectures.multimodal import TEXT, is_multimodal, text_values
from pruning.errors import ModelError
from pruning.lazy import safetensors, torch
from pruning.loading.metadata import RECIPE_FILE as RECIPE_FILE
from pruning.loading.repo_files import CONFIG_FILE, TEXT_FILES, has_tokenizer, read_json, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The names in PyTorch of the dtypes of safetensors that weights have."""

_FOLDERS = re.compile(r"(?<![\w:/])(?:/[^\s/'\":,]+)+/")

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of each tensor, as the headers of safetensors files give them."""


def is_complete(folder: Path) -> bool:
    """Return whether a cached folder holds everything that a model needs, with no file cut short."""
    if not is_readable(folder / CONFIG_FILE) or not has_tokenizer(os.listdir(folder)):
        return False
    files = [folder / name for name in TEXT_FILES if name.endswith(".json")]
    try:
        return bool(read_headers(weight_files(folder))) and all(map(is_readable, filter(Path.exists, files)))
    except ModelError:
        return False


def is_readable(file: Path) -> bool:
    """Return whether a file holds valid JSON."""
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return True


def read_config_file(folder: Path, plain: bool = False) -> PreTrainedConfig:
    """Read the config in a folder, which was checked when it came here.

    Args:
        folder: The folder.
        plain: Whether a config suffices that stands for it in arithmetic, which may be known already.

    Raises:
        ModelError: It is not one of a known family.
    """
    return config_from_values(read_json(folder / CONFIG_FILE), plain)


def config_from_values(values: dict[str, Any], plain: bool = False) -> PreTrainedConfig:
    """Build a config from the values of a config.json; of a multimodal model, that of its text half.

    Args:
        values: The content of the file.
        plain: Whether a config suffices that stands for it in arithmetic, which may be known already.

    Raises:
        ModelError: They describe no model that can be used.
    """
    if plain:
        return cast("PreTrainedConfig", plain_config(values, lambda: config_from_values(values)))
    ours = _without_code(values)
    if is_multimodal(ours):
        if isinstance(own := ours.get(TEXT), dict):
            ours[TEXT] = _without_code(own)
        ours = text_values(ours)
    return config_from_dict(ours)


def _without_code(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a config without those that name code.

    Attention kernels that a config asks for may be missing here, or be code to download. transformers knows the types
    of model that are read here itself.
    """
    return {
        key: value
        for key, value in values.items()
        if not key.endswith("attn_implementation") and key != "auto_map"
    }


def digest_of(files: list[Path]) -> str:
    """Return the SHA-256 of some files' SHA-256s: the revision of a model in a folder."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{total.hexdigest()}"


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, at most 300 characters, with no folder's path in it."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _FOLDERS.sub("", line[:2_000])[:300]


def read_headers(files: Iterable[Path]) -> Tensors:
    """Read the dtype and shape of each tensor in safetensors files, but no values.

    Raises:
        ModelError: A file is damaged.
    """
    headers: Tensors = {}
    for file in files:
        with reading_weights(file), safetensors.safe_open(file, framework="pt") as tensors:
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
    return getattr(torch, FLOATS[dtype]) if numbers[dtype] else torch.bfloat16


@contextmanager
def reading_weights(file: Path) -> Iterator[None]:
    """Turn the errors that safetensors raises on a damaged file into one sentence."""
    try:
        yield
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(
            f"The weights file {file.name} is damaged ({first_line(error)}). "
            "Delete it and load the model again."
        ) from error
