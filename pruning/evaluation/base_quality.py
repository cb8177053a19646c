"""The quality of base models, measured once."""

import json
from contextlib import suppress
from weakref import WeakKeyDictionary

from pruning import catalog
from pruning.evaluation import perplexity
from pruning.evaluation.perplexity import Quality
from pruning.files import cache_folder, replacing
from pruning.loading.load import LoadedModel
from pruning.progress import Reporter, silent

_qualities: WeakKeyDictionary = WeakKeyDictionary()


def base_quality(base: LoadedModel, *, tokens: int | None = None, progress: Reporter = silent) -> Quality:
    """Return the quality of a base model, measured once; that of the default model is kept on disk.

    Args:
        base: The model.
        tokens: How many tokens to measure in total; None for all.
        progress: Is called with each window.
    """
    known = _qualities.setdefault(base.model, {})
    if tokens not in known:
        if tokens is None and base.source.name == catalog.DEFAULT_MODEL:
            known[tokens] = stored_quality(base, progress)
        else:
            known[tokens] = perplexity.evaluate(base, tokens=tokens, progress=progress)
    return known[tokens]


def stored_quality(base: LoadedModel, progress: Reporter = silent) -> Quality:
    """Read the quality of a model from the disk cache, or measure and store it."""
    file = cache_folder() / "quality" / f"{perplexity.evaluation_key(base.source.revision)}.json"
    try:
        return Quality.from_dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, KeyError):
        quality = perplexity.evaluate(base, progress=progress)
    with suppress(OSError), replacing(file) as temporary:
        temporary.write_text(json.dumps(quality.to_dict()))
    return quality
