"""Perplexity over the base's before and after reconstruction, and the seconds that it takes.

Measured on held-out text of the calibrated genre and of others.
"""

import time

from transformers import PreTrainedModel

from benchmarks.common import base, table, wikitext
from pruning import Calibration, LoadedModel, Neurons, Recipe, perplexity, prune
from pruning.architectures.shape import Shape
from pruning.calibration.calibrate import windows_of
from pruning.calibration.statistics import Statistics
from pruning.repair.reconstruction import reconstruct
from pruning.surgery import cut
from pruning.text.passages import passage

FRACTIONS = (0.2, 0.5)
HELD_OUT_TOKENS = 4096
PASSAGE_TOKENS = 2048


def main() -> None:
    """Repair and reconstruct cuts of two sizes under two calibrations, and print a table."""
    model = base()
    calibration_text, heldout = wikitext()
    texts = {
        "WikiText-2": (heldout, HELD_OUT_TOKENS),
        "stories": (passage("story", "heldout"), PASSAGE_TOKENS),
        "code": (passage("code", "heldout"), PASSAGE_TOKENS),
    }

    def perplexities(candidate: PreTrainedModel) -> list[float]:
        return [
            perplexity(candidate, model.tokenizer, text, tokens=tokens).value
            for text, tokens in texts.values()
        ]

    original = perplexities(model.model)
    rows = []
    for name, calibration in (
        ("WikiText-2", Calibration.custom(calibration_text, tokens=8192)),
        ("general", Calibration(tokens=8192)),
    ):
        windows = windows_of(model, calibration)
        projections = Neurons(fraction=0.5).hooked_modules(Shape.of(model.model.config))
        start = time.perf_counter()
        Statistics(model.model, projections, windows.fitting, windows.heldout)
        calibrating = time.perf_counter() - start
        for fraction in FRACTIONS:
            repaired, unrepaired = (
                prune(_recipe(model, calibration, fraction, repair), model).model for repair in (True, False)
            )
            start = time.perf_counter()
            result = reconstruct(unrepaired, model.model, windows)
            seconds = time.perf_counter() - start
            reconstructed = cut(unrepaired, Shape.of(unrepaired.config), {}, result.tensors)
            for title, candidate, time_taken in (
                ("repair", repaired, ""),
                ("reconstruction", reconstructed, f"{seconds:.0f} s, {seconds / calibrating:.1f}"),
            ):
                pairs = zip(perplexities(candidate), original, strict=True)
                ratios = (f"{value / base_value:.3f}" for value, base_value in pairs)
                rows.append((name, f"{fraction:.0%}", title, *ratios, time_taken))
    table(
        f"Perplexity over the base's ({', '.join(f'{value:.2f}' for value in original)}) on held-out text, "
        f"windows of 512, calibrated on 8,192 tokens: {HELD_OUT_TOKENS:,} tokens of WikiText-2, up to "
        f"{PASSAGE_TOKENS:,} of each bundled genre",
        ["calibration", "neurons removed", "then", *texts, "seconds, over a calibration pass"],
        rows,
    )


def _recipe(model: LoadedModel, calibration: Calibration, fraction: float, repair: bool) -> Recipe:
    step = Neurons(fraction=fraction, criterion="activation", repair=repair)
    return Recipe(base=model.source.name, calibration=calibration, steps=[step])
