"""The quality of base models, measured once."""

import json
from contextlib import suppress
from dataclasses import dataclass

from pruning import catalog
from pruning.calibration.cache import CacheKey, cached
from pruning.evaluation import perplexity
from pruning.evaluation.perplexity import Quality
from pruning.files import cache_folder, replacing
from pruning.loading.load import LoadedModel, weights_id
from pruning.progress import Reporter, silent


@dataclass(frozen=True, kw_only=True)
class QualityKey(CacheKey[Quality]):
    """The number of tokens that the quality was measured on; None for the whole text."""

    tokens: int | None


def base_quality(base: LoadedModel, *, tokens: int | None = None, progress: Reporter = silent) -> Quality:
    """Return the quality of a base model, measured once; that of the default model is kept on disk.

    Args:
        base: The model.
        tokens: How many tokens to measure in total; None for all.
        progress: Is called with each window.
    """

    def measure() -> Quality:
        if tokens is None and base.source.name == catalog.DEFAULT_MODEL:
            return stored_quality(base, progress)
        return perplexity.evaluate(base, tokens=tokens, progress=progress)

    return cached(base.model, QualityKey(text_sha256=None, tokens=tokens), measure)


def stored_quality(base: LoadedModel, progress: Reporter = silent) -> Quality:
    """Read the quality of a model from the disk cache, or measure and store it."""
    file = cache_folder() / "quality" / f"{perplexity.evaluation_key(weights_id(base))}.json"
    try:
        return Quality.from_dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, KeyError):
        quality = perplexity.evaluate(base, progress=progress)
    with suppress(OSError), replacing(file) as temporary:
        temporary.write_text(json.dumps(quality.to_dict()))
    return quality
