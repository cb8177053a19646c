"""Writing to disk so that nothing is ever half-written, and where the cache is.

Everything is written in a workplace, a hidden folder beside its destination, and moved when it is whole.
A writer that is killed leaves its workplace behind; the next one to write there clears it away.
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
except ImportError:  # Windows
    fcntl = None

PREFIX = ".secateur-"
ABANDONED_AFTER = 24 * 3600
"""Seconds after which a workplace is taken for abandoned where there are no locks to tell."""


def cache_folder() -> Path:
    """Where converted weights and statistics are kept: `$SECATEUR_CACHE`, or in the user's cache."""
    if chosen := os.environ.get("SECATEUR_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "secateur"


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `target` when the block ends without error."""
    with workplace(target.parent) as folder:
        temporary = folder / target.name
        yield temporary
        os.replace(temporary, target)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends without error.

    Raises `FileExistsError` where `target` exists and is not an empty folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(target)
    with workplace(target.parent) as folder:
        temporary = folder / target.name
        temporary.mkdir()
        yield temporary
        _move(temporary, target)


def trim(folder: Path, most: int) -> None:
    """Remove the files of a folder that were longest not used (`used`) until the rest take at most so many
    bytes."""
    with suppress(OSError), os.scandir(folder) as entries:
        files = [(entry.stat(), entry.path) for entry in entries if entry.is_file(follow_symlinks=False)]
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime):
            if total <= most:
                break
            with suppress(OSError):
                os.unlink(path)
                total -= stat.st_size


def used(file: Path) -> None:
    """Note that a file was of use, for `trim`."""
    with suppress(OSError):
        os.utime(file)


def discard(target: Path) -> None:
    """Remove a folder so that no reader finds a part of it."""
    with workplace(target.parent) as folder, suppress(FileNotFoundError):
        os.replace(target, folder / target.name)


@contextmanager
def workplace(parent: Path | None = None) -> Iterator[Path]:
    """A hidden folder in `parent` (the system's temporary folder) that is removed at the end.

    Clears away those that killed processes left there.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def sweep(parent: Path) -> None:
    """Remove the workplaces in `parent` whose writers are gone."""
    with suppress(OSError), os.scandir(parent) as entries:
        left = [Path(entry.path) for entry in entries if entry.name.startswith(PREFIX)]
        for folder in left:
            with suppress(OSError):
                _remove_abandoned(folder)


def _locked_folder(parent: Path) -> tuple[Path, int | None]:
    """A new workplace, locked for as long as this process lives or until it closes the lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        if fcntl is None:
            return folder, None
        with suppress(FileNotFoundError):  # Swept before it was locked.
            lock = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # Not every file system has locks.
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_abandoned(folder: Path) -> None:
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
            return False  # Its writer lives.
        except OSError:
            pass  # A file system without locks.
    return time.time() - folder.stat().st_mtime > ABANDONED_AFTER


def _move(folder: Path, target: Path) -> None:
    try:
        os.replace(folder, target)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:  # Filled by somebody else meanwhile.
            raise FileExistsError(target) from None
        raise
