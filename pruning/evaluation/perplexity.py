"""What a model is worth: perplexity and bits per byte on text it was not calibrated on, size, speed."""

import hashlib
import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.errors import RecipeError
from pruning.progress import Progress, Reporter, silent
from pruning.text.likelihood import perplexity_of, token_losses
from pruning.text.passages import GENRES, passage
from pruning.text.tokens import bos_ids, check_vocabulary, split_into_windows, usable_window

WINDOW = 512

GENRE_CHARACTERS = 4000
"""How much of each passage is read: the same text, however many tokens a vocabulary makes of it."""

_FORMAT = 2
"""Raised when what is kept on disk changes its meaning."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of each token, but for the first of a window that begins
    with none before it.

    `tokens` are the text's tokens that were read, not counting what the tokenizer adds; `window` how many
    tokens at a time; `text` which text. `bits_per_byte` is the same total in bits over the UTF-8 bytes of
    the tokens predicted (Gao et al., 2020, The Pile): unlike perplexity, it compares models with
    different vocabularies. None where it was not measured.
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

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Quality":
        genres = {genre: Perplexity(**values["genres"][genre]) for genre in GENRES}
        return cls(Perplexity(**values["overall"]), genres)


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    tokens: int | None = None,
    window: int = WINDOW,
    name: str = "own text",
    progress: Reporter = silent,
) -> Perplexity:
    """Perplexity on the first `tokens` tokens of a text, in windows that do not overlap."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = torch.tensor(encoded.input_ids[:tokens], dtype=torch.long)
    check_vocabulary(model, tokenizer, ids)
    ends = [end for _, end in encoded.offset_mapping]
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
        raise RecipeError("The text to evaluate on is too short: at least two tokens are needed.")
    return Perplexity(perplexity_of(total / count), read, window, name, total / math.log(2) / max(size, 1))


def quality(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    progress: Reporter = silent,
    tokens: int | None = None,
) -> Quality:
    """Perplexity and bits per byte on the bundled held-out passages.

    The same number of characters of each genre; or `tokens` in all, the same number of each genre, which
    is not the same text for every vocabulary.
    """
    return summarize(dict(by_genre(model, tokenizer, progress, tokens)))


def by_genre(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    progress: Reporter = silent,
    tokens: int | None = None,
) -> Iterator[tuple[str, Perplexity]]:
    """The parts of `quality`, one genre after the other."""
    for genre, title in GENRES.items():
        name, text = f"{title}, held out", passage(genre, "heldout")
        if tokens is None:
            yield genre, perplexity(model, tokenizer, text[:GENRE_CHARACTERS], name=name, progress=progress)
        else:
            share = max(2, tokens // len(GENRES))
            yield genre, perplexity(model, tokenizer, text, share, name=name, progress=progress)


def summarize(genres: dict[str, Perplexity]) -> Quality:
    """All genres together, each weighing the same: the geometric mean of their perplexities, and the
    mean of their bits per byte."""
    mean = sum(math.log(result.value) for result in genres.values()) / len(genres)
    tokens = sum(result.tokens for result in genres.values())
    window = next(iter(genres.values())).window
    bits = statistics.fmean(result.bits_per_byte for result in genres.values())
    return Quality(Perplexity(perplexity_of(mean), tokens, window, "five genres, held out", bits), genres)


def digest(revision: str | None) -> str:
    """Identifies a measurement of `quality`: the model's revision and the texts it was made on."""
    texts = "".join(passage(genre, "heldout") for genre in GENRES)
    key = f"{_FORMAT}|{revision}|{WINDOW}|{GENRE_CHARACTERS}|{texts}"
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def size_on_disk(parameters: int, dtype: torch.dtype) -> int:
    """Bytes that the weights take in a safetensors file, without its small header."""
    return parameters * dtype.itemsize
