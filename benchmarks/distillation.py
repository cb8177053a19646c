"""How much of the quality that a cut lost distillation recovers, and how fast the arithmetic runs.

`python -m benchmarks distillation --minutes 10` distills each of three cuts for ten minutes; let nothing else
run beside it. To choose settings, compare "own slice", a part of the training text that is held out, and not
the text that is reported:
`python -m benchmarks distillation --minutes 2 --cut half --set learning_rate=5e-4 --set batch=2`.
"""

import argparse
import sys
import time
from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import PreTrainedModel

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
from pruning.cli.distill import settings_from
from pruning.distillation.progress import TrainingProgress
from pruning.progress import Progress
from pruning.text.passages import GENRES, passage

HELD_OUT_TOKENS = 4096
PASSAGE_TOKENS = 1024
MINUTES = 10.0
CUTS = {
    "half the neurons": [Neurons(fraction=0.5)],
    "20% of the neurons": [Neurons(fraction=0.2)],
    "6 of 30 layers": [Layers(count=6)],
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this benchmark."""
    parser.add_argument("--minutes", type=float, default=MINUTES, help="minutes for each cut")
    parser.add_argument("--steps", type=int, help="steps for each cut, instead of minutes")
    parser.add_argument("--calibration", type=int, default=8192, help="calibration tokens before the cut")
    parser.add_argument("--cut", default="", help="only the cuts whose names begin with this")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], help="a setting of the step: NAME=VALUE"
    )


def main(minutes: float, steps: int | None, calibration: int, cut: str, settings: Sequence[str]) -> None:
    """Distill each cut, and print the quality, the speed and the share of the gap closed."""
    length = {"minutes": minutes} if steps is None else {"steps": steps}
    fields = length | settings_from(None, settings).fields
    model = base()
    text, _ = wikitext()
    original = _perplexities(model.model)
    rates, rows, unseen = _product_rates(), [], []
    for name in (name for name in CUTS if name.startswith(cut)):
        recipe = Recipe(
            base=model.source.name,
            calibration=Calibration.custom(text, tokens=calibration),
            steps=[*CUTS[name], Distillation(text=TextChoice.custom(text), **fields)],
        )
        start = time.perf_counter()
        undistilled = prune(recipe.model_copy(update={"steps": recipe.steps[:-1]}), model).model
        preparing = time.perf_counter() - start
        before = _perplexities(undistilled)
        pruned = prune(recipe, model, progress=_print_evaluations)
        after = _perplexities(pruned.model)
        (note,) = pruned.report.notes[-1]
        operations = _operations(Shape.of(model.model.config), pruned.shape) * note.tokens
        rows.append(
            (
                name,
                f"{before['wikitext'] / original['wikitext']:.2f}",
                f"{after['wikitext'] / original['wikitext']:.3f}",
                f"{note.perplexity_after / note.perplexity_teacher:.3f}",
                f"{preparing:.0f}",
                note.steps,
                f"{note.tokens:,}",
                f"{note.tokens / note.seconds:.0f}",
                *(f"{operations / note.seconds / rate:.0%}" for rate in rates.values()),
            )
        )
        print("·", *rows[-1], file=sys.stderr, flush=True)
        for genre in GENRES:
            closed = (before[genre] - after[genre]) / (before[genre] - original[genre])
            ratios = (f"{values[genre] / original[genre]:.2f}" for values in (before, after))
            unseen.append((name, genre, *ratios, f"{closed:.0%}"))
    described = ", ".join(f"{name} {value}" for name, value in fields.items())
    table(
        f"Calibrated on {calibration:,} tokens of WikiText-2 and distilled on it ({described}; "
        f"{note.precision} products): perplexity over the base's ({original['wikitext']:.2f}) on "
        f"{HELD_OUT_TOKENS} held-out tokens of other articles",
        [
            "cut",
            "pruned",
            "distilled",
            "own slice",
            "seconds of calibrating and pruning",
            "steps",
            "tokens",
            "tokens/s",
            *(f"rate / {name}" for name in rates),
        ],
        rows,
    )
    table(
        "The same models on text of genres that were not trained on",
        ["cut", "genre", "pruned / base", "distilled / base", "share of the gap closed"],
        unseen,
    )


def _perplexities(model: PreTrainedModel) -> dict[str, float]:
    """Measure perplexity on held-out WikiText-2, and on each genre of the bundled held-out passages."""
    _, heldout = wikitext()
    texts = {"wikitext": (heldout, HELD_OUT_TOKENS)}
    texts |= {genre: (passage(genre, "heldout"), PASSAGE_TOKENS) for genre in GENRES}
    return {
        name: perplexity(model, base().tokenizer, text, tokens=tokens).value
        for name, (text, tokens) in texts.items()
    }


def _print_evaluations(progress: Progress) -> None:
    if isinstance(progress, TrainingProgress) and progress.evaluated:
        print(progress, file=sys.stderr, flush=True)


def _operations(teacher: Shape, student: Shape) -> float:
    """Count the floating-point operations of the matrix products for one token.

    Forward in both models; backward to the inputs everywhere in the student, and to the weights that are
    trained (not the head). Attention scores, norms and the optimizer are not counted.
    """

    def products(shape: Shape) -> tuple[int, int]:
        head = shape.config.vocab_size * shape.config.hidden_size
        return 2 * (shape.components["attention"] + shape.components["mlp"]), 2 * head

    (teacher_body, teacher_head), (body, head) = products(teacher), products(student)
    return teacher_body + teacher_head + 3 * body + 2 * head


def _product_rates() -> dict[str, float]:
    """Measure the machine's operations per second in matrix products of a layer's sizes: the best of many."""
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
