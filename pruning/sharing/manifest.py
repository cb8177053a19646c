"""Which files of a repository Secateur wrote: a list that each publication leaves beside them."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, hf_hub_url
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

MANIFEST = "secateur.json"

MAX_MANIFEST_BYTES = 1_000_000

_SHARDS = re.compile(r"model-\d{5}-of-\d{5}\.safetensors|model\.safetensors\.index\.json")
_SAVED = re.compile(
    r"(?:generation_)?config\.json|tokenizer(?:_config)?\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.json|merges\.txt|tokenizer\.model|chat_template\.jinja|model\.safetensors|recipe\.yaml"
    rf"|{_SHARDS.pattern}"
)
"""What releases wrote that left no manifest. Their README.md is left out: its owner may have edited it."""


@dataclass(frozen=True)
class Manifest:
    """The files that a publication wrote: for each name, the ids that the Hub may give to its content."""

    files: Mapping[str, frozenset[str]]

    def unchanged(self, repo: ModelInfo) -> set[str]:
        """Return the files of a repository that are as this publication left them."""
        return {
            sibling.rfilename
            for sibling in repo.siblings or []
            if _ids_of(sibling) & self.files.get(sibling.rfilename, frozenset())
        }


def written_by_us(api: HfApi, repo: ModelInfo, ours: bool) -> set[str]:
    """Return the files of a repository that Secateur wrote and that nobody changed since.

    Args:
        api: The client of the Hub.
        repo: The repository, looked up with the metadata of its files.
        ours: Whether Secateur made the repository.
    """
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in repo.siblings or []}
    if not ours:
        return set()
    if MANIFEST not in sizes:
        return {name for name in sizes if _SAVED.fullmatch(name)}
    if sizes[MANIFEST] > MAX_MANIFEST_BYTES:
        return set()
    address = hf_hub_url(repo.id, MANIFEST, revision=repo.sha, endpoint=api.endpoint)
    response = get_session().get(address, headers=build_hf_headers(token=api.token))
    hf_raise_for_status(response)
    return read_manifest(response.content).unchanged(repo) | {MANIFEST}


def read_manifest(content: bytes) -> Manifest:
    """Read a manifest; anyone may have edited it, and what is not one lists no files."""
    try:
        files = json.loads(content)["files"]
        return Manifest(
            {str(name): frozenset(map(str, ids)) for name, ids in files.items() if isinstance(ids, list)}
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Manifest({})


def manifest_of(folder: Path, added: Iterable[CommitOperationAdd]) -> CommitOperationAdd:
    """Return the manifest of the files that a commit adds from a folder, as one more file to add."""
    files = {}
    for operation in added:
        path = folder / operation.path_in_repo
        ids = {operation.upload_info.sha256.hex()}
        if path.stat().st_size <= MAX_GIT_BYTES:
            content = path.read_bytes()
            ids |= {sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()}
        files[operation.path_in_repo] = sorted(ids)
    text = json.dumps({"files": files}, indent=2, sort_keys=True) + "\n"
    return CommitOperationAdd(MANIFEST, text.encode())


MAX_GIT_BYTES = 32 * 10**6
"""The Hub keeps larger files in LFS, where their id is their SHA-256; smaller ones may be in git, with its id."""


def is_shard(name: str) -> bool:
    """Return whether a file is one of several weights files, or their index."""
    return _SHARDS.fullmatch(name) is not None


def _ids_of(sibling: RepoSibling) -> set[str]:
    if sibling.lfs is not None:
        return {sibling.lfs.sha256}
    return {sibling.blob_id} if sibling.blob_id else set()
