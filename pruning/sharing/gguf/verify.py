"""Verify a GGUF file that Secateur exported: open it, and compare it with what it says of itself."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pruning.architectures.families import CHANNEL, LAYER, NEURON
from pruning.architectures.shape import Shape
from pruning.errors import ModelError, PruningError
from pruning.loading.source import Token
from pruning.previews import preview
from pruning.recipe import Recipe
from pruning.sharing.gguf.compare import measure
from pruning.sharing.gguf.provenance import Origin, origin_of
from pruning.sharing.gguf.quantize import gguf_package, metadata, open_gguf
from pruning.sharing.gguf.types import GGUF_TYPES, check_reader

Found = tuple[str, bool | None, str]
"""A check's name, whether it holds, and what was found."""

_SIZES = {CHANNEL: "embedding_length", LAYER: "block_count", NEURON: "feed_forward_length"}


def is_gguf(name: str) -> bool:
    """Return whether a name is that of a GGUF file on this machine."""
    path = Path(name)
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"GGUF"
    except OSError:
        return False


def _fields(file: Path) -> dict[str, Any]:
    reader = open_gguf(file)
    try:
        return metadata(reader)
    except Exception as error:  # What a damaged file says may be no text.
        raise ModelError(f"{file.name} cannot be read as a GGUF file ({type(error).__name__}).") from None


def read_origin(file: Path) -> Origin:
    """Return what a file says of its origin."""
    return origin_of(_fields(file))


def iter_checks(file: Path, token: Token) -> Iterator[Found]:
    """Check a GGUF file against what its metadata says.

    Args:
        file: The file.
        token: The access token of the caller, for the base's config.

    Yields:
        Each check, in the order in which they are made.

    Raises:
        ModelError: It is not a GGUF file that can be read, or llama.cpp is not installed.
    """
    check_reader()
    fields = _fields(file)
    origin = origin_of(fields)
    yield from _opened(file, origin, fields)
    recipe = None
    if origin.recipe is None:
        yield (
            "recipe",
            None,
            "not checked: the file carries none, so Secateur did not export it from a pruned model",
        )
    else:
        recipe = Recipe.parse(origin.recipe)
        same = recipe.digest == origin.digest
        detail = (
            f"{recipe.digest}, as the file says"
            if same
            else f"{recipe.digest}, the file says {origin.digest}"
        )
        yield "recipe", same, detail
    yield _shape(recipe, fields, token)


def _opened(file: Path, origin: Origin, fields: Mapping[str, Any]) -> Iterator[Found]:
    if origin.prompt is None:
        yield "log-probabilities", None, "not checked: the file does not say what transformers computed"
        return
    kind = GGUF_TYPES.get(_type_of(fields))
    try:
        off = measure(file, origin.prompt, kind, torch.get_num_threads())
    except ModelError as error:
        yield "opened", False, str(error)
        return
    yield "opened", True, "llama.cpp opens it"
    detail = (
        f"after {off.tokens} tokens {off.mean:.4f} on average and {off.largest:.4f} at most from what transformers "
        "computed"
    )
    if off.undecided:
        detail += f", at {off.undecided} of {off.positions} positions with rounded hidden states"
    yield "log-probabilities", None if kind is None else off.is_within(kind), detail


def _type_of(fields: Mapping[str, Any]) -> str:
    try:
        return (
            str(gguf_package().LlamaFileType(fields["general.file_type"]).name)
            .removeprefix("MOSTLY_")
            .lower()
        )
    except (KeyError, ValueError):
        return ""


def _shape(recipe: Recipe | None, fields: Mapping[str, Any], token: Token) -> Found:
    if recipe is None:
        return "shape", None, "not checked: there is no recipe"
    try:
        units = Shape.of(preview(recipe, token=token).after.config).anatomy.units
    except PruningError as error:
        return "shape", None, f"not checked, because the base's config cannot be found: {error}"
    architecture = fields.get("general.architecture")
    found = {kind: fields.get(f"{architecture}.{key}") for kind, key in _SIZES.items()}
    wrong = [
        f"{found[kind]} of {kind}, but the recipe leads to {units[kind]}"
        for kind in _SIZES
        if kind in units and found[kind] is not None and found[kind] != units[kind]
    ]
    return "shape", not wrong, ", ".join(wrong) or "the one that the recipe leads to"
