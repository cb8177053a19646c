"""Models on the Hugging Face Hub: looked up and checked, from their list of files and their config alone."""

import os
import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, ModelInfo, get_token, try_to_load_from_cache
from huggingface_hub import constants as hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from pruning import catalog
from pruning.errors import ModelError
from pruning.files import replacing
from pruning.loading.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FoundAdapter,
    beside_a_model,
    read_settings,
    without_weights,
)
from pruning.loading.checks import check_config, check_room
from pruning.loading.download import check_disk, check_download, download_file
from pruning.loading.files import config_from_values, is_complete, is_readable
from pruning.loading.hub_errors import Unreachable as Unreachable
from pruning.loading.hub_errors import hub_errors
from pruning.loading.metadata import kept_layers_in, license_in, plain_license
from pruning.loading.repo_files import (
    CONFIG_FILE,
    INDEX_FILE,
    MAX_CONFIG_BYTES,
    SINGLE_WEIGHTS_FILE,
    format_bytes,
    has_tokenizer,
    read_json,
    text_files,
    weight_candidates,
)
from pruning.loading.source import Access, HubFiles, Source, Token
from pruning.loading.text_half import with_text_half
from pruning.progress import Progress, Reporter

_REVISION = re.compile(r"(?!/)(?!.*(?:\.\.|//|/\.|/$))[\w./:=-]{1,200}")
"""What a revision looks like. huggingface_hub makes a path of it."""


def saved_token() -> Token:
    """Return the token that this machine is signed in with, or False."""
    return get_token() or False


def check_revision(revision: str | None) -> None:
    """Refuse a revision that cannot be one. Raises `ModelError`."""
    if revision is not None and not _REVISION.fullmatch(revision):
        raise ModelError(
            f"{revision[:100]!r} is not a revision. Give a commit, a branch or a tag, or none for the newest."
        )


