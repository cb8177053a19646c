"""Where a saved model comes from, as its card and the headers of its weights files both state it."""

import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from pruning.files import replacing
from pruning.loading.source import Source
from pruning.recipe import Recipe
from pruning.version import __version__

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")
"""What the numbers in a weights file may depend on, besides the recipe."""


def provenance(source: Source, recipe: Recipe) -> dict[str, str]:
    """Return the base and its revision, the recipe's digest, and the versions of the libraries.

    There is no time of day, so that the same recipe keeps giving the same file.
    """
    return {
        "base_model": source.base.hub_id
        or (recipe.base if source.adapter is None else source.base.folder.name),
        "base_revision": str(source.base.revision),
        **(
            {}
            if source.adapter is None
            else {"adapter": recipe.base, "adapter_revision": str(source.revision)}
        ),
        "recipe": recipe.digest,
        "secateur": __version__,
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def write_safetensors_metadata(file: Path, facts: Mapping[str, str]) -> None:
    """Write facts into the metadata of a safetensors file, sorted; the tensors stay as they are.

    The safetensors library writes metadata in an order that differs between processes, so that equal
    models would be unequal files. The format is the length of the header in eight bytes, the header in
    JSON, padded with spaces, and the tensors: https://github.com/huggingface/safetensors#format
    """
    with replacing(file) as temporary, file.open("rb") as old, temporary.open("wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        metadata = header.pop("__metadata__", {}) | facts
        text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":"))
        padded = text.encode() + b" " * (-len(text) % 8)
        new.write(len(padded).to_bytes(8, "little") + padded)
        shutil.copyfileobj(old, new, 2**20)


def read_safetensors_metadata(file: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file; empty if it has none."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return header.get("__metadata__", {})
