"""From a name to a model: find it and its config, then check and read its weights."""

import os
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import get_max_memory
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

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
    kept_layers_in,
    main_dtype,
    read_headers,
    read_json,
    weight_files,
)
from pruning.loading.hub import (
    Unreachable,
    check_id,
    check_revision,
    fetch_text_file,
    fetch_weights,
    find_cached,
    license_of,
    look_up,
)
from pruning.loading.offline import converted_folder, find_offline, is_installed
from pruning.loading.source import Access, Source, Token
from pruning.progress import Progress, Reporter, silent


@dataclass(frozen=True)
class LoadedModel:
    """A base model that nobody changes.

    Attributes:
        model: An ordinary transformers model, in evaluation mode.
        tokenizer: Its tokenizer.
        source: Where it comes from.
        storage_dtype: The precision of most weights in its files.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: Source
    storage_dtype: torch.dtype


@dataclass(frozen=True)
class StoredModel:
    """A model in files on this machine that were checked, with its weights not read yet."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype


def find(
    name: str,
    *,
    revision: str | None = None,
    token: Token = None,
    access: Access | None = None,
    weights: bool = False,
    progress: Reporter = silent,
) -> Source:
    """Find a model by its catalog name, its Hub id or its folder, and check its config.

    Asks the Hub for the model's list of files, its config and its tokenizer, but downloads no weights; does
    not ask the Hub about a public model of the catalog that is already on this machine.

    Args:
        name: A catalog name, a Hub id, or a folder.
        revision: A commit, a branch or a tag; None for the newest. For a folder, the digest it must have.
        token: The access token of the caller, if `access` is not given.
        access: Who asks.
        weights: Whether the weights will be read too. If not, a folder or a copy on this machine needs
            nothing but a config.
        progress: Is called with each stage.

    Returns:
        The source, whose `config` is checked. Pass it to `load`.

    Raises:
        ModelError: The model cannot be used. The message says why, and what to do.
    """
    access = access or Access(token)
    entry = catalog.find(name)
    if entry is None and access.local and is_folder(name):
        return _find_folder(name, revision, weights)
    hub_id = entry.hub_id if entry else name
    if entry and entry.offline and revision == entry.offline.revision:
        return find_offline(entry, progress)
    if entry is None:
        check_id(name, access)
    check_revision(revision)
    public = entry is not None and not entry.gated
    source = find_cached(hub_id, revision, weights) if public else None
    if (
        source is None
        and entry
        and _may_use_offline(entry, revision)
        and is_complete(converted_folder(entry))
    ):
        return find_offline(entry, progress)
    if source is None:
        try:
            source = look_up(hub_id, revision, access, progress)
        except Unreachable:
            source = _find_without_hub(name, revision, access, weights, progress)
    return replace(source, name=entry.name if entry else name)


def load(
    name: str | Source,
    *,
    revision: str | None = None,
    token: Token = None,
    access: Access | None = None,
    on_disk: bool = False,
    progress: Reporter = silent,
) -> LoadedModel:
    """Load a model by its catalog name, its Hub id or its folder, or one that `find` found.

    Never runs code from the Hub, and reads weights from safetensors files alone. accelerate places what one
    device cannot hold on several, and leaves on disk what none can hold.

    Args:
        name: A catalog name, a Hub id, a folder, or a source.
        revision: A commit, a branch or a tag; None for the newest.
        token: The access token of the caller, if `access` is not given.
        access: Who asks.
        on_disk: Whether to leave all weights on disk, to be read tensor by tensor.
        progress: Is called with each stage.

    Returns:
        The model, its tokenizer and its source.

    Raises:
        ModelError: The model cannot be used. The message says why, and what to do.

    Example:
        >>> import pruning
        >>> base = pruning.load("smollm2-135m")
        >>> base.model.config.model_type
        'llama'
    """
    access = access or Access(token)
    source = name
    if isinstance(source, str):
        source = find(source, revision=revision, access=access, weights=True, progress=progress)
    if source.remote is not None:
        try:
            source = fetch_weights(source, access, progress)
        except Unreachable:
            source = _find_without_hub(source.name, revision, access, True, progress)
    progress(Progress("Reading the weights"))
    loaded = _read_weights(_check_files(source), on_disk)
    if DISK in device_map(loaded.model).values() and not on_disk:
        progress(Progress("Some layers do not fit in memory and are read from disk, which is slow"))
    return loaded


def _may_use_offline(entry: catalog.CatalogModel, revision: str | None) -> bool:
    return entry.offline is not None and revision is None


def _find_without_hub(
    name: str, revision: str | None, access: Access, weights: bool, progress: Reporter
) -> Source:
    """Fall back to what is on this machine. Raises `ModelError` if that is not enough."""
    entry = catalog.find(name)
    if entry and _may_use_offline(entry, revision) and is_installed(entry):
        return find_offline(entry, progress)
    hub_id = entry.hub_id if entry else name
    source = find_cached(hub_id, revision, weights) if access.local else None
    if source is None:
        raise ModelError(
            f"The Hugging Face Hub cannot be reached, and {hub_id} is not on this machine. "
            f"Try again later{suggest_default()}."
        )
    return replace(source, name=entry.name if entry else name, public=entry is not None and not entry.gated)


