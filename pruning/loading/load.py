"""From a name to a model: find it and its config, then check and read its weights."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning import catalog
from pruning.architectures.placement import DISK, device_map
from pruning.errors import ModelError, PruningError
from pruning.lazy import torch, transformers
from pruning.loading import mapped as mapping
from pruning.loading.adapter import merged
from pruning.loading.checks import (
    check_finite,
    check_room,
    check_tensors,
    check_tokenizer,
)
from pruning.loading.download import fetch_adapter, fetch_text_files, fetch_weights, require_disk
from pruning.loading.files import first_line, main_dtype, read_headers
from pruning.loading.find import find as find
from pruning.loading.find import find_without_hub, is_folder
from pruning.loading.hub import fetch_text_file, look_up
from pruning.loading.hub_cache import mark_used
from pruning.loading.hub_errors import Unreachable
from pruning.loading.metadata import RECIPE_FILE, kept_layers_in
from pruning.loading.offline import converted_folder
from pruning.loading.own_head import untie_own_head
from pruning.loading.placement import AnyDtype, Placement, choose_placement, read_device, read_dtype
from pruning.loading.repo_files import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    TOKENIZER_FILES,
    check_settings_files,
    has_tokenizer,
    weight_files,
)
from pruning.loading.source import Access, Source, Token
from pruning.loading.text_half import Renaming, find_renaming, tie_headless
from pruning.loading.tokenizer_check import read_checked
from pruning.progress import Progress, Reporter, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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

    def __repr__(self) -> str:
        size = sum(values.numel() for values in self.model.parameters())
        return f"LoadedModel({self.source.name!r}, {type(self.model).__name__}, {size:,} parameters)"


def weights_id(loaded: LoadedModel) -> str | None:
    """Return what identifies a model's weights: the revision, and the precision if it is not float32."""
    dtype, source = loaded.storage_dtype, loaded.source
    revision = source.revision if source.adapter is None else f"{source.revision} on {source.base.revision}"
    return revision if dtype == torch.float32 else f"{revision} in {dtype}"


