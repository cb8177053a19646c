"""Models on the Hugging Face Hub: looked up, checked and downloaded, with every failure as one sentence."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    ModelCard,
    get_token,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub import constants as hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedConfig

from pruning import catalog
from pruning.errors import ModelError
from pruning.loading.checks import adapter_message, check_config, check_room, check_tensors
from pruning.loading.files import (
    TEXT_FILES,
    WEIGHT_FILES,
    first_line,
    has_tokenizer,
    is_complete,
    is_readable,
    kept_layers_in,
    matches,
    read_config_file,
    read_json,
)
from pruning.loading.source import Access, HubFiles, Source, Token
from pruning.progress import Progress, Reporter

MAX_TEXT_BYTES = 100_000_000
"""The largest text file accepted; the largest tokenizers of the known families have 35 MB."""

MAX_WEIGHT_FILES = 100


def size_limit() -> int:
    """Return the largest download accepted, in bytes: `$SECATEUR_MAX_BYTES`, or 4 GB."""
    value = os.environ.get("SECATEUR_MAX_BYTES", "4e9")
    try:
        return int(float(value))
    except (ValueError, OverflowError):
        raise ModelError(f"SECATEUR_MAX_BYTES is {value!r}; a number of bytes is needed.") from None


def saved_token() -> Token:
    """Return the token that this machine is signed in with, or False."""
    return get_token() or False


class Unreachable(Exception):
    """No answer from the Hub."""


def check_revision(revision: str | None) -> None:
    """Refuse a revision that cannot be one. Raises `ModelError`."""
    # huggingface_hub makes a path of it.
    if revision is not None and (".." in revision or not re.fullmatch(r"[\w./:=-]+", revision)):
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


@contextmanager
def hub_errors(hub_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the Hub client raises into one sentence."""
    try:
        yield
    except GatedRepoError:
        raise ModelError(
            f"{hub_id} is gated: its owners ask you to accept their terms. Accept them on its page on "
            "the Hub, sign in with the same account, and try again."
        ) from None
    except RevisionNotFoundError:
        raise ModelError(
            f"{hub_id} has no revision {revision!r}. Leave the revision out to take the newest."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"The Hub shows no model {hub_id!r}. Check the spelling; if it is private, sign in with "
            "an account that may see it."
        ) from None
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise Unreachable from error
        raise ModelError(f"{hub_id} has no config.json, so it is not a transformers model.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            raise ModelError(
                "The Hub did not accept the access token: it may have expired. Sign in again."
            ) from None
        if status is None or status >= 500 or status == 429:
            raise Unreachable from error
        raise ModelError(f"The Hub refused {hub_id} (HTTP {status}). Try again later.") from None
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise Unreachable from error
    except UnicodeEncodeError:
        raise ModelError(
            "The access token has characters that are not allowed in a token. Sign in again."
        ) from None
    except OSError as error:
        raise ModelError(
            f"{hub_id} could not be written to {hub.HF_HUB_CACHE}: {error.strerror or first_line(error)}. "
            "Make room, or set HF_HOME to another folder."
        ) from error


def find_cached(hub_id: str, revision: str | None, weights: bool) -> Source | None:
    """Find the snapshot that an earlier load left on this machine; None if it is not complete.

    Args:
        hub_id: The model's id on the Hub.
        revision: A commit, a branch or a tag; None for the newest that this machine knows.
        weights: Whether the snapshot must hold the weights, or only the config.
    """
    try:
        folder = _snapshot(hub_id, revision, weights, local_files_only=True)
    except (LocalEntryNotFoundError, RevisionNotFoundError, RepositoryNotFoundError):
        return None
    if not (is_complete(folder) if weights else is_readable(folder / "config.json")):
        return None
    return Source(
        name=hub_id,
        hub_id=hub_id,
        revision=folder.name,
        license=license_of(hub_id, folder),
        origin=f"from this machine's copy of {hub_id} on the Hugging Face Hub",
        folder=folder,
        config=read_config_file(folder),
        kept_layers=kept_layers_in(folder),
    )


