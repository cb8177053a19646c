"""Perplexity over the dense model's, without training, beside the peer's, on text seen and unseen."""

from dataclasses import replace
from functools import partial
from unittest.mock import patch

from transformers import PreTrainedModel

from benchmarks.common import base, table, wikitext
from benchmarks.peer import pruned_by_peer
from pruning import Calibration, Neurons, Recipe, perplexity, prune
from pruning.calibration import calibrate as calibration
from pruning.text.passages import GENRES, passage

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)
CALIBRATION_TOKENS = 8192
TOKENS = 2048
"""Held-out tokens of each text."""

UNSEEN = "story"
"""The genre that a calibration on an encyclopedia never saw."""


def main() -> None:
    against_the_peer()
    genre_left_out()


def against_the_peer() -> None:
    calibrating, heldout = wikitext()
    text = Calibration.own(calibrating, tokens=CALIBRATION_TOKENS)
    windows = calibration.windows_of(base(), text)
    every = windows.fitting + windows.heldout
    texts = {"WikiText-2": heldout, UNSEEN: passage(UNSEEN, "heldout")}
    dense = {name: _perplexity(base().model, content) for name, content in texts.items()}
    rows = []
    for fraction in FRACTIONS:
        makers = {
            "ours": partial(_ours, fraction, text),
            "optipfair, data-driven": partial(pruned_by_peer, base().model, fraction, every),
            "optipfair, default": partial(pruned_by_peer, base().model, fraction),
        }
        found = {}
        for name, make in makers.items():
            model = make()
            found[name] = {each: _perplexity(model, content) for each, content in texts.items()}
            width = model.config.intermediate_size
            row = [f"{fraction:.0%}", f"{width:,}", name]
            for each in texts:
                ours = f"{found[name][each] / found['ours'][each]:.4g}"
                row += [f"{found[name][each]:,.4g}", f"{found[name][each] / dense[each]:,.4g}", ours]
            rows.append(row)
            print("·", *row, flush=True)
    columns = [f"{each}{what}" for each in texts for what in (": perplexity", ", over dense", ", over ours")]
    values = ", ".join(f"{value:.2f} on {name}" for name, value in dense.items())
    table(
        f"Quality without training: {TOKENS:,} held-out tokens of each text in windows of 512, calibrated on "
        f"{CALIBRATION_TOKENS:,} tokens of other WikiText-2 articles; dense {values}",
        ["neurons", "width", "by", *columns],
        rows,
    )


def genre_left_out() -> None:
    _, wiki = wikitext()
    texts = {genre: passage(genre, "heldout") for genre in GENRES} | {"WikiText-2": wiki}
    rows = []
    for number, (name, text) in enumerate(texts.items()):
        # WikiText-2 is made of articles, so whoever has not seen its genre has not read the encyclopedia.
        unread = "encyclopedia" if name == "WikiText-2" else name
        others = [genre for genre in GENRES if genre != unread]
        # The seed sets nothing here but tells the calibrations apart.
        with patch.object(calibration, "GENRES", others):
            model = _ours(0.2, Calibration(tokens=CALIBRATION_TOKENS), seed=number)
        dense, cut = _perplexity(base().model, text), _perplexity(model, text)
        rows.append((name, unread, f"{dense:.2f}", f"{cut:.2f}", f"{cut / dense:.3f}"))
        print("·", *rows[-1], flush=True)
    table(
        f"A genre that the general calibration does not hold: 20 % of the neurons, up to {TOKENS:,} held-out "
        "tokens",
        ["measured on", "genre left out", "dense", "cut", "ratio"],
        rows,
    )


def _ours(fraction: float, text: Calibration, seed: int = 0) -> PreTrainedModel:
    """The default cut. A name that is not the catalogue's keeps the statistics out of the user's cache."""
    unnamed = replace(base(), source=replace(base().source, name="benchmark"))
    steps = [Neurons(fraction=fraction)]
    return prune(Recipe(base="benchmark", calibration=text, steps=steps, seed=seed), unnamed).model


def _perplexity(model: PreTrainedModel, text: str) -> float:
    return perplexity(model, base().tokenizer, text, tokens=TOKENS).value
