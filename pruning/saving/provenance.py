"""Where a saved model came from, as its card and the headers of its weights files both say it."""

import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.files import replacing

if TYPE_CHECKING:
    from pruning.pipeline import Pruned

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")
"""What the numbers in a weights file may depend on, besides the recipe."""


def provenance(pruned: "Pruned") -> dict[str, str]:
    """The base and its revision, the recipe's digest, and the versions of the libraries.

    No time of day, so that the same recipe keeps giving the same file.
    """
    from pruning import __version__

    return {
        "base_model": pruned.source.hub_id or pruned.recipe.base,
        "base_revision": str(pruned.source.revision),
        "recipe": pruned.recipe.digest,
        "secateur": __version__,
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def write_safetensors_metadata(file: Path, facts: Mapping[str, str]) -> None:
    """Put facts into the metadata of a safetensors file, sorted; the tensors stay as they are.

    The safetensors library writes metadata in an order that differs from process to process, so that
    equal models would be unequal files. The format is the length of the header in eight bytes, the
    header in JSON, padded with spaces, and the tensors: https://github.com/huggingface/safetensors#format
    """
    with replacing(file) as temporary, file.open("rb") as old, temporary.open("wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        metadata = header.pop("__metadata__", {}) | facts
        text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":"))
        padded = text.encode() + b" " * (-len(text) % 8)
        new.write(len(padded).to_bytes(8, "little") + padded)
        shutil.copyfileobj(old, new, 2**20)


def read_safetensors_metadata(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty where it has none."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return header.get("__metadata__", {})
