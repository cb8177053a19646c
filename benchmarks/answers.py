"""What a pruned model still answers and can do, by the text that it was calibrated on."""

import argparse
from collections.abc import Sequence

import pruning
from benchmarks.common import base, table
from pruning import Calibration, Distillation, Neurons, Recipe
from pruning.evaluation import perplexity
from pruning.evaluation.answers import Answers, compare, evaluate_answers
from pruning.evaluation.skills import SkillsResult, compare_skills, measure_skills, panel
from pruning.text.choice import DEFAULT_CALIBRATION

TEXTS = {
    "chat and general (the default)": DEFAULT_CALIBRATION,
    "general, 8,192 tokens": Calibration(text="general"),
    "chat alone": Calibration(text="chat", tokens=16_384),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--split", choices=("reported", "development"), default="reported")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.2, 0.4])
    parser.add_argument("--texts", type=int, default=len(TEXTS), help="how many of the calibration texts")
    parser.add_argument("--distill-steps", type=int, default=0, help="then distill on chat and general text")


def main(split: str, fractions: Sequence[float], texts: int, distill_steps: int) -> None:
    """Prune by each calibration text, and print the good answers kept, loops, skills and perplexity."""
    items = panel(split)
    answers, skills = evaluate_answers(base(), split=split), measure_skills(base(), items)
    quality = perplexity.evaluate(base()).overall.value
    rows: list[Sequence[object]] = [("none", "base", *_row(answers, answers, skills, skills, 1.0))]
    for fraction in fractions:
        for name, calibration in list(TEXTS.items())[:texts]:
            steps: list[pruning.steps.AnyStep] = [Neurons(fraction=fraction)]
            if distill_steps:
                steps.append(Distillation(steps=distill_steps, text="chat_and_general"))
            recipe = Recipe(base=base().source.name, calibration=calibration, steps=steps)
            pruned = pruning.prune(recipe, base(), share_memory=True)
            row = _row(
                answers,
                evaluate_answers(pruned, split=split),
                skills,
                measure_skills(pruned, items),
                perplexity.evaluate(pruned).overall.value / quality,
            )
            rows.append((f"{fraction:.0%}", name, *row))
    table(
        f"{answers.items} questions and {len(items)} items, {split}",
        [
            "neurons removed",
            "calibrated on",
            "good answers kept",
            "right",
            "loops",
            "skills",
            "genres, ratio",
        ],
        rows,
    )


def _row(
    base_answers: Answers, answers: Answers, base_skills: SkillsResult, skills: SkillsResult, ratio: float
) -> list[str]:
    kept = compare(base_answers, answers).kept
    difference = compare_skills(base_skills, skills).overall.accuracy
    interval = f" ({difference.low:+.0%} to {difference.high:+.0%})" if difference else ""
    return [
        f"{kept.share or 0:.0%} of {kept.items} ({kept.low:.0%} to {kept.high:.0%})",
        f"{answers.right}",
        f"{answers.loops}",
        f"{skills.overall.accuracy or 0:.1%}{interval}",
        f"{ratio:.2f}",
    ]
