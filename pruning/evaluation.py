"""What a model is worth: perplexity on text it was not calibrated on, size, speed."""

import hashlib
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.calibration import readable, split, token_ids
from pruning.errors import RecipeError
from pruning.likelihood import token_losses
from pruning.progress import Progress, Reporter, silent
from pruning.texts import GENRES, passage

WINDOW = 512
GENRE_TOKENS = 1024


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of each token but the first of each window.

    `tokens` are the tokens read, `window` how many at a time, `text` which text.
    """

    value: float
    tokens: int
    window: int
    text: str


@dataclass(frozen=True)
class Quality:
    """Perplexity on the held-out passages: over all of them, and by genre."""

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
    ids = token_ids(model, tokenizer, text)[:tokens]
    window = readable(model, window)
    total, count, read = 0.0, 0, 0
    for loss, length in _losses(model, split(tokenizer, ids, window), name, progress):
        total, count, read = (
            total + float(loss.sum(dtype=torch.float64)),
            count + len(loss),
            read + length,
        )
    if not count:
        raise RecipeError("The text to evaluate on is too short: at least two tokens are needed.")
    return Perplexity(_exp(total / count), read, window, name)


def quality(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    progress: Reporter = silent,
    tokens: int | None = None,
) -> Quality:
    """Perplexity on the bundled held-out passages: `tokens` in all, the same number of each genre."""
    return summarise(dict(by_genre(model, tokenizer, progress, tokens)))


def by_genre(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    progress: Reporter = silent,
    tokens: int | None = None,
) -> Iterator[tuple[str, Perplexity]]:
    """The parts of `quality`, one genre after the other."""
    share = GENRE_TOKENS if tokens is None else max(2, tokens // len(GENRES))
    for genre, title in GENRES.items():
        name = f"{title}, held out"
        yield (
            genre,
            perplexity(model, tokenizer, passage(genre, "heldout"), share, name=name, progress=progress),
        )


def summarise(genres: dict[str, Perplexity]) -> Quality:
    """All genres together, each weighing the same: the geometric mean of their perplexities."""
    mean = sum(math.log(result.value) for result in genres.values()) / len(genres)
    tokens = sum(result.tokens for result in genres.values())
    window = next(iter(genres.values())).window
    return Quality(Perplexity(_exp(mean), tokens, window, "five genres, held out"), genres)


def digest(revision: str | None) -> str:
    """Identifies a measurement of `quality`: the model's revision and the texts it was made on."""
    texts = "".join(passage(genre, "heldout") for genre in GENRES)
    return hashlib.sha256(f"{revision}|{WINDOW}|{GENRE_TOKENS}|{texts}".encode()).hexdigest()[:32]


def tokens_per_second(
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    new_tokens: int = 24,
    rounds: int = 3,
) -> tuple[float, ...]:
    """Greedy generation at batch 1, with the cache: the median over rounds for each model.

    The models take turns, so that what else the machine does weighs on all of them alike.
    """
    inputs = tokenizer("Once upon a time", return_tensors="pt").input_ids
    seconds: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for round_number in range(rounds + 1):
            length = new_tokens if round_number else 2
            for model, times in zip(models, seconds, strict=True):
                start = time.perf_counter()
                model.generate(
                    inputs.to(model.device),
                    attention_mask=torch.ones_like(inputs, device=model.device),
                    do_sample=False,
                    pad_token_id=0,
                    max_new_tokens=length,
                    min_new_tokens=length,
                )
                if round_number:
                    times.append(time.perf_counter() - start)
    return tuple(new_tokens / statistics.median(times) for times in seconds)


def size_on_disk(parameters: int, dtype: torch.dtype) -> int:
    """Bytes that the weights take in a safetensors file, without its small header."""
    return parameters * dtype.itemsize


def _losses(model, windows, name: str, progress: Reporter):
    """The negative log-likelihood of each predicted token, window by window."""
    for done, window in enumerate(windows):
        progress(Progress(f"Measuring perplexity on {name}, windows", done, len(windows)))
        if len(window) < 2:
            continue
        yield token_losses(model, window), len(window)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