def check_id(name: str, access: Access) -> None:
    """Refuse a name that cannot be a Hub id. Raises `ModelError`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        known = ", ".join(catalog.MODELS)
        folder = ", or a folder that exists" if access.local else ""
        raise ModelError(
            f"{name[:100]!r} is not a model: give a Hub id such as owner/name, one of the catalog "
            f"({known}){folder}."
        ) from None


def find_cached(hub_id: str, revision: str | None, weights: bool, plain: bool = False) -> Source | None:
    """Find the snapshot that an earlier load left on this machine; None if it is not complete.

    Args:
        hub_id: The model's id on the Hub.
        revision: A commit, a branch or a tag; None for the newest that this machine knows.
        weights: Whether the snapshot must hold the weights, or only the config.
        plain: Whether a plain config suffices.
    """
    config_file = try_to_load_from_cache(hub_id, CONFIG_FILE, revision=revision)
    if not isinstance(config_file, str):
        return None
    folder = Path(config_file).parent
    if not (is_complete(folder) if weights else is_readable(folder / CONFIG_FILE)):
        return None
    entry, values = catalog.find(hub_id), read_json(folder / CONFIG_FILE)
    source = Source(
        name=hub_id,
        hub_id=hub_id,
        revision=folder.name,
        license=entry.license if entry else license_in(folder),
        origin=f"from this machine's copy of {hub_id} on the Hugging Face Hub",
        folder=folder,
        config=config_from_values(values, plain),
        kept_layers=kept_layers_in(folder) if weights else None,
    )
    return with_text_half(source, values)


def look_up(
    hub_id: str, revision: str | None, access: Access, progress: Reporter, plain: bool = False
) -> Source | FoundAdapter:
    """Look a model or adapter up on the Hub: check its list of files and its config, which is all that is downloaded.

    Raises:
        ModelError: The model cannot be used. The message says why, and what to do.
        Unreachable: The Hub does not answer.
    """
    token = access.hub_token
    progress(Progress(f"Asking the Hub about {hub_id}"))
    with hub_errors(hub_id, revision, access.local):
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        info = api.model_info(hub_id, revision=revision, files_metadata=True, token=token, timeout=15)
        if info.gated or info.private:
            # A file that is already here would otherwise be handed out without asking.
            api.auth_check(hub_id, token=token)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or [] if "/" not in file.rfilename}
    if ADAPTER_CONFIG in sizes:
        return _look_up_adapter(hub_id, info, sizes, revision, access)
    files = _check_listing(hub_id, sizes)
    weights = weight_candidates(files)
    config_size = sizes.get(CONFIG_FILE, 0)
    check_disk(hub_id, config_size, access)
    with hub_errors(hub_id, revision, access.local):
        config_file = download_file(hub_id, CONFIG_FILE, config_size, info.sha, token)
        _note_commit(hub_id, revision, info.sha)
    values = read_json(config_file)
    config = check_config(values, hub_id, plain)
    check_room(hub_id, config, sum(weights.values()))
    source = Source(
        name=hub_id,
        hub_id=hub_id,
        revision=info.sha,
        license=_license_of(hub_id, info),
        origin=f"from {hub_id} on the Hugging Face Hub",
        folder=config_file.parent,
        config=config,
        public=not (info.private or info.gated),
        remote=HubFiles(info.sha, files, frozenset(weights)),
    )
    return with_text_half(source, values)


def _look_up_adapter(
    hub_id: str, info: ModelInfo, sizes: dict[str, int], revision: str | None, access: Access
) -> FoundAdapter:
    """Check an adapter's list of files and its settings, which are downloaded."""
    if SINGLE_WEIGHTS_FILE in sizes or INDEX_FILE in sizes:
        raise beside_a_model(hub_id)
    if ADAPTER_WEIGHTS not in sizes:
        raise without_weights(hub_id)
    if sizes[ADAPTER_CONFIG] > MAX_CONFIG_BYTES:
        raise ModelError(
            f"{ADAPTER_CONFIG} of {hub_id} has {format_bytes(sizes[ADAPTER_CONFIG])}, which is too large."
        )
    files = {name: sizes[name] for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    check_download(hub_id, files, {ADAPTER_WEIGHTS: sizes[ADAPTER_WEIGHTS]})
    check_disk(hub_id, sizes[ADAPTER_CONFIG], access)
    with hub_errors(hub_id, revision, access.local):
        file = download_file(hub_id, ADAPTER_CONFIG, sizes[ADAPTER_CONFIG], info.sha, access.hub_token)
    return FoundAdapter(
        hub_id,
        hub_id,
        file.parent,
        info.sha,
        read_settings(file, hub_id),
        public=not (info.private or info.gated),
        remote=HubFiles(info.sha, files, frozenset({ADAPTER_WEIGHTS})),
    )


def _check_listing(hub_id: str, sizes: dict[str, int]) -> dict[str, int]:
    """Return the sizes of the files that would be downloaded, if the list of files is one of a usable model."""
    weights = weight_candidates(sizes)
    if not weights or not {SINGLE_WEIGHTS_FILE, INDEX_FILE} & sizes.keys():
        raise ModelError(
            f"{hub_id} has no weights in safetensors files, and other formats can run code when they are "
            "read. Ask its owners to convert it, or choose another model."
        )
    if not has_tokenizer(sizes):
        raise ModelError(f"{hub_id} has no tokenizer in a file that can be read. Choose another model.")
    files = text_files(hub_id, sizes) | weights
    if INDEX_FILE in sizes:
        files[INDEX_FILE] = sizes[INDEX_FILE]
    check_download(hub_id, files, weights)
    return files


def _license_of(hub_id: str, info: ModelInfo) -> str | None:
    """Return the license that the catalog or the Hub names; the Hub has read the model's card."""
    if entry := catalog.find(hub_id):
        return entry.license
    return plain_license(getattr(info.card_data, "license", None))


def _note_commit(hub_id: str, revision: str | None, commit: str | None) -> None:
    """Note which commit a revision means, as the Hub's client does, for the next load without the Hub."""
    revision = revision or hub.DEFAULT_REVISION
    if commit is None or revision == commit:
        return
    folder = Path(hub.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="model")
    place = folder / "refs" / revision
    with suppress(FileNotFoundError, NotADirectoryError):
        if place.read_text() == commit:
            return
    with replacing(place) as temporary:
        temporary.write_text(commit)


def fetch_text_file(hub_id: str, name: str, revision: str | None, access: Access) -> Path:
    """Download one small file of a model.

    Raises:
        FileNotFoundError: The model has no such file.
        ModelError: The Hub refuses, or the file is too large.
        Unreachable: The Hub does not answer.
    """
    check_id(hub_id, access)
    check_revision(revision)
    with hub_errors(hub_id, revision, access.local):
        info = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).model_info(
            hub_id, revision=revision, files_metadata=True, token=access.hub_token, timeout=15
        )
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    if name not in sizes:
        raise FileNotFoundError(name)
    if sizes[name] > MAX_CONFIG_BYTES:
        raise ModelError(f"{name} of {hub_id} has {format_bytes(sizes[name])}, which is too large.")
    check_disk(hub_id, sizes[name], access)
    with hub_errors(hub_id, revision, access.local):
        return download_file(hub_id, name, sizes[name], info.sha, access.hub_token)
