"""From a calibration text to token windows and to statistics, computed once for each model and text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pruning.calibration.cache import CacheKey, cached, find, store, store_newest
from pruning.calibration.given_windows import read_windows
from pruning.calibration.statistics import SavedStatistics, Statistics, read_statistics
from pruning.errors import RecipeError
from pruning.files import cache_folder, touch, trim_folder
from pruning.lazy import safetensors, torch
from pruning.loading.load import LoadedModel, weights_id
from pruning.progress import Reporter, silent
from pruning.text.chat import PlainText
from pruning.text.chat_learning import learn_chat_format
from pruning.text.choice import Calibration, read_texts
from pruning.text.generation import sample_text
from pruning.text.own_answers import (
    MOST_GENERATED,
    Conversation,
    are_shipped,
    digest_of,
    own_answers,
    pack,
    shipped_answers,
)
from pruning.text.passages import CHAT, CHAT_AND_GENERAL, GENERAL, GENRES, SELF_GENERATED
from pruning.text.tokens import (
    Windows,
    bos_ids,
    check_vocabulary,
    check_words_known,
    sample_evenly,
    split_into_windows,
    token_ids,
    usable_window,
)

HELD_OUT = 8
"""One in eight calibration tokens is held out, to choose how far to repair."""

LEAST_TOKENS = 256

_FORMAT = 3
"""Raised when the content of the files in the disk cache changes its meaning."""

MOST_ON_DISK = 4 * 10**9
"""Bytes of statistics in the disk cache: those of about six texts for SmolLM2-135M."""

LARGEST_ON_DISK = 10**9
"""Bytes of statistics that are written there for one text. Larger ones take longer to write than many a user waits."""


@dataclass(frozen=True, kw_only=True)
class SelfTextKey(CacheKey[str]):
    """How many tokens a model generated for its own calibration, and from which seed."""

    tokens: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class OwnAnswersKey(CacheKey[tuple[Conversation, ...]]):
    """For about how many tokens a model answered the bundled questions."""

    tokens: int


@dataclass(frozen=True, kw_only=True)
class WindowsKey(CacheKey[str]):
    """What decides the token windows of a calibration text, whose digest is the cached value."""

    text: str
    tokens: int
    window: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class StatisticsKey(CacheKey[Statistics | SavedStatistics]):
    """The digest of the token windows that were read, and the modules whose inputs were observed."""

    windows: str
    hooked_modules: tuple[str, ...]


CHAT_SHARE = 2 / 3
"""The share of chat in the mix of chat and genres."""


def windows_of(
    base: LoadedModel,
    calibration: Calibration,
    seed: int = 0,
    progress: Reporter = silent,
    author: LoadedModel | None = None,
) -> Windows:
    """Return the calibration text as token windows.

    Every source of text gives the same number of tokens, the last eighth of which is held out. Of a mix of chat and
    genres, chat gives two thirds; a model without a chat format reads the last third alone.

    Args:
        base: The model that reads the text, and writes it if the text is its own.
        calibration: The text, and how much of it to read.
        seed: Seed of a self-generated text.
        progress: Called with the progress of downloading or generating the text, and of tokenizing it.
        author: The model whose own answers are read; None for `base`. For a model that a step has changed, it is
            the one that was loaded.

    Raises:
        RecipeError: There is too little text, the user's own text is missing, or the model has no chat format.
    """
    if calibration.kind != "text":
        return _given_windows(base, calibration)
    if calibration.text == CHAT:
        return _chat_windows(base, calibration, author or base, progress)
    if calibration.text == CHAT_AND_GENERAL:
        return _mixed_windows(base, calibration, author or base, progress)
    texts = _texts(base, calibration, seed, progress)
    share = calibration.tokens // len(texts)
    window = usable_window(base.model, calibration.window)
    fitting, heldout = [], []
    for text in texts:
        tokens = sample_evenly(
            token_ids(base.model, base.tokenizer, text, progress),
            share,
            window - len(bos_ids(base.tokenizer)),
        )
        if len(tokens) < min(share, LEAST_TOKENS // len(texts)):
            check_words_known(base.tokenizer, text, tokens.tolist())
            raise RecipeError(
                f"The calibration text has {len(tokens)} tokens; at least {LEAST_TOKENS} are needed. "
                "Use a longer text."
            )
        border = len(tokens) - len(tokens) // HELD_OUT
        fitting += split_into_windows(base.tokenizer, tokens[:border], window)
        heldout += split_into_windows(base.tokenizer, tokens[border:], window)
    return Windows(tuple(fitting), tuple(heldout), calibration.sha256)


def _mixed_windows(
    base: LoadedModel, calibration: Calibration, author: LoadedModel, progress: Reporter
) -> Windows:
    """Return chat and all genres as windows; the genres alone for a model without a chat format."""
    of_chat = round(calibration.tokens * CHAT_SHARE)
    general = calibration.model_copy(update={"text": GENERAL, "tokens": calibration.tokens - of_chat})
    windows = windows_of(base, general, progress=progress)
    if isinstance(learn_chat_format(author.tokenizer), PlainText):
        return windows
    chat = calibration.model_copy(update={"text": CHAT, "tokens": _answer_tokens(calibration, author)})
    answers = _chat_windows(base, chat, author, progress)
    return Windows(answers.fitting + windows.fitting, answers.heldout + windows.heldout)


def _answer_tokens(calibration: Calibration, author: LoadedModel) -> int:
    """Return for about how many tokens a model answers the bundled questions; 0 if its answers are not read."""
    if calibration.text == CHAT:
        return calibration.tokens
    if calibration.text != CHAT_AND_GENERAL:
        return 0
    of_chat = round(calibration.tokens * CHAT_SHARE)
    return of_chat if are_shipped(author.source) else min(of_chat, MOST_GENERATED)


def answers_digest(author: LoadedModel, calibration: Calibration) -> str | None:
    """Return the digest of a model's own answers that a calibration reads; None if none were read.

    Args:
        author: The model that answers.
        calibration: The text that was read.
    """
    tokens = _answer_tokens(calibration, author)
    if not tokens or isinstance(learn_chat_format(author.tokenizer), PlainText):
        return None
    if are_shipped(author.source):
        return digest_of(shipped_answers())
    answers = find(author.model, OwnAnswersKey(text_sha256=None, tokens=tokens))
    return None if answers is None else digest_of(answers)


def _chat_windows(
    base: LoadedModel, calibration: Calibration, author: LoadedModel, progress: Reporter
) -> Windows:
    """Return the author's answers to the bundled questions as windows, one in eight of them held out."""
    windows = chat_windows(base, author, calibration.tokens, calibration.window, progress)
    if sum(map(len, windows)) < min(calibration.tokens, LEAST_TOKENS):
        raise RecipeError(
            f"The model's answers are too short to calibrate on. Choose another text, such as {GENERAL}."
        )
    return hold_out(windows)


