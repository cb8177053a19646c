"""The course: a table of lessons.

To add a lesson, write its text in a Markdown file beside this one and add a row to `LESSONS`. The text has
the sections that `lesson.SECTIONS` names; a `$name` in it is a metric of the lesson's runs (see `metrics`).
"""

from math import inf

from pruning.lessons.lesson import Claim, Lesson, LessonRun
from pruning.lessons.metrics import format_metrics, metrics_of_runs, metrics_of_shape, metrics_of_types
from pruning.lessons.outcome import largest, smallest, within
from pruning.steps import AnyStep, Heads, Layers, Neurons, Weights

__all__ = [
    "BY_KEY",
    "LESSONS",
    "Claim",
    "Lesson",
    "LessonRun",
    "format_metrics",
    "metrics_of_runs",
    "metrics_of_shape",
    "metrics_of_types",
]


def _neurons(fraction: float, criterion: str, repair: bool = False) -> tuple[AnyStep, ...]:
    return (Neurons(fraction=fraction, criterion=criterion, repair=repair),)


LESSONS = (
    Lesson(
        "01-where-the-parameters-live",
        claims=(Claim("mlp_share", 0.5, 0.7),),
        outcome=largest("embeddings_share", "attention_share", "mlp_share"),
    ),
    Lesson(
        "02-the-simplest-cut",
        runs=(LessonRun("l1", "L1, 20% of the neurons removed", _neurons(0.2, "l1"), base="distilgpt2"),),
        claims=(Claim("l1_smaller", 0.05, 0.15),),
        outcome=within("l1_smaller", (0.19, 0.21), (-1, 0.19), (0.21, 1)),
    ),
    Lesson(
        "03-the-wrong-way",
        runs=(
            LessonRun("gate_up_unpaired", "Gate and up ranked separately", _neurons(0.2, "gate_up_unpaired")),
            LessonRun("l1", "Gate and up ranked together, L1", _neurons(0.2, "l1")),
        ),
        claims=(Claim("gate_up_unpaired_ratio", 1e4), Claim("l1_ratio", 50)),
        outcome=within("l1_ratio", (0, 1.15), (1.15, 20), (20, inf)),
    ),
    Lesson(
        "04-the-right-way-from-weights",
        runs=(LessonRun("peak_to_peak", "Peak-to-peak magnitude", _neurons(0.2, "peak_to_peak")),),
        claims=(Claim("peak_to_peak_ratio", 2, 50),),
        outcome=within("peak_to_peak_ratio", (50, inf), (0, 1.3), (1.3, 50)),
    ),
    Lesson(
        "05-ask-the-data",
        runs=(
            LessonRun("peak_to_peak", "Peak-to-peak magnitude, from weights", _neurons(0.2, "peak_to_peak")),
            LessonRun("activation", "Activation strength, from text", _neurons(0.2, "activation")),
        ),
        claims=(Claim("activation_ratio", 1, 1.9), Claim("peak_to_peak_ratio", 2)),
        chart="importance",
        outcome=within("activation_gain", (0.95, 1.05), (1.05, 2), (2, inf)),
    ),
    Lesson(
        "06-for-what-use",
        runs=(
            LessonRun("story", "Calibrated on stories", _neurons(0.4, "activation", True), text="story"),
            LessonRun("code", "Calibrated on code", _neurons(0.4, "activation", True), text="code"),
        ),
        claims=(Claim("story_advantage", 1.1), Claim("code_advantage", 1.1)),
        outcome=within("code_lean", (1.05, inf), (0, 0.95), (0.95, 1.05)),
    ),
    Lesson(
        "07-repair-in-closed-form",
        runs=(
            LessonRun("plain", "Without repair", _neurons(0.4, "activation")),
            LessonRun("repaired", "With repair", _neurons(0.4, "activation", True)),
            LessonRun(
                "little",
                "With repair, on an eighth of the text",
                _neurons(0.4, "activation", True),
                tokens=1024,
            ),
        ),
        claims=(Claim("repaired_gain", 1.15), Claim("repaired_ratio", 1.2, 3)),
        outcome=within("repaired_gap_closed", (-inf, 0.1), (0.1, 0.9), (0.9, inf)),
    ),
    Lesson(
        "08-depth",
        runs=(
            LessonRun("three", "3 of 30 layers removed, no repair", (Layers(count=3, repair=False),)),
            LessonRun("nine", "9 of 30 layers removed, no repair", (Layers(count=9, repair=False),)),
            LessonRun("repaired", "9 of 30 layers removed, with repair", (Layers(count=9),)),
        ),
        claims=(Claim("three_ratio", 1, 2.5), Claim("nine_ratio", 3), Claim("repaired_ratio", 1, 3)),
        chart="influence",
        outcome=within("nine_growth", (2.5, 3.5), (-inf, 2.5), (3.5, inf)),
    ),
    Lesson(
        "09-heads-and-groups",
        runs=(
            LessonRun("plain", "1 of 3 groups removed, no repair", (Heads(groups=1, repair=False),)),
            LessonRun("repaired", "1 of 3 groups removed, with repair", (Heads(groups=1),)),
        ),
        claims=(Claim("repaired_ratio", 1, 1.9),),
        outcome=within("repaired_ratio", (3, inf), (1.2, 2), (0, 1.2)),
    ),
    Lesson(
        "10-weights",
        runs=(
            LessonRun("half", "Half of the weights set to zero, anywhere", (Weights(fraction=0.5),)),
            LessonRun("pattern", "Two of every four set to zero", (Weights(pattern="2:4"),)),
        ),
        claims=(Claim("half_ratio", 1, 4), Claim("half_smaller", 0, 0)),
        outcome=within("half_file_share", (0, 0.75), (0.99, 1.01), (1.01, 2)),
    ),
    Lesson(
        "11-distillation",
        runs=(
            LessonRun("half", "Half of the neurons removed, with repair", _neurons(0.5, "activation", True)),
        ),
        claims=(Claim("half_ratio", 1.3, 4),),
    ),
    Lesson(
        "12-put-together",
        budget="25%",
        claims=(Claim("chosen_ratio", 1, 10),),
        outcome=largest("chosen_removed_neurons", "chosen_removed_heads", "chosen_removed_layers"),
    ),
    Lesson(
        "13-prune-or-quantize",
        runs=(
            LessonRun("pruned", "40% of the neurons removed, repaired", _neurons(0.4, "activation", True)),
        ),
        types=("q8_0", "q4_0"),
        claims=(Claim("pruned_ratio", 1.5), Claim("q8_0_ratio", 0.95, 1.05), Claim("q4_0_ratio", 1.1, 2)),
        outcome=smallest("pruned_ratio", "q8_0_ratio", "q4_0_ratio"),
    ),
)

BY_KEY = {lesson.key: lesson for lesson in LESSONS}
"""The lessons by key."""