def _snapshot(hub_id: str, revision: str | None, weights: bool, **options: Any) -> Path:
    """Return the folder of a snapshot. Of a repository, only the files at its root are ever used."""
    patterns = TEXT_FILES + (WEIGHT_FILES if weights else ())
    return Path(
        snapshot_download(
            hub_id, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"], **options
        )
    )


def license_of(hub_id: str, folder: Path) -> str | None:
    """Return the license that the catalog or the model card in a folder names, or None."""
    if entry := catalog.find(hub_id):
        return entry.license
    card = folder / "README.md"
    if not card.is_file() or card.stat().st_size > 1e6:
        return None
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.license
    except Exception:
        return None


def look_up(hub_id: str, revision: str | None, access: Access, progress: Reporter) -> Source:
    """Look a model up on the Hub: check its list of files and its config, and download its text files.

    Raises:
        ModelError: The model cannot be used. The message says why, and what to do.
        Unreachable: The Hub does not answer.
    """
    token, endpoint = access.hub_token, os.environ.get("HF_ENDPOINT")
    progress(Progress(f"Asking the Hub about {hub_id}"))
    with hub_errors(hub_id, revision):
        info = HfApi(endpoint=endpoint).model_info(
            hub_id, revision=revision, files_metadata=True, token=token, timeout=15
        )
        if info.gated or info.private:
            # A file that is already here would otherwise be handed out without asking.
            HfApi(endpoint=endpoint).auth_check(hub_id, token=token)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or [] if "/" not in file.rfilename}
    weights = {name: size for name, size in sizes.items() if matches(name, WEIGHT_FILES)}
    if not weights:
        raise ModelError(
            f"{hub_id} has no weights in safetensors files, and other formats can run code when they are "
            "read. Ask its owners to convert it, or choose another model."
        )
    if not has_tokenizer(sizes):
        raise ModelError(f"{hub_id} has no tokenizer, so it cannot read text. Choose another model.")
    if "adapter_config.json" in sizes:
        raise ModelError(adapter_message(hub_id))
    needed = {name: size for name, size in sizes.items() if name in weights or matches(name, TEXT_FILES)}
    _check_sizes(hub_id, needed, weights)
    with hub_errors(hub_id, revision):
        config_file = download_file(hub_id, "config.json", sizes.get("config.json"), info.sha, token)
    config = check_config(read_json(config_file), hub_id)
    check_room(hub_id, config, sum(weights.values()))
    with hub_errors(hub_id, revision):
        folder = _snapshot(hub_id, info.sha, False, token=token, endpoint=endpoint)
        # Notes which commit the revision means, for the next load without the Hub.
        hf_hub_download(hub_id, "config.json", revision=revision, token=token, endpoint=endpoint)
        _complete_files(
            hub_id, {name: needed[name] for name in needed.keys() - weights}, folder, info.sha, token
        )
    return Source(
        name=hub_id,
        hub_id=hub_id,
        revision=info.sha,
        license=license_of(hub_id, folder),
        origin=f"from {hub_id} on the Hugging Face Hub",
        folder=folder,
        config=config,
        public=not (info.private or info.gated),
        remote=HubFiles(info.sha, needed, frozenset(weights)),
        kept_layers=kept_layers_in(folder),
    )


def fetch_weights(source: Source, access: Access, progress: Reporter) -> Source:
    """Download the weights of a model that was looked up, after comparing their headers with its config.

    Raises:
        ModelError: The weights do not fit the config, or the disk.
        Unreachable: The Hub does not answer.
    """
    hub_id, remote, token = str(source.hub_id), source.remote, access.hub_token
    assert remote is not None, "there is nothing to download"
    missing = [name for name in remote.sizes if not _is_cached(hub_id, name, remote.commit)]
    size = sum(remote.sizes[name] for name in missing)
    free = shutil.disk_usage(hub.HF_HUB_CACHE).free
    if size * 1.1 > free:
        raise ModelError(
            f"{hub_id} needs {format_bytes(size)} of disk space, and {format_bytes(free)} are free. "
            "Make room, or choose a smaller model."
        )
    with hub_errors(hub_id, remote.commit):
        # Files that are already here are compared once they are opened.
        _check_headers(hub_id, source.config, remote.weights & set(missing), remote.commit, token)
    progress(Progress(f"Downloading {hub_id}, {format_bytes(size)}"))
    with hub_errors(hub_id, remote.commit):
        folder = _snapshot(hub_id, remote.commit, True, token=token, endpoint=os.environ.get("HF_ENDPOINT"))
        if not all((folder / name).is_file() for name in remote.sizes):
            raise Unreachable  # The Hub went away; snapshot_download then returns what there is.
        _complete_files(hub_id, remote.sizes, folder, remote.commit, token)
    return replace(source, folder=folder, remote=None)