@dataclass(frozen=True)
class StoredModel:
    """A model in files on this machine that were checked, with its weights not read yet."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    renaming: Renaming | None = None


def load(
    name: str | os.PathLike[str] | Source,
    *,
    revision: str | None = None,
    token: Token = None,
    access: Access | None = None,
    on_disk: bool = False,
    mapped: bool = False,
    dtype: AnyDtype | None = None,
    device: str | torch.device | None = None,
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
        mapped: Whether to keep a float32 copy of a public model's weights in the cache, so that processes that
            load the same model share its memory.
        dtype: The precision that the weights are rounded to and saved in, such as `bfloat16`; by default that of the
            files. A CPU computes in float32 in any case, which is faster there.
        device: Where the model is put, such as `cpu` or `cuda`; by default where it fits.
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
    wanted = None if dtype is None else read_dtype(dtype)
    place = None if device is None else read_device(device)
    source = name
    if isinstance(source, str | os.PathLike):
        source = find(source, revision=revision, access=access, weights=True, progress=progress)
    elif source.remote is None and source.hub_id and not source.adapter and not weight_files(source.folder):
        # It was found by its config alone.
        revision = revision or source.revision
        source = find(source.name, revision=revision, access=access, weights=True, progress=progress)
    if source.adapter is not None:
        if on_disk:
            raise ModelError(
                f"{source.name} is an adapter, which is merged into its base in memory. Do not stream it, or merge it "
                "with peft first and stream the result."
            )
        source = fetch_adapter(source, access, progress)
        base = load(source.base, access=access, dtype=dtype, device=device, progress=progress)
        return _with_adapter(base, source, progress)
    tokenizer = None
    if source.remote is not None:
        try:
            require_disk(source, access)
            # Before the download; the precision of the files is not known yet.
            choose_placement(source.name, source.config, torch.bfloat16, on_disk, access.local, place)
            source = fetch_text_files(source, access, progress)
            tokenizer = read_tokenizer(source, access)
            source = fetch_weights(source, access, progress)
        except Unreachable:
            source, tokenizer = find_without_hub(source.name, revision, access, True, progress), None
    if source.kept_layers is None:
        source = replace(source, kept_layers=kept_layers_in(source.folder))
    stored = _check_files(source, tokenizer)
    stored = stored if wanted is None else replace(stored, dtype=wanted)
    placement = choose_placement(source.name, source.config, stored.dtype, on_disk, access.local, place)
    folder = _mapped_copy(stored, placement, progress) if mapped else None
    for note in source.notes:
        progress(Progress(note))
    progress(Progress("Reading the weights"))
    loaded = _read_weights(stored, placement, folder)
    if DISK in device_map(loaded.model).values() and not on_disk:
        progress(Progress("Some layers do not fit in memory and are read from disk, which is slow"))
    return loaded


def _with_adapter(base: LoadedModel, source: Source, progress: Reporter) -> LoadedModel:
    """Return a base with an adapter merged into its weights. The base is not used again."""
    if device_map(base.model):
        raise ModelError(
            f"{source.name} is an adapter, and its base does not fit on one device. Merge it with peft first."
        )
    progress(Progress(source.notes[0]))
    model = merged(base.model, source.folder, source.name)
    if model.dtype != base.storage_dtype:
        for values in model.parameters():
            values.copy_(values.to(base.storage_dtype))
    check_finite(source.name, model)
    return replace(base, model=model, source=replace(source, config=base.source.config))


def _mapped_copy(stored: StoredModel, placement: Placement, progress: Reporter) -> Path | None:
    """Return the folder with the float32 copy of a model, or None if its own files can be mapped, or must be."""
    if placement != Placement("cpu", torch.float32) or stored.dtype == torch.float32:
        return None
    return mapping.float32_copy(stored.source, weight_files(stored.source.folder), stored.dtype, progress)


def _check_files(source: Source, tokenizer: PreTrainedTokenizerBase | None) -> StoredModel:
    """Compare the files of a model with its config, before memory is taken for its weights."""
    files = weight_files(source.folder)
    if not files:
        raise ModelError(f"{source.name} has no complete safetensors weights. Save the model again.")
    if source.hub_id is not None:  # A user's own folder is left as it is.
        mark_used(source.folder / CONFIG_FILE)
    tensors, names, renaming = read_headers(files), {}, None
    if source.multimodal:
        renaming = find_renaming(source.name, source.config, tensors)
        names = renaming.names(tensors)
        tensors = {name: tensors[stored] for name, stored in names.items()}
        source = replace(source, config=tie_headless(source.config, tensors))
    check_room(source.name, source.config, sum(prod(shape) for _, shape in tensors.values()))
    check_tensors(source.name, source.config, tensors)
    tokenizer = tokenizer or read_tokenizer(source)
    check_tokenizer(source.name, tokenizer, source.config.vocab_size)
    source = replace(source, config=untie_own_head(source.config, tensors, files, names))
    return StoredModel(source, tokenizer, main_dtype(tensors), renaming)


def read_tokenizer(
    source: Source, access: Access | None = None, progress: Reporter = silent
) -> PreTrainedTokenizerBase:
    """Read only the tokenizer of a model that was found, and download it if it is not here.

    Args:
        source: The model.
        access: Who asks; by default, the owner of this machine.
        progress: Is called before a download.

    Raises:
        ModelError: There is no tokenizer, it is refused, or it cannot be read.
    """
    if source.adapter is not None:
        return read_tokenizer(source.base, access, progress)
    if source.hub_id and not has_tokenizer(os.listdir(source.folder)):
        source = _fetch_text_files(source, access or Access(), progress)
    if not has_tokenizer(os.listdir(source.folder)):
        raise ModelError(
            f"{source.name} has no tokenizer in a file that can be read ({', '.join(TOKENIZER_FILES)}). "
            "Save a fast tokenizer beside the model with save_pretrained."
        )
    check_settings_files(source.folder, source.name)
    return read_checked(source.folder, source.name, trusted=_is_installed_package(source))


def _fetch_text_files(source: Source, access: Access, progress: Reporter) -> Source:
    """Download a model's files of text, and none of its weights."""
    try:
        if source.remote is None:
            found = look_up(str(source.hub_id), source.revision, access, progress)
            assert isinstance(found, Source), "a model does not become an adapter"
            source = replace(found, name=source.name)
        return fetch_text_files(source, access, progress)
    except Unreachable:
        raise ModelError(
            f"The Hugging Face Hub cannot be reached, and the tokenizer of {source.name} is not on this machine. "
            "Try again later."
        ) from None


def _is_installed_package(source: Source) -> bool:
    """Return whether a model's files were converted from a package that is installed on this machine."""
    entry = catalog.find(source.name)
    return bool(
        entry
        and entry.offline
        and source.revision == entry.offline.revision
        and source.folder == converted_folder(entry)
    )


def _read_weights(stored: StoredModel, placement: Placement, copy: Path | None) -> LoadedModel:
    """Read the weights from the model's own files, or from a float32 copy of them."""
    source = stored.source
    on_disk = placement.device_map == {"": DISK}
    model: PreTrainedModel
    info: dict[str, Any]
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
            copy or source.folder,
            config=source.config,
            dtype=placement.dtype,
            device_map=placement.device_map,
            max_memory=placement.max_memory,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            key_mapping=None if stored.renaming is None else stored.renaming.key_mapping,
        )
    except (PruningError, MemoryError):
        raise
    except Exception as error:
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
    if copy is not None:
        model.config._name_or_path = model.name_or_path = str(source.folder)
    elif not on_disk and model.dtype != stored.dtype:
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
            file = Path(name).expanduser() / RECIPE_FILE
        else:
            file = fetch_text_file(name, RECIPE_FILE, revision, access)
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError(
                f"The recipe of {name} has more than {MAX_CONFIG_BYTES:,} bytes, which is too large."
            )
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(f"{name} has no {RECIPE_FILE}, so it is not a model that Secateur saved.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ModelError(f"The recipe of {name} cannot be read: {reason}.") from None
    except Unreachable:
        raise ModelError(
            f"The Hugging Face Hub cannot be reached, so the recipe of {name} cannot be read. Try later."
        ) from None