def chat_windows(
    reader: LoadedModel, author: LoadedModel, tokens: int, window: int, progress: Reporter = silent
) -> list[torch.Tensor]:
    """Return a model's answers to the bundled questions, in its chat format, as token windows.

    Args:
        reader: The model that reads them.
        author: The model that answers, and whose chat format is used.
        tokens: The most tokens in all windows together.
        window: The most tokens of a window, limited to the reader's context.
        progress: Called before every token that is generated.

    Returns:
        Token ids, each `[at most window]`.

    Raises:
        RecipeError: The author has no chat format, or the reader has no embedding for a token.
        ModelError: The tokenizer failed on a question.
    """
    chat_format = learn_chat_format(author.tokenizer)
    if isinstance(chat_format, PlainText):
        raise RecipeError(
            f"The text {CHAT} needs a model that can chat. {chat_format.reason} Choose another text."
        )
    key = OwnAnswersKey(text_sha256=None, tokens=tokens)
    answers = cached(author.model, key, lambda: own_answers(author, tokens, progress))
    packed = pack(reader, chat_format, answers, usable_window(reader.model, window), tokens)
    windows = [torch.tensor(ids) for ids in packed]
    for ids in windows:
        check_vocabulary(reader.model, reader.tokenizer, ids)
    return windows


def _given_windows(base: LoadedModel, calibration: Calibration) -> Windows:
    """Return conversations or tokens that the user gave as windows, one in eight of them held out."""
    windows = read_windows(base, calibration)
    if (count := sum(map(len, windows))) < LEAST_TOKENS:
        raise RecipeError(
            f"The calibration text has {count} tokens; at least {LEAST_TOKENS} are needed. Give more of it."
        )
    return replace(hold_out(windows), text_sha256=calibration.sha256)


