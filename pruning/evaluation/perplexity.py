"""Perplexity and bits per byte on text that a model was not calibrated on, and its size on disk."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pruning.errors import RecipeError
from pruning.lazy import torch
from pruning.loading.given import AnyModel, CausalLM, with_tokenizer
from pruning.progress import Progress, Reporter, silent
from pruning.text.likelihood import perplexity_of, token_losses
from pruning.text.passages import GENRES, passage
from pruning.text.tokens import (
    bos_ids,
    check_vocabulary,
    check_words_known,
    split_into_windows,
    tokenize,
    usable_window,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 512

GENRE_CHARACTERS = 4000
"""How much of each passage is read: the same text for every vocabulary, however many tokens it becomes."""

_FORMAT = 2
"""Raised when the meaning of an evaluation that is kept on disk changes."""


@dataclass(frozen=True)
class Perplexity:
    """Perplexity on a text: exp of the mean negative log-likelihood of each predicted token.

    The first token of a window is not predicted if the tokenizer puts none before it.

    Attributes:
        value: The perplexity, 1 or more.
        tokens: Tokens of the text that were read, without those that the tokenizer adds.
        window: Tokens read at a time.
        text: The name of the text.
        bits_per_byte: The same total in bits over the UTF-8 bytes of the predicted tokens (Gao et al.,
            2020, The Pile). Unlike perplexity, it compares models with different vocabularies. None if
            it was not measured.
    """

    value: float
    tokens: int
    window: int
    text: str
    bits_per_byte: float | None = None


@dataclass(frozen=True)
class Quality:
    """Perplexity and bits per byte on the held-out passages: over all of them, and by genre."""

    overall: Perplexity
    genres: dict[str, Perplexity]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Quality:
        """Read what `to_dict` returned. Raises `KeyError` or `TypeError` for anything else."""
        genres = {genre: Perplexity(**values["genres"][genre]) for genre in GENRES}
        return cls(Perplexity(**values["overall"]), genres)


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    tokens: int | None = None,
    window: int = WINDOW,
    name: str = "custom text",
    progress: Reporter = silent,
) -> Perplexity:
    """Measure perplexity and bits per byte on a text, in windows that do not overlap.

    Args:
        model: The model to measure.
        tokenizer: Splits the text.
        text: What to measure on.
        tokens: How many of its first tokens to read; None for all.
        window: Tokens read at a time, limited to the model's context.
        name: What the result and the progress call the text.
        progress: Called before every part of the text that is tokenized, and before every window.

    Returns:
        The result, with the number of tokens that were read.

    Raises:
        RecipeError: The text has fewer than two tokens, or one that the model has no embedding for.

    Example:
        >>> import pruning
        >>> base = pruning.load("smollm2-135m")
        >>> measured = pruning.perplexity(base.model, base.tokenizer, "A text of your own.")
        >>> measured.value > 1
        True
    """
    tokenized = tokenize(tokenizer, text, progress, limit=tokens)
    ids, ends = torch.tensor(tokenized.ids[:tokens], dtype=torch.long), tokenized.ends
    check_vocabulary(model, tokenizer, ids)
    window, added = usable_window(model, window), len(bos_ids(tokenizer))
    windows = split_into_windows(tokenizer, ids, window)
    total, count, size, read = 0.0, 0, 0, 0
    for done, piece in enumerate(windows):
        progress(Progress(f"Measuring perplexity on {name}, windows", done, len(windows)))
        first, last = read + (added == 0), read + len(piece) - added
        if first == last:
            continue  # One token, and nothing to predict it from.
        losses = token_losses(model, piece)[max(added - 1, 0) :]
        total += float(losses.sum(dtype=torch.float64))
        count += len(losses)
        size += len(text[ends[first - 1] if first else 0 : ends[last - 1]].encode())
        read = last
    if not count:
        check_words_known(tokenizer, text, tokenized.ids)
        raise RecipeError("The text to evaluate on is too short: at least two tokens are needed.")
    return Perplexity(perplexity_of(total / count), read, window, name, total / math.log(2) / max(size, 1))


def evaluate(
    model: AnyModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    tokens: int | None = None,
    progress: Reporter = silent,
) -> Quality:
    """Measure perplexity and bits per byte on the bundled held-out passages of five genres.

    Args:
        model: The model: a name, a folder, one that is loaded, or one that was pruned.
        tokenizer: The tokenizer of a model that transformers loaded.
        tokens: How many tokens to read in all, the same number of each genre: quicker, but not the
            same text for every vocabulary. None reads the same characters of each genre.
        progress: Called before every window.

    Returns:
        The results over all genres and for each of them.

    Raises:
        ModelError: The model cannot be used.
        RecipeError: The tokenizer has a token that the model has no embedding for.

    Example:
        >>> import pruning
        >>> base = pruning.load("smollm2-135m")
        >>> quality = pruning.evaluate(base, tokens=500)
        >>> list(quality.genres)
        ['encyclopedia', 'story', 'code', 'dialogue', 'documentation']
    """
    given = with_tokenizer(model, tokenizer, progress=progress)
    return summarize(dict(iter_evaluate(given, tokens=tokens, progress=progress)))


def iter_evaluate(
    model: CausalLM, *, tokens: int | None = None, progress: Reporter = silent
) -> Iterator[tuple[str, Perplexity]]:
    """Measure as `evaluate` does, and yield each genre with its result as soon as it is measured."""
    for genre, title in GENRES.items():
        name, text = f"{title}, held out", passage(genre, "heldout")
        share = None
        if tokens is None:
            text = text[:GENRE_CHARACTERS]
        else:
            share = max(2, tokens // len(GENRES))
        measured = perplexity(model.model, model.tokenizer, text, tokens=share, name=name, progress=progress)
        yield genre, measured


def summarize(genres: dict[str, Perplexity]) -> Quality:
    """Put the results of genres together, every genre weighing the same.

    Args:
        genres: At least one result.

    Returns:
        Overall, the geometric mean of the perplexities and the mean of the bits per byte (None if one of
        them was not measured).
    """
    mean = sum(math.log(result.value) for result in genres.values()) / len(genres)
    tokens = sum(result.tokens for result in genres.values())
    window = next(iter(genres.values())).window
    measured = [result.bits_per_byte for result in genres.values() if result.bits_per_byte is not None]
    bits = statistics.fmean(measured) if len(measured) == len(genres) else None
    return Quality(Perplexity(perplexity_of(mean), tokens, window, "five genres, held out", bits), genres)


def evaluation_key(revision: str | None) -> str:
    """Return 32 hexadecimal digits that identify an evaluation of a model revision on today's passages."""
    texts = "".join(passage(genre, "heldout") for genre in GENRES)
    key = f"{_FORMAT}|{revision}|{WINDOW}|{GENRE_CHARACTERS}|{texts}"
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def size_on_disk(parameters: int, dtype: torch.dtype) -> int:
    """Return the bytes that weights take in a safetensors file, without its small header."""
    return parameters * dtype.itemsize