def _complete_files(
    hub_id: str, sizes: Mapping[str, int], folder: Path, commit: str | None, token: Token
) -> None:
    """Download again each file of a snapshot that was cut short."""
    for name, size in sizes.items():
        if (folder / name).is_file():
            download_file(hub_id, name, size, commit, token)


def _is_cached(hub_id: str, name: str, commit: str | None) -> bool:
    return isinstance(try_to_load_from_cache(hub_id, name, revision=commit), str)


def download_file(hub_id: str, name: str, size: int | None, commit: str | None, token: Token) -> Path:
    """Download a file of a model, again if the copy on this machine was cut short."""
    place: dict[str, Any] = {"revision": commit, "token": token, "endpoint": os.environ.get("HF_ENDPOINT")}
    file = Path(hf_hub_download(hub_id, name, **place))
    if size is not None and file.stat().st_size != size:
        file = Path(hf_hub_download(hub_id, name, **place, force_download=True))
    return file


def fetch_text_file(hub_id: str, name: str, revision: str | None, access: Access) -> Path:
    """Download one small file of a model.

    Raises:
        FileNotFoundError: The model has no such file.
        ModelError: The Hub refuses, or the file is too large.
        Unreachable: The Hub does not answer.
    """
    check_id(hub_id, access)
    check_revision(revision)
    with hub_errors(hub_id, revision):
        info = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).model_info(
            hub_id, revision=revision, files_metadata=True, token=access.hub_token, timeout=15
        )
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    if name not in sizes:
        raise FileNotFoundError(name)
    if sizes[name] > MAX_TEXT_BYTES:
        raise ModelError(f"{name} of {hub_id} has {format_bytes(sizes[name])}, which is too large.")
    with hub_errors(hub_id, revision):
        return download_file(hub_id, name, sizes[name], info.sha, access.hub_token)


def _check_sizes(hub_id: str, needed: dict[str, int], weights: dict[str, int]) -> None:
    """Refuse what is too large to download or to read, from the list of files alone."""
    limit = size_limit()
    size = sum(needed.values())
    if size > limit:
        raise ModelError(
            f"{hub_id} is a download of {format_bytes(size)}; the limit here is {format_bytes(limit)}. "
            "Choose a smaller model, or raise SECATEUR_MAX_BYTES where you run this."
        )
    for name in needed.keys() - weights.keys():
        if needed[name] > MAX_TEXT_BYTES:
            raise ModelError(
                f"{name} in {hub_id} has {format_bytes(needed[name])}; the limit for such a file is "
                f"{format_bytes(MAX_TEXT_BYTES)}. Choose another model."
            )
    if len(weights) > MAX_WEIGHT_FILES:
        raise ModelError(
            f"{hub_id} keeps its weights in {len(weights)} files; the limit is {MAX_WEIGHT_FILES}. "
            "Choose another model."
        )


_NO_HEADER = (
    SafetensorsParsingError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What the Hub's client raises on an invalid header."""


def _check_headers(
    hub_id: str, config: PreTrainedConfig, files: Iterable[str], commit: str | None, token: Token
) -> None:
    """Compare the weights with the config before they are downloaded, from their first bytes."""
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    for name in sorted(files):
        try:
            header = api.parse_safetensors_file_metadata(hub_id, name, revision=commit, token=token)
            found = {
                key: (str(each.dtype), tuple(map(int, each.shape))) for key, each in header.tensors.items()
            }
        except _NO_HEADER as error:
            raise ModelError(
                f"{name} in {hub_id} is not a safetensors file: {first_line(error)} Choose another model."
            ) from None
        check_tensors(hub_id, config, found)


def format_bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
