"""Distillation: how much of what a cut lost comes back, and how fast the arithmetic runs.

`python -m benchmarks distilling --minutes 10`: so long for each of three cuts, on a machine at rest. To try
settings, judge them by "own slice", text held out from what is trained on, not by the text that is reported:
`python -m benchmarks distilling --minutes 2 --cut half --set learning_rate=5e-4 --set batch=2`.
"""

import argparse
import sys
import time

import torch
from torch.nn import functional

from benchmarks.common import base, table, wikitext
from pruning import (
    Calibration,
    Distillation,
    Layers,
    Neurons,
    Recipe,
    TextChoice,
    perplexity,
    prune,
)
from pruning.architectures.shape import Shape
from pruning.distillation.progress import TrainingProgress
from pruning.steps.distillation import settings_from
from pruning.text.passages import GENRES, passage

HELD_OUT_TOKENS = 4096
MINUTES = 10.0
CUTS = {
    "half the neurons": [Neurons(fraction=0.5)],
    "20 % of the neurons": [Neurons(fraction=0.2)],
    "6 of 30 layers": [Layers(count=6)],
}


def main() -> None:
    asked = _asked()
    length = {"minutes": asked.minutes} if asked.steps is None else {"steps": asked.steps}
    distillation = length | settings_from(None, asked.set).fields
    model = base()
    text, heldout = wikitext()

    def measured(candidate) -> dict[str, float]:
        """Perplexity on held-out WikiText-2, and on each genre of the bundled held-out passages."""
        texts = {"wikitext": heldout} | {genre: passage(genre, "heldout") for genre in GENRES}
        tokens = {"wikitext": HELD_OUT_TOKENS}
        return {
            name: perplexity(candidate, model.tokenizer, each, tokens.get(name, 1024)).value
            for name, each in texts.items()
        }

    dense = measured(model.model)
    rates, rows, unseen = _products(), [], []
    for name in (name for name in CUTS if name.startswith(asked.cut)):
        recipe = Recipe(
            base=model.source.name,
            calibration=Calibration.own(text, tokens=asked.calibration),
            steps=[*CUTS[name], Distillation(text=TextChoice.own(text), **distillation)],
        )
        start = time.perf_counter()
        cut = prune(recipe.model_copy(update={"steps": recipe.steps[:-1]}), model).model
        preparing = time.perf_counter() - start
        before = measured(cut)
        pruned = prune(recipe, model, progress=_told)
        after = measured(pruned.model)
        (note,) = pruned.report.notes[-1]
        work = _operations(Shape.of(model.model.config), pruned.shape) * note.tokens
        speed = work / note.seconds
        rows.append(
            (
                name,
                f"{before['wikitext'] / dense['wikitext']:.2f}",
                f"{after['wikitext'] / dense['wikitext']:.3f}",
                f"{note.perplexity_after / note.perplexity_teacher:.3f}",
                f"{preparing:.0f}",
                note.steps,
                f"{note.tokens:,}",
                f"{note.tokens / note.seconds:.0f}",
                *(f"{speed / rate:.0%}" for rate in rates.values()),
            )
        )
        print("·", *rows[-1], file=sys.stderr, flush=True)
        for genre in GENRES:
            closed = (before[genre] - after[genre]) / (before[genre] - dense[genre])
            ratios = (f"{value[genre] / dense[genre]:.2f}" for value in (before, after))
            unseen.append((name, genre, *ratios, f"{closed:.0%}"))
    described = ", ".join(f"{name} {value}" for name, value in distillation.items())
    table(
        f"Calibrated on {asked.calibration:,} tokens of WikiText-2 and distilled on it ({described}; "
        f"{note.precision} products): perplexity over dense ({dense['wikitext']:.2f}) on "
        f"{HELD_OUT_TOKENS} held-out tokens of other articles",
        [
            "cut",
            "pruned",
            "distilled",
            "own slice",
            "seconds of reading and cutting",
            "steps",
            "tokens",
            "tokens/s",
            *(f"rate / {name}" for name in rates),
        ],
        rows,
    )
    table(
        "The same models on text that was not trained on",
        ["cut", "genre", "pruned / dense", "distilled / dense", "share of the gap closed"],
        unseen,
    )


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks distilling")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--steps", type=int, help="so many steps, instead")
    parser.add_argument("--calibration", type=int, default=8192, help="tokens read before the cut")
    parser.add_argument("--cut", default="", help="only the cuts whose name begins so")
    parser.add_argument("--set", action="append", default=[], help="a setting of the step: NAME=VALUE")
    return parser.parse_known_args()[0]


def _told(progress) -> None:
    if isinstance(progress, TrainingProgress) and progress.evaluated:
        print(progress, file=sys.stderr, flush=True)


def _operations(dense: Shape, student: Shape) -> float:
    """Floating-point operations of the matrix products for one token: forward in both models, backward to
    the inputs everywhere in the student, to the weights where they are trained (not the head). Attention
    scores, norms and the optimiser are not counted."""

    def products(shape: Shape) -> tuple[int, int]:
        config = shape.config
        head = config.vocab_size * config.hidden_size
        return 2 * (shape.components["attention"] + shape.components["mlp"]), 2 * head

    (taught, taught_head), (body, head) = products(dense), products(student)
    return taught + taught_head + 3 * body + 2 * head


def _products() -> dict[str, float]:
    """Operations per second of the machine's matrix products at a layer's sizes, best of many."""
    rates = {}
    for name, dtype in (("float32 product", torch.float32), ("bfloat16 product", torch.bfloat16)):
        inputs, weight = torch.randn(1024, 576, dtype=dtype), torch.randn(1536, 576, dtype=dtype)
        best, end = 0.0, time.perf_counter() + 2
        while time.perf_counter() < end:
            start = time.perf_counter()
            functional.linear(inputs, weight)
            best = max(best, 2 * 1024 * 576 * 1536 / (time.perf_counter() - start))
        rates[name] = best
    return rates
