"""One cache for everything that was computed for a model in memory and costs seconds to compute again.

Each model has its own entries, which disappear with it. An entry is found by its key, a frozen dataclass
that the module that computes the value derives from `CacheKey`, for example

    @dataclass(frozen=True, kw_only=True)
    class BlockInfluencesKey(CacheKey[torch.Tensor]):
        windows: str

Keys of different classes never collide.
No value may refer to its model, or neither would ever be freed.

If a value was computed from a user's own text, its key holds the digest of that text, so that
`forget_text` can drop exactly these values when the user leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable
from weakref import WeakKeyDictionary

from pruning.lazy import nn

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class CacheKey(Generic[Value]):
    """What a value of the type `Value` was computed from; subclasses add fields.

    Attributes:
        text_sha256: The digest of the user's own text that the value was computed from, or None.
    """

    text_sha256: str | None


@runtime_checkable
class Sized(Protocol):
    """A value large enough to report how much memory it takes."""

    @property
    def bytes(self) -> int:
        """Bytes held in memory."""


_lock = threading.Lock()
_entries: WeakKeyDictionary[nn.Module, dict[CacheKey[Any], object]] = WeakKeyDictionary()


def cached(model: nn.Module, key: CacheKey[Value], make: Callable[[], Value]) -> Value:
    """Return the value cached for a model under a key; compute and keep it if there is none.

    The lock is not held while `make` runs: two threads that ask for the same value may both compute it.
    """
    with _lock:
        entries = _entries.setdefault(model, {})
        if key in entries:
            return cast(Value, entries[key])
    value = make()
    store(model, key, value)
    return value


def find(model: nn.Module, key: CacheKey[Value]) -> Value | None:
    """Return the value cached for a model under a key, or None."""
    with _lock:
        return cast(Value | None, _entries.get(model, {}).get(key))


def store(model: nn.Module, key: CacheKey[Value], value: Value) -> None:
    """Keep a value for a model under a key."""
    with _lock:
        _entries.setdefault(model, {})[key] = value


def drop(model: nn.Module, key: CacheKey[Any]) -> None:
    """Drop the value cached for a model under a key, if there is one."""
    with _lock:
        _entries.get(model, {}).pop(key, None)


def store_newest(model: nn.Module, key: CacheKey[Value], value: Value) -> None:
    """Keep a value for a model, and drop its other values under keys of the same class."""
    with _lock:
        entries = _entries.setdefault(model, {})
        for other in [other for other in entries if type(other) is type(key)]:
            del entries[other]
        entries[key] = value


def total_bytes() -> int:
    """Return how much memory the cached statistics take, in bytes. Small values are not counted."""
    with _lock:
        values = [value for entries in _entries.values() for value in entries.values()]
    return sum(value.bytes for value in values if isinstance(value, Sized))


def clear(kind: type[CacheKey[Any]] = CacheKey) -> None:
    """Drop the values of all models: all of them, or those whose keys are of one class."""
    _drop(lambda key: isinstance(key, kind))


def forget_text(sha256: str) -> None:
    """Drop what any model computed from the user's text with this digest, and nothing else.

    Args:
        sha256: The digest as `TextChoice.sha256` holds it.
    """
    _drop(lambda key: key.text_sha256 == sha256)


def _drop(is_unwanted: Callable[[CacheKey[Any]], bool]) -> None:
    with _lock:
        for entries in _entries.values():
            for key in [key for key in entries if is_unwanted(key)]:
                del entries[key]
