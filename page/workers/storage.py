"""Folders for what took minutes to make, bounded in bytes: the least recently used are removed first.

Several processes read and write the same folders. An entry appears whole or not at all, and a reader that
has opened its files keeps them when the entry is removed.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pruning.errors import PruningError
from pruning.files import discard, temporary_folder, touch

PUBLIC = "public"
MARGIN = 1.1
"""What must be free for each byte that is going to be written."""


@dataclass
class Storage:
    """Entries by key and owner, each in a folder of its own. What is nobody's is everyone's.

    The names of the folders can be guessed from nothing that a visitor knows, since files in them may be served.

    Attributes:
        folder: Where the entries are; created when the first one is written.
        max_bytes: The most bytes that they take.
        secret: What makes the names of this run.
    """

    folder: Path
    max_bytes: int
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def find(self, key: str, owner: str) -> Path | None:
        """Return the folder of a public entry or of one of this owner's; None if there is none."""
        for folder in (self._path(key, ""), self._path(key, owner)):
            if folder.is_dir():
                touch(folder)
                return folder
        return None

    @contextmanager
    def new(self, key: str, owner: str) -> Iterator[Path]:
        """Yield an empty folder that becomes the entry if the block ends without an error."""
        target = self._path(key, owner)
        with temporary_folder(target.parent) as work:
            folder = work / target.name
            folder.mkdir()
            yield folder
            with suppress(OSError):  # Another worker was faster.
                os.replace(folder, target)
        self.trim(keep=target)

    def make_room(self, size: int) -> None:
        """Remove entries until this many bytes more may be written.

        Raises:
            PruningError: There is not enough room on the disk, or within the bound.
        """
        self.trim(self.max_bytes - size)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if size > self.max_bytes or MARGIN * size > free:
            raise PruningError(
                f"This needs {size / 1e9:.1f} GB of disk space, and {min(free, self.max_bytes) / 1e9:.1f} GB are "
                "free here. Choose a smaller model, or try again later."
            )

    def forget(self, owner: str) -> None:
        """Remove what belongs to an owner, given by name or by all of it up to a colon."""
        with suppress(FileNotFoundError):
            discard(self.folder.joinpath(*self._parts(owner)))

    def trim(self, max_bytes: int | None = None, keep: Path | None = None) -> None:
        """Remove the least recently used entries until the rest fit into `max_bytes`, by default the bound."""
        limit = self.max_bytes if max_bytes is None else max_bytes
        entries = sorted(self._entries(), key=lambda entry: entry[1])
        total = sum(size for _, _, size in entries)
        for folder, _, size in entries:
            if total <= limit:
                break
            if folder != keep:
                with suppress(FileNotFoundError):
                    discard(folder)
                total -= size

    @property
    def bytes(self) -> int:
        """What all entries take."""
        return sum(size for _, _, size in self._entries())

    def _path(self, key: str, owner: str) -> Path:
        return self.folder.joinpath(*self._parts(owner), self._name(key))

    def _parts(self, owner: str) -> list[str]:
        """Return the folders of an owner: one for the session, and one in it for the account."""
        return [self._name(part) for part in owner.split(":")] if owner else [PUBLIC]

    def _name(self, text: str) -> str:
        return hashlib.blake2b(text.encode(), key=self.secret, digest_size=20).hexdigest()

    def _entries(self) -> Iterator[tuple[Path, float, int]]:
        """Yield each entry with the time of its last use and its bytes."""
        owned = (folder for folder in self.folder.glob("*/*/*") if folder.parts[-3] != PUBLIC)
        for folder in [*self.folder.glob(f"{PUBLIC}/*"), *owned]:
            if folder.is_dir() and not folder.name.startswith("."):
                with suppress(OSError):
                    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                    yield folder, folder.stat().st_mtime, size
