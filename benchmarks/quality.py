"""Perplexity over the dense model's, without training, by criterion and share of neurons."""

from benchmarks.common import base, table, wikitext
from pruning import Calibration, Neurons, Recipe, perplexity, prune

CASES = [
    ("activation", True),
    ("activation", False),
    ("wanda", True),
    ("minitron", True),
    ("ppm", True),
    ("ppm", False),
    ("l1", False),
    ("independent", False),
]
FRACTIONS = (0.2, 0.5)
HELD_OUT_TOKENS = 4096


def main() -> None:
    calibration_text, heldout = wikitext()
    calibration = Calibration.own(calibration_text, tokens=8192)
    model = base()

    def measured(pruned) -> float:
        return perplexity(pruned, model.tokenizer, heldout, HELD_OUT_TOKENS).value

    dense = measured(model.model)
    rows = []
    for criterion, repair in CASES:
        row = [criterion + (" + repair" if repair else "")]
        for fraction in FRACTIONS:
            step = Neurons(fraction=fraction, criterion=criterion, repair=repair)
            recipe = Recipe(base=model.source.name, calibration=calibration, steps=[step])
            row.append(f"{measured(prune(recipe, model).model) / dense:.4g}")
        rows.append(row)
    table(
        f"Perplexity over dense ({dense:.2f}) on {HELD_OUT_TOKENS} held-out WikiText-2 tokens, windows of "
        "512; calibrated on 8,192 tokens of other articles",
        ["criterion", *(f"{fraction:.0%} of the neurons" for fraction in FRACTIONS)],
        rows,
    )
