"""From a name to a model: find it, check it, read its weights."""

import os
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from accelerate.utils import get_max_memory
from huggingface_hub import HfApi
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pruning import catalog
from pruning.architectures.placement import DISK, device_map
from pruning.architectures.shape import Shape
from pruning.errors import ModelError
from pruning.loading.checks import (
    adapter_message,
    check_config,
    check_finite,
    check_room,
    check_tensors,
    check_tokenizer,
    suggest_default,
)
from pruning.loading.files import (
    RECIPE_FILE,
    digest_of,
    first_line,
    has_tokenizer,
    is_complete,
    main_dtype,
    read_config_file,
    read_headers,
    read_json,
    weight_files,
)
from pruning.loading.hub import (
    MAX_TEXT_BYTES,
    Unreachable,
    check_id,
    check_revision,
    download,
    download_file,
    find_cached,
    format_bytes,
    hub_errors,
    license_of,
)
from pruning.loading.offline import converted_folder, find_offline, is_installed
from pruning.loading.source import Source, Token
from pruning.progress import Progress, Reporter, silent


@dataclass(frozen=True)
class LoadedModel:
    """A base model that nobody changes. `storage_dtype` is the precision its file has."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: Source
    storage_dtype: torch.dtype


@dataclass(frozen=True)
class StoredModel:
    """A model in files on this machine, its weights not read. `dtype` is the precision of most of them."""

    source: Source
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype


def load(
    name: str,
    *,
    revision: str | None = None,
    token: Token = None,
    own_machine: bool = True,
    max_bytes: int | None = None,
    on_disk: bool = False,
    progress: Reporter = silent,
) -> LoadedModel:
    """Load a catalogue name, a Hub id or a folder.

    The Hub is asked for a model's card, files and config before any weight is downloaded, and not
    at all for a model of the catalogue that is already on this machine. `own_machine`: whether the
    caller owns the machine, and so may use its folders and its copies of models that are not
    public; a public page must say False. accelerate places what one device cannot hold on several,
    and leaves what none can hold on disk; `on_disk` leaves everything there, to be read tensor by
    tensor. Code from the Hub is never run; only safetensors are read. Raises `ModelError` for every
    refusal, saying why and what to do.
    """
    source = _find(name, revision, token, own_machine, max_bytes, progress, weights=True)
    progress(Progress("Reading the weights"))
    loaded = _read_weights(source, on_disk)
    if DISK in device_map(loaded.model).values() and not on_disk:
        progress(Progress("Memory does not hold all layers: the others are read from disk, which is slow"))
    return loaded


def read_config(
    name: str,
    *,
    revision: str | None = None,
    token: Token = None,
    own_machine: bool = True,
) -> tuple[PreTrainedConfig, Source]:
    """Only the config of a model: enough for every preview. A folder may hold nothing else."""
    source = _find(name, revision, token, own_machine, None, silent, weights=False)
    return read_config_file(source.folder), source


def _find(
    name: str,
    revision: str | None,
    token: Token,
    own_machine: bool,
    max_bytes: int | None,
    progress: Reporter,
    weights: bool,
) -> Source:
    entry = catalog.find(name)
    if entry is None and own_machine and _is_folder(name):
        return _folder(name, revision, weights)
    if token is None and not own_machine:
        token = False  # The token saved on a machine is its owner's, not its visitors'.
    hub_id = entry.hub_id if entry else name
    if entry and entry.offline and revision == entry.offline.revision:
        return find_offline(entry, progress)
    if entry is None:
        check_id(name, own_machine)
    check_revision(revision)
    public = entry is not None and not entry.gated
    found = find_cached(hub_id, revision, weights) if public else None
    offline = entry is not None and entry.offline is not None and revision is None
    if found is None and offline and is_complete(converted_folder(entry)):
        return find_offline(entry, progress)
    if found is None:
        try:
            found = download(hub_id, revision, token, max_bytes, progress, weights)
        except Unreachable:
            if offline and is_installed(entry):
                return find_offline(entry, progress)
            found = find_cached(hub_id, revision, weights) if own_machine else None
            found = found and replace(found, public=public)
        if found is None:
            raise ModelError(
                f"The Hugging Face Hub cannot be reached, and {hub_id} is not on this machine. "
                f"Try again later{suggest_default()}."
            )
    return replace(found, name=entry.name if entry else name)


def _is_folder(name: str) -> bool:
    try:
        return bool(name) and Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):
        return False


def _folder(name: str, revision: str | None, weights: bool) -> Source:
    folder = Path(name).expanduser().resolve()
    values = read_json(folder / "config.json")
    check_config(values, name)
    if (folder / "adapter_config.json").exists():
        raise ModelError(adapter_message(name))
    digest = None
    if weights:
        files = weight_files(folder)
        if not files:
            raise ModelError(
                f"The folder {name} holds no safetensors files. Save the model with "
                "save_pretrained, which writes them."
            )
        digest = digest_of([folder / "config.json", *files])
        if revision is not None and revision != digest:
            raise ModelError(
                f"The model in {name} is not the one that the recipe was made for: its revision is "
                f"{digest}, the recipe says {revision}. Use the original folder, or remove the "
                "revision from the recipe."
            )
    return Source(
        name=name,
        hub_id=None,
        revision=digest,
        license=license_of("", folder),
        origin=f"from the folder {folder.name}",
        folder=folder,
        public=False,
    )


def _check(source: Source) -> StoredModel:
    config = read_config_file(source.folder)
    files = weight_files(source.folder)
    if not files:
        raise ModelError(f"{source.name} has no complete safetensors weights. Save the model again.")
    tensors = read_headers(files)
    check_room(source.name, config, sum(prod(shape) for _, shape in tensors.values()))
    check_tensors(source.name, config, tensors)
    tokenizer = read_tokenizer(source)
    check_tokenizer(source.name, tokenizer, config.vocab_size)
    return StoredModel(source, config, tokenizer, main_dtype(tensors))


def read_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Only the tokenizer of a model whose files are here. Raises `ModelError`."""
    if not has_tokenizer(os.listdir(source.folder)):
        raise ModelError(
            f"{source.name} has no tokenizer, so it cannot read text. "
            "Save one beside the model with save_pretrained."
        )
    try:
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(f"The tokenizer of {source.name} cannot be read: {first_line(error)}") from error


