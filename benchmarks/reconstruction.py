"""Perplexity over the dense model's before and after reconstruction, on a text of the same kind and on
others, and how long it takes."""

import time

from benchmarks.common import base, table, wikitext
from pruning import Calibration, Neurons, Recipe, perplexity, prune
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
    model = base()
    calibration_text, heldout = wikitext()
    texts = {
        "WikiText-2": (heldout, HELD_OUT_TOKENS),
        "stories": (passage("story", "heldout"), PASSAGE_TOKENS),
        "code": (passage("code", "heldout"), PASSAGE_TOKENS),
    }

    def measured(model_) -> list[float]:
        return [perplexity(model_, model.tokenizer, text, tokens=n).value for text, n in texts.values()]

    dense = measured(model.model)
    rows = []
    for name, calibration in (
        ("WikiText-2", Calibration.own(calibration_text, tokens=8192)),
        ("general", Calibration(tokens=8192)),
    ):
        windows = windows_of(model, calibration)
        sites = Neurons(fraction=0.5).hooked_modules(Shape.of(model.model.config))
        start = time.perf_counter()
        Statistics(model.model, sites, windows.fitting, windows.heldout)
        calibrating = time.perf_counter() - start
        for fraction in FRACTIONS:
            repaired, bare = (
                prune(_recipe(model, calibration, fraction, repair), model).model for repair in (True, False)
            )
            start = time.perf_counter()
            made = reconstruct(bare, model.model, windows)
            seconds = time.perf_counter() - start
            rebuilt = cut(bare, Shape.of(bare.config), {}, made.tensors)
            for title, each, took in (
                ("repair", repaired, ""),
                ("reconstruction", rebuilt, f"{seconds:.0f} s, {seconds / calibrating:.1f}"),
            ):
                ratios = (f"{ours / theirs:.3f}" for ours, theirs in zip(measured(each), dense, strict=True))
                rows.append((name, f"{fraction:.0%}", title, *ratios, took))
    table(
        f"Perplexity over dense ({', '.join(f'{value:.2f}' for value in dense)}) on held-out text, windows "
        f"of 512, calibrated on 8,192 tokens: {HELD_OUT_TOKENS:,} tokens of WikiText-2, up to "
        f"{PASSAGE_TOKENS:,} of each bundled genre",
        ["calibration", "neurons cut", "then", *texts, "seconds, over a calibration pass"],
        rows,
    )


def _recipe(model, calibration, fraction, repair) -> Recipe:
    step = Neurons(fraction=fraction, criterion="activation", repair=repair)
    return Recipe(base=model.source.name, calibration=calibration, steps=[step])


if __name__ == "__main__":
    main()
