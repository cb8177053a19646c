"""Perplexity of pruned models over the base's, without training, beside OptiPFair's.

Measured on held-out text of the calibrated genre and of others.
"""

from dataclasses import replace
from functools import partial
from unittest.mock import patch

from transformers import PreTrainedModel

from benchmarks.common import base, table, wikitext
from benchmarks.optipfair_baseline import prune_with_optipfair
from pruning import Calibration, Neurons, Recipe, perplexity, prune
from pruning.calibration.calibrate import windows_of
from pruning.text import choice
from pruning.text.passages import GENRES, passage

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)
CALIBRATION_TOKENS = 8192
TOKENS = 2048
"""Held-out tokens of each text."""

UNSEEN = "story"
"""A genre that a calibration on encyclopedia articles does not include."""


def main() -> None:
    """Compare with OptiPFair, then leave one genre out of the calibration at a time; print two tables."""
    compare_with_optipfair()
    leave_genres_out()


def compare_with_optipfair() -> None:
    """Prune five fractions of the neurons with both libraries, on the same tokens, and print a table."""
    calibration_text, heldout = wikitext()
    text = Calibration.custom(calibration_text, tokens=CALIBRATION_TOKENS)
    windows = windows_of(base(), text)
    all_windows = windows.fitting + windows.heldout
    texts = {"WikiText-2": heldout, UNSEEN: passage(UNSEEN, "heldout")}
    original = {name: _perplexity(base().model, content) for name, content in texts.items()}
    rows = []
    for fraction in FRACTIONS:
        makers = {
            "ours": partial(_ours, fraction, text),
            "OptiPFair, data-driven": partial(prune_with_optipfair, base().model, fraction, all_windows),
            "OptiPFair, default": partial(prune_with_optipfair, base().model, fraction),
        }
        perplexities = {}
        for name, make in makers.items():
            model = make()
            perplexities[name] = {title: _perplexity(model, content) for title, content in texts.items()}
            row = [f"{fraction:.0%}", f"{model.config.intermediate_size:,}", name]
            for title, value in perplexities[name].items():
                row += [
                    f"{value:,.4g}",
                    f"{value / original[title]:,.4g}",
                    f"{value / perplexities['ours'][title]:.4g}",
                ]
            rows.append(row)
            print("·", *row, flush=True)
    columns = [f"{title}{what}" for title in texts for what in (": perplexity", ", over base", ", over ours")]
    values = ", ".join(f"{value:.2f} on {name}" for name, value in original.items())
    table(
        f"Quality without training: {TOKENS:,} held-out tokens of each text in windows of 512, calibrated on "
        f"{CALIBRATION_TOKENS:,} tokens of other WikiText-2 articles; the base {values}",
        ["neurons removed", "intermediate size", "by", *columns],
        rows,
    )


def leave_genres_out() -> None:
    """Measure a cut on each genre after calibrating on the others, and print a table."""
    _, wiki = wikitext()
    texts = {genre: passage(genre, "heldout") for genre in GENRES} | {"WikiText-2": wiki}
    rows = []
    for number, (name, text) in enumerate(texts.items()):
        # WikiText-2 consists of encyclopedia articles, so that genre is left out for it.
        left_out = "encyclopedia" if name == "WikiText-2" else name
        others = [genre for genre in GENRES if genre != left_out]
        # The seed changes nothing here; it keeps the cached statistics of the calibrations apart.
        with patch.object(choice, "GENRES", others):
            model = _ours(0.2, Calibration(tokens=CALIBRATION_TOKENS), seed=number)
        original, pruned = _perplexity(base().model, text), _perplexity(model, text)
        rows.append((name, left_out, f"{original:.2f}", f"{pruned:.2f}", f"{pruned / original:.3f}"))
        print("·", *rows[-1], flush=True)
    table(
        f"A genre left out of the general calibration: 20% of the neurons, up to {TOKENS:,} held-out tokens",
        ["measured on", "genre left out", "base", "pruned", "ratio"],
        rows,
    )


def _ours(fraction: float, text: Calibration, seed: int = 0) -> PreTrainedModel:
    """Prune by the defaults, under a name outside the catalog, so that nothing reaches the disk cache."""
    unnamed = replace(base(), source=replace(base().source, name="benchmark"))
    steps = [Neurons(fraction=fraction, multiple_of=1)]
    return prune(Recipe(base="benchmark", calibration=text, steps=steps, seed=seed), unnamed).model


def _perplexity(model: PreTrainedModel, text: str) -> float:
    return perplexity(model, base().tokenizer, text, tokens=TOKENS).value
