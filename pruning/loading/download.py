"""Download the files of a model from the Hub, by name, once there is room for them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub import constants as hub
from huggingface_hub.errors import SafetensorsParsingError

from pruning import catalog
from pruning.errors import ModelError
from pruning.loading import hub_cache
from pruning.loading.checks import check_tensors
from pruning.loading.files import Tensors, first_line
from pruning.loading.hub_errors import hub_errors
from pruning.loading.metadata import kept_layers_in
from pruning.loading.repo_files import (
    INDEX_FILE,
    MAX_INDEX_BYTES,
    MAX_WEIGHT_FILES,
    SINGLE_WEIGHTS_FILE,
    format_bytes,
    missing_shard,
    shards_of,
)
from pruning.loading.source import Access, HubFiles, Source, Token
from pruning.loading.text_half import find_renaming
from pruning.progress import Progress, Reporter

SPARE_DISK = 1.1
"""How many times a download's size must be free on the disk."""

KEPT_ON_DISK = catalog.MODELS[catalog.DEFAULT_MODEL].hub_id
"""The model that a server never removes from its disk."""

LARGE = 10_000_000
"""A download of this size always looks for room first; smaller ones, now and then."""

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


def size_limit() -> int:
    """Return the largest download accepted, in bytes: `$SECATEUR_MAX_BYTES`, or 4 GB."""
    value = os.environ.get("SECATEUR_MAX_BYTES", "4e9")
    try:
        return int(float(value))
    except (ValueError, OverflowError):
        raise ModelError(f"SECATEUR_MAX_BYTES is {value!r}; a number of bytes is needed.") from None


def check_download(hub_id: str, files: Mapping[str, int], weights: Mapping[str, int]) -> None:
    """Refuse what is too large to download, from the list of files alone. Raises `ModelError`."""
    limit, size = size_limit(), sum(files.values())
    if size > limit:
        raise ModelError(
            f"{hub_id} is a download of {format_bytes(size)}; the limit here is {format_bytes(limit)}. "
            "Choose a smaller model, or raise SECATEUR_MAX_BYTES where you run this."
        )
    if files.get(INDEX_FILE, 0) > MAX_INDEX_BYTES:
        raise ModelError(
            f"{INDEX_FILE} of {hub_id} has {format_bytes(files[INDEX_FILE])}; the limit for this file is "
            f"{format_bytes(MAX_INDEX_BYTES)}. Choose another model."
        )
    if len(weights) > MAX_WEIGHT_FILES:
        raise ModelError(
            f"{hub_id} keeps its weights in {len(weights)} files; the limit is {MAX_WEIGHT_FILES}. "
            "Choose another model."
        )


def check_disk(hub_id: str, size: int, access: Access) -> None:
    """Make room on a server's disk, and refuse a download for which there is none. Raises `ModelError`."""
    needed = int(size * SPARE_DISK)
    if not access.local:
        hub_cache.trim_often(hub_cache.cache_limit() - needed, {hub_id, KEPT_ON_DISK}, at_once=size >= LARGE)
    free = shutil.disk_usage(_existing(Path(hub.HF_HUB_CACHE))).free
    if needed > free:
        raise ModelError(
            f"{hub_id} needs {format_bytes(needed)} of disk space, and {format_bytes(free)} are free. "
            "Make room, or choose a smaller model."
        )


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def fetch_weights(source: Source, access: Access, progress: Reporter) -> Source:
    """Download the weights of a model that was looked up, after comparing their headers with its config.

    Raises:
        ModelError: The weights do not fit the config, or cannot be written.
        Unreachable: The Hub does not answer.
    """
    hub_id, remote, token = str(source.hub_id), source.remote, access.hub_token
    assert remote is not None, "there is nothing to download"
    with hub_errors(hub_id, remote.commit, access.local):
        shards = _shards(hub_id, remote, token)
        missing = [name for name in shards if not _is_cached(hub_id, name, remote.commit)]
        # Files that are already here are compared once they are opened.
        _check_headers(source, missing, len(missing) == len(shards), remote.commit, token)
    size = format_bytes(sum(remote.sizes[name] for name in missing))
    folder = source.folder
    for number, name in enumerate(shards):
        progress(Progress(f"Downloading {hub_id}, {size}", number, len(shards)))
        with hub_errors(hub_id, remote.commit, access.local):
            folder = download_file(hub_id, name, remote.sizes[name], remote.commit, token).parent
    return replace(source, folder=folder, remote=None, kept_layers=kept_layers_in(folder))


