"""Text → token windows → statistics, computed once for each (model revision, text)."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from weakref import WeakKeyDictionary

from safetensors import SafetensorError

from pruning import catalog
from pruning.calibration.statistics import SavedStatistics, Statistics, read_statistics
from pruning.errors import RecipeError
from pruning.files import cache_folder, touch, trim_folder
from pruning.loading.load import LoadedModel
from pruning.progress import Reporter, silent
from pruning.text.choice import Calibration, read_texts
from pruning.text.generation import sample_text
from pruning.text.passages import GENERAL, GENRES, OWN, SELF
from pruning.text.tokens import Windows, bos_ids, sample_evenly, split_into_windows, token_ids, usable_window

HELD_OUT = 8
"""One in so many calibration tokens is held out to choose how far to repair."""

LEAST_TOKENS = 256

_FORMAT = 3
"""Raised when what is kept on disk changes its meaning."""

MOST_ON_DISK = 4 * 10**9
"""Bytes of statistics that are kept on disk: those of about six texts for SmolLM2-135M."""


def windows_of(
    base: LoadedModel, calibration: Calibration, seed: int = 0, progress: Reporter = silent
) -> Windows:
    """The calibration text as token windows.

    Every source of text gives the same number of tokens. Of each, the last eighth is held out.
    Raises `RecipeError` where there is too little text.
    """
    texts = _texts(base, calibration, seed, progress)
    share = calibration.tokens // len(texts)
    window = usable_window(base.model, calibration.window)
    fitting, heldout = [], []
    for text in texts:
        tokens = sample_evenly(
            token_ids(base.model, base.tokenizer, text), share, window - len(bos_ids(base.tokenizer))
        )
        if len(tokens) < min(share, LEAST_TOKENS // len(texts)):
            raise RecipeError(
                f"The calibration text has {len(tokens)} tokens; at least {LEAST_TOKENS} are needed. "
                "Use a longer text."
            )
        border = len(tokens) - len(tokens) // HELD_OUT
        fitting += split_into_windows(base.tokenizer, tokens[:border], window)
        heldout += split_into_windows(base.tokenizer, tokens[border:], window)
    return Windows(tuple(fitting), tuple(heldout))


def _texts(base: LoadedModel, calibration: Calibration, seed: int, progress: Reporter) -> Sequence[str]:
    if calibration.text == SELF:
        return [_self_written(base, calibration.tokens, seed, progress)]
    return read_texts(calibration, progress)


def statistics_of(
    base: LoadedModel,
    calibration: Calibration,
    sites: Sequence[str],
    seed: int = 0,
    keep: bool = True,
    progress: Reporter = silent,
) -> Statistics | SavedStatistics:
    """What a model does with the calibration text, from disk where it was kept.

    Kept for the default model as it was loaded (`keep`) and the bundled texts; never for a user's
    own text.
    """
    asked = f"{calibration!r}|{seed}|{sites}"
    last_asked, last_key, newest = _newest.get(base.model, ("", "", None))
    if asked == last_asked and calibration.text != OWN:
        return newest
    windows = windows_of(base, calibration, seed, progress)
    key = hashlib.sha256(
        f"{_FORMAT}|{base.source.revision}|{windows.digest}|{'|'.join(sites)}".encode()
    ).hexdigest()[:32]
    if key == last_key:
        return newest
    file = None
    if keep and base.source.name == catalog.DEFAULT_MODEL and calibration.text in (GENERAL, *GENRES):
        file = cache_folder() / "statistics" / f"{key}.safetensors"
        if (saved := read_statistics(file, base.model.device)) is not None:
            touch(file)
            _newest[base.model] = asked, key, saved
            return saved
    statistics = Statistics(base.model, sites, windows.fitting, windows.heldout, progress=progress)
    if file is not None:
        _keep(statistics, file)
    elif statistics.complete:
        _newest[base.model] = asked, key, statistics
    return statistics


_newest: WeakKeyDictionary = WeakKeyDictionary()
"""For each model in memory, the statistics that were last used, computed or mapped from their file: what
was asked for (an own text by its digest), the digest of what was read, and they."""


def kept_bytes() -> int:
    """What the statistics in memory take."""
    return sum(newest.bytes for _, _, newest in list(_newest.data.values()))


def forget_read() -> None:
    """Drop all statistics in memory."""
    _newest.clear()


def forget_own() -> None:
    """Drop the statistics of people's own texts."""
    for model in list(_newest.data):
        asked = _newest.data.get(model, ("",))[0]
        if f"text={OWN!r}" in asked:
            _newest.data.pop(model, None)


_self_texts: WeakKeyDictionary = WeakKeyDictionary()


def _self_written(base: LoadedModel, tokens: int, seed: int, progress: Reporter) -> str:
    texts = _self_texts.setdefault(base.model, {})
    if (tokens, seed) not in texts:
        texts[tokens, seed] = sample_text(base, tokens, seed, progress)
    return texts[tokens, seed]


def _keep(statistics: Statistics, file: Path) -> None:
    # A full disk costs the next visitor some seconds, nothing else.
    with suppress(OSError, SafetensorError):
        statistics.save(file)
        trim_folder(file.parent, MOST_ON_DISK)
