"""Results that were made before, as JSON files: written whole or not at all, and bounded in bytes.

The page is the only writer. Entries that were shipped with the program are pinned; of the others, the least
recently used are removed first. What cannot be read is treated as missing, and is made again.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

from pruning.errors import SavingError
from pruning.files import cache_folder, replacing, touch, trim_folder

FORMAT = 1
"""Raised when the form of the files changes."""
MAX_BYTES = 50_000_000
"""The most bytes of results that are kept, besides the pinned ones."""
MAX_ENTRY = 1_000_000
"""The most bytes of one result."""
PREPARED = Path(__file__).parent / "prepared"
"""The results that come with the program."""
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Key:
    """What a result is the result of.

    Attributes:
        kind: What kind of result it is, such as `texts`.
        digest: The SHA-256 of everything that the result depends on, in hexadecimal digits.
    """

    kind: str
    digest: str

    def __post_init__(self) -> None:
        if not (self.kind.isidentifier() and DIGEST.fullmatch(self.digest)):
            raise ValueError(f"{self.kind!r} and {self.digest!r} are not the key of a result.")

    @property
    def name(self) -> str:
        """The name of its file, without the extension."""
        return f"{self.kind}-{self.digest}"


@dataclass(frozen=True)
class Entry:
    """A result that was made before.

    Attributes:
        value: The result, as plain values.
        made: The day on which it was made.
    """

    value: object
    made: date


class ResultStore:
    """Results by key."""

    def __init__(
        self, folder: Path | None = None, prepared: Path = PREPARED, max_bytes: int = MAX_BYTES
    ) -> None:
        """Open a store.

        Args:
            folder: Where results are written; None for a folder in the cache.
            prepared: The folder with the pinned results, which are never written.
            max_bytes: The most bytes that the results in `folder` take.
        """
        self._folder, self._prepared, self._max_bytes = folder, prepared, max_bytes
        self._writing = threading.Lock()

    @property
    def folder(self) -> Path:
        """Where results are written."""
        return self._folder or cache_folder() / "results"

    def find(self, key: Key) -> Entry | None:
        """Return a result; None if there is none, or only a damaged one, which is removed."""
        if (pinned := self._pinned.get(key.name)) is not None:
            return pinned
        file = self._file(key)
        try:
            if file.stat().st_size > MAX_ENTRY:
                raise ValueError("the file is too large")
            entry = _read(json.loads(file.read_bytes()), key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            self.remove(key)
            return None
        touch(file)
        return entry

    def keep(self, key: Key, value: object, made: date | None = None) -> None:
        """Write a result. On a full disk, or if it is too large, it is not kept."""
        text = json.dumps(_plain(key, Entry(value, made or date.today())), ensure_ascii=False)
        if len(text.encode()) > MAX_ENTRY:
            return
        with self._writing, suppress(OSError, SavingError):
            with replacing(self._file(key)) as temporary:
                temporary.write_text(text, encoding="utf-8")
            trim_folder(self.folder, self._max_bytes)

    def remove(self, key: Key) -> None:
        """Remove a result that turned out to be damaged; it is made again."""
        self._pinned.pop(key.name, None)
        with suppress(OSError):
            self._file(key).unlink()

    @cached_property
    def _pinned(self) -> dict[str, Entry]:
        return dict(read_prepared(self._prepared))

    def _file(self, key: Key) -> Path:
        return self.folder / f"{key.name}.json"


def read_prepared(folder: Path) -> Iterator[tuple[str, Entry]]:
    """Yield the results in the files of a folder, with the names of their keys; damaged ones are left out."""
    for file in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            for plain in json.loads(file.read_bytes()):
                key = Key(plain["kind"], plain["key"])
                yield key.name, _read(plain, key)


def write_prepared(file: Path, entries: Mapping[Key, Entry]) -> None:
    """Write results to one file of a folder of prepared ones."""
    plain = [_plain(key, entry) for key, entry in entries.items()]
    lines = ",\n".join(json.dumps(each, ensure_ascii=False) for each in plain)
    with replacing(file) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _plain(key: Key, entry: Entry) -> dict[str, object]:
    return {
        "format": FORMAT,
        "kind": key.kind,
        "key": key.digest,
        "made": entry.made.isoformat(),
        "value": entry.value,
    }


def _read(plain: dict[str, object], key: Key) -> Entry:
    """Read what `_plain` returned. Raises `KeyError`, `TypeError` or `ValueError` for anything else."""
    if (plain["format"], plain["kind"], plain["key"]) != (FORMAT, key.kind, key.digest):
        raise ValueError("this is the result of something else")
    return Entry(plain["value"], date.fromisoformat(str(plain["made"])))