def fetch_adapter(source: Source, access: Access, progress: Reporter) -> Source:
    """Download the weights of an adapter that was looked up.

    Raises:
        ModelError: The disk does not have enough free space.
        Unreachable: The Hub does not answer.
    """
    hub_id, adapter = str(source.hub_id), source.adapter
    assert adapter is not None, "it is not an adapter"
    if (remote := adapter.remote) is None:
        return source
    weights = {name: remote.sizes[name] for name in sorted(remote.weights)}
    stage = f"Downloading {hub_id}, {format_bytes(sum(weights.values()))}"
    folder = _fetch(hub_id, remote, weights, stage, access, progress)
    return replace(source, folder=folder or source.folder, adapter=replace(adapter, remote=None))


def require_disk(source: Source, access: Access) -> None:
    """Refuse a model whose files do not fit on the disk, before any of them is downloaded. Raises `ModelError`."""
    hub_id, remote = str(source.hub_id), source.remote
    assert remote is not None, "there is nothing to download"
    check_disk(
        hub_id,
        sum(size for name, size in remote.sizes.items() if not _is_cached(hub_id, name, remote.commit)),
        access,
    )


def fetch_text_files(source: Source, access: Access, progress: Reporter) -> Source:
    """Download the files of text of a model that was looked up; its weights are left where they are.

    Raises:
        ModelError: The disk does not have enough free space.
        Unreachable: The Hub does not answer.
    """
    hub_id, remote = str(source.hub_id), source.remote
    assert remote is not None, "there is nothing to download"
    sizes = {name: size for name, size in remote.sizes.items() if name not in remote.weights}
    stage = f"Downloading the tokenizer of {hub_id}"
    folder = _fetch(hub_id, remote, sizes, stage, access, progress)
    return replace(source, folder=folder or source.folder)


def _fetch(
    hub_id: str,
    remote: HubFiles,
    sizes: Mapping[str, int],
    stage: str,
    access: Access,
    progress: Reporter,
) -> Path | None:
    """Download some files, if the disk has room for all of them; return their folder, or None if there are none."""
    check_disk(hub_id, sum(sizes.values()), access)
    folder = None
    for number, (name, size) in enumerate(sizes.items()):
        progress(Progress(stage, number, len(sizes)))
        with hub_errors(hub_id, remote.commit, access.local):
            folder = download_file(hub_id, name, size, remote.commit, access.hub_token).parent
    return folder


def _shards(hub_id: str, remote: HubFiles, token: Token) -> list[str]:
    """Return the names of the files that hold the weights: one, or those that the index names."""
    if SINGLE_WEIGHTS_FILE in remote.weights or INDEX_FILE not in remote.sizes:
        return sorted(remote.weights)
    index = download_file(hub_id, INDEX_FILE, remote.sizes[INDEX_FILE], remote.commit, token)
    shards = shards_of(index, hub_id)
    for shard in shards:
        if shard not in remote.weights:
            raise missing_shard(shard, hub_id)
    return shards


def _is_cached(hub_id: str, name: str, commit: str | None) -> bool:
    return isinstance(try_to_load_from_cache(hub_id, name, revision=commit), str)


def download_file(hub_id: str, name: str, size: int | None, commit: str | None, token: Token) -> Path:
    """Download a file of a model, again if the copy on this machine was cut short."""
    place: dict[str, Any] = {"revision": commit, "token": token, "endpoint": os.environ.get("HF_ENDPOINT")}
    file = Path(hf_hub_download(hub_id, name, **place))
    if size is not None and file.stat().st_size != size:
        file = Path(hf_hub_download(hub_id, name, **place, force_download=True))
    return file


def _check_headers(
    source: Source, files: Iterable[str], are_all: bool, commit: str | None, token: Token
) -> None:
    """Compare the weights with the config before they are downloaded, from their first bytes."""
    api, hub_id = HfApi(endpoint=os.environ.get("HF_ENDPOINT")), str(source.hub_id)
    everything: Tensors = {}
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
        everything |= found
        if not source.multimodal:
            check_tensors(hub_id, source.config, found)
    if source.multimodal and are_all:
        # Where the text half is, only all files together show.
        names = find_renaming(hub_id, source.config, everything).names(everything)
        check_tensors(hub_id, source.config, {name: everything[stored] for name, stored in names.items()})
