"""Write files and folders so that readers never find a half-written one, and locate the cache.

Everything is written in a temporary folder: a hidden folder beside its destination, from which the finished
result is moved into place. A process that is killed leaves its temporary folder behind; the next writer in
the same place removes it.
"""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no fcntl.
    fcntl = None  # type: ignore[assignment]

PREFIX = ".secateur-"

ABANDONED_AFTER_SECONDS = 24 * 3600
"""Age at which a temporary folder counts as abandoned if there are no locks to check."""


def cache_folder() -> Path:
    """Return the folder for converted weights and statistics.

    This is `$SECATEUR_CACHE` if set, otherwise `secateur` in the user's cache folder.
    """
    if chosen := os.environ.get("SECATEUR_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "secateur"


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `target` if the block ends without an error.

    Args:
        target: The file to write or overwrite. Missing parent folders are created.

    Yields:
        The path to write to. The block has to create the file.
    """
    with temporary_folder(target.parent) as folder:
        temporary = folder / target.name
        yield temporary
        os.replace(temporary, target)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` if the block ends without an error.

    Args:
        target: The folder to create. It must not exist, or be an empty folder.

    Yields:
        An empty folder to write to.

    Raises:
        FileExistsError: `target` exists and is not an empty folder, at the start or at the end.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(target)
    with temporary_folder(target.parent) as folder:
        temporary = folder / target.name
        temporary.mkdir()
        yield temporary
        _move(temporary, target)


def trim_folder(folder: Path, max_bytes: int) -> None:
    """Remove the least recently used files of a folder until the rest fit into `max_bytes`.

    Files count as used when they were written, or when `touch` was last called on them.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        files = [(entry.stat(), entry.path) for entry in entries if entry.is_file(follow_symlinks=False)]
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime):
            if total <= max_bytes:
                break
            with suppress(OSError):
                os.unlink(path)
                total -= stat.st_size


def touch(file: Path) -> None:
    """Mark a file as recently used, for `trim_folder`."""
    with suppress(OSError):
        os.utime(file)


def discard(target: Path) -> None:
    """Remove a folder in one move, so that no reader finds a part of it."""
    with temporary_folder(target.parent) as folder, suppress(FileNotFoundError):
        os.replace(target, folder / target.name)


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new hidden folder in `parent`, and remove it when the block ends.

    Also removes temporary folders that killed processes left in `parent`.

    Args:
        parent: Where to create the folder; created if missing. None: the system's temporary folder.

    Yields:
        The empty folder.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent)
    folder, lock = _create_locked(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_abandoned(parent: Path) -> None:
    """Remove the temporary folders in `parent` whose writers no longer run."""
    with suppress(OSError), os.scandir(parent) as entries:
        folders = [Path(entry.path) for entry in entries if entry.name.startswith(PREFIX)]
        for folder in folders:
            with suppress(OSError):
                _remove_if_abandoned(folder)


def _create_locked(parent: Path) -> tuple[Path, int | None]:
    """Create a temporary folder and lock it until this process ends or closes the lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        if fcntl is None:
            return folder, None
        with suppress(FileNotFoundError):  # Another writer removed it before it was locked.
            lock = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # Not every file system has locks.
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_if_abandoned(folder: Path) -> None:
    lock = None if fcntl is None else os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if _is_abandoned(folder, lock):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


def _is_abandoned(folder: Path, lock: int | None) -> bool:
    if lock is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False  # Its writer is still running.
        except OSError:
            pass  # A file system without locks.
    return time.time() - folder.stat().st_mtime > ABANDONED_AFTER_SECONDS


def _move(folder: Path, target: Path) -> None:
    try:
        os.replace(folder, target)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:  # Another process filled the target in the meantime.
            raise FileExistsError(target) from None
        raise