def _placement(stored: StoredModel, on_disk: bool) -> tuple[dict | str, torch.dtype]:
    """The device map that accelerate gets, and the precision to compute in."""
    if on_disk:
        return {"": DISK}, stored.dtype
    if os.environ.get("SPACES_ZERO_GPU"):
        return "cpu", torch.float32
    parameters, room = Shape.of(stored.config).parameters, get_max_memory()
    if torch.cuda.is_available():
        # The other half is for what it computes.
        fits = parameters * stored.dtype.itemsize < room[0] / 2
        return "cuda" if fits else "auto", stored.dtype
    if parameters * torch.float32.itemsize < room["cpu"]:
        return "cpu", torch.float32
    return "auto", stored.dtype


def _read_weights(source: Source, on_disk: bool) -> LoadedModel:
    stored = _check(source)
    device_map, dtype = _placement(stored, on_disk)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source.folder,
            config=stored.config,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError, LookupError, SafetensorError) as error:
        raise ModelError(f"{source.name} cannot be read: {first_line(error)}") from error
    missing = [f"{name} is missing" for name in found["missing_keys"]]
    misshapen = [f"{name} is of another shape" for name, *_ in found["mismatched_keys"]]
    for problem in sorted(missing + misshapen)[:1]:
        raise ModelError(
            f"The weights of {source.name} do not fit its config: {problem}. "
            "Download or save the model again."
        )
    if model.device.type == "meta" and not on_disk:
        raise ModelError(
            f"Memory has no room even for the embeddings of {source.name}, and so it cannot run here. Close "
            "other programs, choose a smaller model, or stream: python -m pruning prune … --stream."
        )
    model.requires_grad_(False)
    if not on_disk and model.dtype != stored.dtype:
        # What is seen is what is saved, though a file may hold some tensors in more precision than most.
        for values in model.parameters():
            if not values.is_meta:
                values.copy_(values.to(stored.dtype))
    check_finite(source.name, model)
    return LoadedModel(model.eval(), stored.tokenizer, source, stored.dtype)


def fetch_recipe(
    name: str, *, revision: str | None = None, token: Token = None, own_machine: bool = True
) -> str:
    """The text of the recipe that a saved or published model carries; `name` is a folder or a Hub id.

    Raises `ModelError` where there is none, or where it cannot be read.
    """
    try:
        if own_machine and _is_folder(name):
            return (Path(name).expanduser() / RECIPE_FILE).read_text(encoding="utf-8")
        if token is None and not own_machine:
            token = False
        check_id(name, own_machine)
        check_revision(revision)
        with hub_errors(name, revision):
            info = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).model_info(
                name, revision=revision, files_metadata=True, token=token, timeout=15
            )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if RECIPE_FILE not in sizes:
            raise FileNotFoundError
        if sizes[RECIPE_FILE] > MAX_TEXT_BYTES:
            raise ModelError(
                f"The recipe of {name} takes {format_bytes(sizes[RECIPE_FILE])}, as no recipe does."
            )
        with hub_errors(name, revision):
            file = download_file(name, RECIPE_FILE, sizes[RECIPE_FILE], info.sha, token)
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(f"{name} carries no {RECIPE_FILE}: it is no model saved by Secateur.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"The recipe of {name} cannot be read: {first_line(error)}.") from None
    except Unreachable:
        raise ModelError(
            f"The Hugging Face Hub cannot be reached, so the recipe of {name} cannot be read. Try later."
        ) from None