def hold_out(windows: list[torch.Tensor]) -> Windows:
    """Hold out one window in eight, and at least one; of a single window, its last eighth."""
    if len(windows) == 1:
        border = len(windows[0]) - len(windows[0]) // HELD_OUT
        windows = [windows[0][:border], windows[0][border:]]
    heldout = windows[HELD_OUT - 1 :: HELD_OUT] or windows[-1:]
    fitting = [ids for ids in windows if not any(ids is other for other in heldout)]
    return Windows(tuple(fitting), tuple(heldout))


def _texts(base: LoadedModel, calibration: Calibration, seed: int, progress: Reporter) -> Sequence[str]:
    if calibration.text == SELF_GENERATED:
        return [_self_generated(base, calibration.tokens, seed, progress)]
    return read_texts(calibration, progress)


def _self_generated(base: LoadedModel, tokens: int, seed: int, progress: Reporter) -> str:
    key = SelfTextKey(text_sha256=None, tokens=tokens, seed=seed)
    return cached(base.model, key, lambda: sample_text(base, tokens, seed, progress))


def statistics_of(
    base: LoadedModel,
    calibration: Calibration,
    hooked_modules: Sequence[str],
    seed: int = 0,
    save_to_disk: bool = True,
    progress: Reporter = silent,
    author: LoadedModel | None = None,
) -> Statistics | SavedStatistics:
    """Return a model's statistics on the calibration text, from memory or the disk cache if present.

    Only the newest statistics of a model stay in memory. The disk cache holds those of the default
    model on the bundled texts, never those of a user's own text.

    Args:
        base: The model that reads the text.
        calibration: The text, and how much of it to read.
        hooked_modules: The names of the projections whose inputs are observed.
        seed: Seed of a self-generated text.
        save_to_disk: Whether the model is the one that was loaded, so that another process can use its
            statistics; not one that a step has changed.
        progress: Called with the progress of the work.
        author: The model whose own answers are read, as `windows_of` says.

    Returns:
        The statistics; those from the disk cache read their matrices when asked for.

    Raises:
        RecipeError: There is too little text, or the user's own text is missing.
    """
    modules = tuple(hooked_modules)
    digest = calibration.sha256
    windows_key = WindowsKey(
        text_sha256=digest,
        text=calibration.text,
        tokens=calibration.tokens,
        window=calibration.window,
        seed=seed,
    )
    if digest is None and (windows_digest := find(base.model, windows_key)) is not None:
        key = StatisticsKey(text_sha256=None, windows=windows_digest, hooked_modules=modules)
        if (newest := find(base.model, key)) is not None:
            return newest
    # A user's own text is always read, so that it is asked for if it is missing.
    windows = windows_of(base, calibration, seed, progress, author)
    store(base.model, windows_key, windows.digest)
    key = StatisticsKey(text_sha256=digest, windows=windows.digest, hooked_modules=modules)
    if (newest := find(base.model, key)) is not None:
        return newest
    file = None
    # What is private, or was computed from a user's own text, is not written to disk.
    if (
        save_to_disk
        and base.source.public
        and base.source.revision
        and calibration.text in (CHAT_AND_GENERAL, CHAT, GENERAL, *GENRES)
    ):
        file = _disk_cache_file(base, windows, modules)
        if (saved := read_statistics(file, base.model.device)) is not None:
            touch(file)
            store_newest(base.model, key, saved)
            return saved
    statistics = Statistics(base.model, modules, windows.fitting, windows.heldout, progress=progress)
    if file is not None and statistics.complete and statistics.bytes <= LARGEST_ON_DISK:
        _save(statistics, file, progress)
    elif statistics.complete:
        store_newest(base.model, key, statistics)
    return statistics


def _disk_cache_file(base: LoadedModel, windows: Windows, hooked_modules: Sequence[str]) -> Path:
    """Return the file in the disk cache for a model's statistics on these windows."""
    content = f"{_FORMAT}|{weights_id(base)}|{windows.digest}|{'|'.join(hooked_modules)}"
    name = hashlib.sha256(content.encode()).hexdigest()[:32]
    return cache_folder() / "statistics" / f"{name}.safetensors"


def _save(statistics: Statistics, file: Path, progress: Reporter) -> None:
    # A full disk costs the next run some seconds, nothing else.
    with suppress(OSError, safetensors.SafetensorError):
        statistics.save(file, progress)
        trim_folder(file.parent, MOST_ON_DISK)
