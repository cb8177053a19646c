"""Read a tokenizer, after a child process with tight limits has tried it out.

A tokenizer is a program that a stranger wrote; see `pruning.loading.tokenizer_probe` for what it may do.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.errors import ModelError, panics_as_errors
from pruning.lazy import transformers
from pruning.limited_child import Exhausted, run_limited
from pruning.loading import tokenizer_probe
from pruning.loading.files import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEMORY_BYTES = 2_000_000_000

CPU_SECONDS = 20

SECONDS = 240.0
"""How long the child may take on a busy machine. Its own time on the processor is limited more tightly."""

PYTHON_TOKENIZERS = ("ByT5Tokenizer",)
"""Tokenizers not written in Rust that take time in proportion to the text."""

_FILES = ("tokenizer.json", *tokenizer_probe.OTHER_FILES)

_TOO_MUCH = "trying it out takes too much memory or time"


def read_checked(folder: Path, name: str, trusted: bool = False) -> PreTrainedTokenizerBase:
    """Read the tokenizer in a folder, once it is known to be harmless.

    Args:
        folder: The model's folder.
        name: The model, for messages.
        trusted: Whether the tokenizer comes from an installed package, and need not be tried out.

    Raises:
        ModelError: It is refused, or cannot be read.
    """
    if not trusted:
        _require(_verdict_on_folder(folder, _digest(folder)), name)
    damaged = f"The tokenizer of {name} is damaged: the library that reads it stops. Choose another."
    try:
        with panics_as_errors(damaged):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
            if not trusted:
                _check_rebuilt(tokenizer, folder, name)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"The tokenizer of {name} cannot be read: {first_line(error)}") from error
    return tokenizer


def _check_rebuilt(tokenizer: PreTrainedTokenizerBase, folder: Path, name: str) -> None:
    """Try out what transformers made of other files than tokenizer.json."""
    if not getattr(tokenizer, "is_fast", False):
        if type(tokenizer).__name__ not in PYTHON_TOKENIZERS:
            _require(f"{type(tokenizer).__name__} is not a tokenizer that is fast on every text", name)
    elif not (folder / "tokenizer.json").is_file():
        _require(_verdict_on_text(tokenizer.backend_tokenizer.to_str()), name)


def _require(refusal: str | None, name: str) -> None:
    if refusal is not None:
        raise ModelError(f"The tokenizer of {name} is refused: {refusal}. Choose another model.")


def _digest(folder: Path) -> str:
    """Return a digest of the files that decide whether a tokenizer is refused."""
    total = hashlib.sha256()
    try:
        for file in (folder / name for name in _FILES):
            if file.is_file():
                with file.open("rb") as stream:
                    total.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise ModelError(f"{file.name} in {folder.name} cannot be read: {error.strerror}.") from None
    return total.hexdigest()


_verdicts: dict[str, str | None] = {}
"""What is known of tokenizers that this process has tried out, by the digest of their files."""

MAX_VERDICTS = 1_000


def _verdict_on_folder(folder: Path, digest: str) -> str | None:
    return _remembered(digest, str(folder), b"")


def _verdict_on_text(text: str) -> str | None:
    content = text.encode("utf-8", "replace")
    return _remembered(hashlib.sha256(content).hexdigest(), "-", content)


def _remembered(digest: str, place: str, content: bytes) -> str | None:
    if digest not in _verdicts:
        if len(_verdicts) >= MAX_VERDICTS:
            _verdicts.clear()
        _verdicts[digest] = _try_out(place, content)
    return _verdicts[digest]


def _try_out(place: str, content: bytes) -> str | None:
    """Run the child, and return why the tokenizer is refused, or None."""
    try:
        refusal = run_limited(
            tokenizer_probe.__file__,
            place,
            content=content,
            packages=["tokenizers"],
            memory=MEMORY_BYTES,
            cpu_seconds=CPU_SECONDS,
            seconds=SECONDS,
        )["refused"]
    except Exhausted:
        return _TOO_MUCH
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"A tokenizer could not be tried out: {first_line(error)}. Try again.") from error
    return None if refusal is None else " ".join(str(refusal).split())[:400]
