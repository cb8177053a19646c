"""A bound on the Hub's cache of downloads: on a server, the least recently used snapshots are removed.

On a user's own machine the cache is theirs, and nothing here touches it.
"""

import os
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from huggingface_hub import CachedRepoInfo, CachedRevisionInfo, scan_cache_dir
from huggingface_hub import constants as hub
from huggingface_hub.errors import CacheNotFound
from huggingface_hub.utils import CachedIncompleteFileInfo

from pruning.errors import ModelError

DEFAULT_CACHE_BYTES = 20e9

ABANDONED_AFTER_SECONDS = 3600
"""Age at which a download that was never finished counts as abandoned."""

ROUNDS = 5
"""How often the cache is looked at in one call: files that two snapshots share only go with the second."""

SECONDS_BETWEEN = 60.0

_trimmed_at = float("-inf")


def cache_limit() -> int:
    """Return how many bytes a server keeps of downloads: `$SECATEUR_CACHE_BYTES`, or 20 GB."""
    value = os.environ.get("SECATEUR_CACHE_BYTES", str(DEFAULT_CACHE_BYTES))
    try:
        return max(0, int(float(value)))
    except (ValueError, OverflowError):
        raise ModelError(f"SECATEUR_CACHE_BYTES is {value!r}; a number of bytes is needed.") from None


def mark_used(file: Path) -> None:
    """Mark the snapshot that a file belongs to as used now; systems often do not note when files are read."""
    with suppress(OSError):
        os.utime(file)


def trim(max_bytes: int, keep: Collection[str] = ()) -> int:
    """Remove snapshots from the Hub's cache, the least recently used first, until the rest fits.

    Args:
        max_bytes: How many bytes the rest may have.
        keep: The ids of repositories that are not touched, such as those in use.

    Returns:
        The bytes that were removed.
    """
    removed = 0
    for _ in range(ROUNDS):
        try:
            cache = scan_cache_dir(hub.HF_HUB_CACHE)
        except (CacheNotFound, ValueError, OSError):
            break  # There is nothing to remove.
        removed += _remove_abandoned(cache.incomplete_files)
        excess = cache.size_on_disk + cache.incomplete_size_on_disk - max_bytes
        snapshots = [(repo, revision) for repo in cache.repos for revision in repo.revisions]
        chosen = []
        for repo, revision in sorted(snapshots, key=lambda found: _used_at(*found)):
            if excess > 0 and repo.repo_id not in keep:
                chosen.append(revision.commit_hash)
                excess -= revision.size_on_disk
        if not chosen:
            break
        strategy = cache.delete_revisions(*chosen)
        strategy.execute()
        removed += int(strategy.expected_freed_size)
    return removed


def trim_often(max_bytes: int, keep: Collection[str], at_once: bool) -> None:
    """Trim the cache if the last time is `SECONDS_BETWEEN` ago, or at once: a scan takes time."""
    global _trimmed_at
    if at_once or time.monotonic() - _trimmed_at > SECONDS_BETWEEN:
        _trimmed_at = time.monotonic()
        trim(max_bytes, keep)


def _remove_abandoned(parts: Iterable[CachedIncompleteFileInfo]) -> int:
    removed = 0
    for part in parts:
        with suppress(OSError):
            if time.time() - part.file_path.stat().st_mtime > ABANDONED_AFTER_SECONDS:
                part.file_path.unlink()
                removed += part.size_on_disk
    return removed


def _used_at(repo: CachedRepoInfo, revision: CachedRevisionInfo) -> float:
    """Return when any file of a snapshot was last read, written or marked as used."""
    times = [max(file.blob_last_accessed, file.blob_last_modified) for file in revision.files]
    return max(times, default=repo.last_modified)