def is_folder(name: str) -> bool:
    """Return whether a name is that of a folder on this machine."""
    try:
        return bool(name) and Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):
        return False


def _find_folder(name: str, revision: str | None, weights: bool) -> Source:
    folder = Path(name).expanduser().resolve()
    config = check_config(read_json(folder / "config.json"), name)
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
        config=config,
        public=False,
        kept_layers=kept_layers_in(folder),
    )


def _check_files(source: Source) -> StoredModel:
    """Compare the files of a model with its config, before memory is taken for its weights."""
    files = weight_files(source.folder)
    if not files:
        raise ModelError(f"{source.name} has no complete safetensors weights. Save the model again.")
    tensors = read_headers(files)
    check_room(source.name, source.config, sum(prod(shape) for _, shape in tensors.values()))
    check_tensors(source.name, source.config, tensors)
    tokenizer = read_tokenizer(source)
    check_tokenizer(source.name, tokenizer, source.config.vocab_size)
    return StoredModel(source, tokenizer, main_dtype(tensors))


def read_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Read only the tokenizer of a model that was found.

    Raises:
        ModelError: There is no tokenizer, or it cannot be read.
    """
    if not has_tokenizer(os.listdir(source.folder)):
        raise ModelError(
            f"{source.name} has no tokenizer, so it cannot read text. "
            "Save one beside the model with save_pretrained."
        )
    try:
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(f"The tokenizer of {source.name} cannot be read: {first_line(error)}") from error


def _placement(stored: StoredModel, on_disk: bool) -> tuple[dict[str, str] | str, torch.dtype]:
    """Choose the device map that accelerate gets, and the precision to compute in."""
    if on_disk:
        return {"": DISK}, stored.dtype
    if os.environ.get("SPACES_ZERO_GPU"):
        return "cpu", torch.float32
    parameters, room = Shape.of(stored.source.config).parameters, get_max_memory()
    if torch.cuda.is_available():
        # The other half is for what it computes.
        fits = parameters * stored.dtype.itemsize < room[0] / 2
        return "cuda" if fits else "auto", stored.dtype
    if parameters * torch.float32.itemsize < room["cpu"]:
        return "cpu", torch.float32
    return "auto", stored.dtype


def _read_weights(stored: StoredModel, on_disk: bool) -> LoadedModel:
    source = stored.source
    placement, dtype = _placement(stored, on_disk)
    model: PreTrainedModel
    info: dict[str, Any]
    try:
        model, info = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
            source.folder,
            config=source.config,
            dtype=dtype,
            device_map=placement,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError, LookupError, SafetensorError) as error:
        raise ModelError(f"{source.name} cannot be read: {first_line(error)}") from error
    missing = [f"{name} is missing" for name in info["missing_keys"]]
    misshapen = [f"{name} has another shape" for name, *_ in info["mismatched_keys"]]
    for problem in sorted(missing + misshapen)[:1]:
        raise ModelError(
            f"The weights of {source.name} do not fit its config: {problem}. "
            "Download or save the model again."
        )
    if model.device.type == "meta" and not on_disk:
        raise ModelError(
            f"Not even the embeddings of {source.name} fit in memory, so it cannot run here. Close other "
            "programs, choose a smaller model, or use --stream, which never holds the whole model."
        )
    model.requires_grad_(False)
    if not on_disk and model.dtype != stored.dtype:
        # A file may hold some tensors in more precision than most; what is shown is what is saved.
        for values in model.parameters():
            if not values.is_meta:
                values.copy_(values.to(stored.dtype))
    check_finite(source.name, model)
    return LoadedModel(model.eval(), stored.tokenizer, source, stored.dtype)


def fetch_recipe(
    name: str, *, revision: str | None = None, token: Token = None, access: Access | None = None
) -> str:
    """Fetch the text of the recipe that a saved or published model carries.

    Args:
        name: A folder or a Hub id.
        revision: A commit, a branch or a tag; None for the newest.
        token: The access token of the caller, if `access` is not given.
        access: Who asks.

    Raises:
        ModelError: The model carries no recipe, or it cannot be read.
    """
    access = access or Access(token)
    try:
        if access.local and is_folder(name):
            return (Path(name).expanduser() / RECIPE_FILE).read_text(encoding="utf-8")
        return fetch_text_file(name, RECIPE_FILE, revision, access).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(f"{name} has no {RECIPE_FILE}, so it is not a model that Secateur saved.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"The recipe of {name} cannot be read: {first_line(error)}.") from None
    except Unreachable:
        raise ModelError(
            f"The Hugging Face Hub cannot be reached, so the recipe of {name} cannot be read. Try later."
        ) from None
