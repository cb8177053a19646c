"""The course: a table of lessons.

To add a lesson, write its text in a Markdown file beside this one and add a row to `LESSONS`. The text has
the sections that `lesson.SECTIONS` names; a `$name` in it is a metric of the lesson's runs (see `metrics`).
"""

from pruning.lessons.lesson import Claim, Lesson, LessonRun
from pruning.lessons.metrics import format_metrics, metrics_of_runs, metrics_of_shape
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
]


def _neurons(fraction: float, criterion: str, repair: bool = False) -> tuple[AnyStep, ...]:
    return (Neurons(fraction=fraction, criterion=criterion, repair=repair),)


LESSONS = (
    Lesson("01-where-the-parameters-live", claims=(Claim("mlp_share", 0.5, 0.7),), correct_option=2),
    Lesson(
        "02-the-simplest-cut",
        runs=(LessonRun("l1", "L1, 20% of the neurons removed", _neurons(0.2, "l1"), base="distilgpt2"),),
        claims=(Claim("l1_smaller", 0.05, 0.15),),
        correct_option=1,
    ),
    Lesson(
        "03-the-wrong-way",
        runs=(
            LessonRun("gate_up_unpaired", "Gate and up ranked separately", _neurons(0.2, "gate_up_unpaired")),
            LessonRun("l1", "Gate and up ranked together, L1", _neurons(0.2, "l1")),
        ),
        claims=(Claim("gate_up_unpaired_ratio", 1e4), Claim("l1_ratio", 50)),
        correct_option=2,
    ),
    Lesson(
        "04-the-right-way-from-weights",
        runs=(LessonRun("peak_to_peak", "Peak-to-peak magnitude", _neurons(0.2, "peak_to_peak")),),
        claims=(Claim("peak_to_peak_ratio", 2, 50),),
        correct_option=2,
    ),
    Lesson(
        "05-ask-the-data",
        runs=(
            LessonRun("peak_to_peak", "Peak-to-peak magnitude, from weights", _neurons(0.2, "peak_to_peak")),
            LessonRun("activation", "Activation strength, from text", _neurons(0.2, "activation")),
        ),
        claims=(Claim("activation_ratio", 1, 1.9), Claim("peak_to_peak_ratio", 2)),
        chart="importance",
        correct_option=2,
    ),
    Lesson(
        "06-for-what-use",
        runs=(
            LessonRun("story", "Calibrated on stories", _neurons(0.4, "activation", True), text="story"),
            LessonRun("code", "Calibrated on code", _neurons(0.4, "activation", True), text="code"),
        ),
        claims=(Claim("story_advantage", 1.1), Claim("code_advantage", 1.1)),
        correct_option=1,
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
        correct_option=1,
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
        correct_option=2,
    ),
    Lesson(
        "09-heads-and-groups",
        runs=(
            LessonRun("plain", "1 of 3 groups removed, no repair", (Heads(groups=1, repair=False),)),
            LessonRun("repaired", "1 of 3 groups removed, with repair", (Heads(groups=1),)),
        ),
        claims=(Claim("repaired_ratio", 1, 1.9),),
        correct_option=1,
    ),
    Lesson(
        "10-weights",
        runs=(
            LessonRun("half", "Half of the weights set to zero, anywhere", (Weights(fraction=0.5),)),
            LessonRun("pattern", "Two of every four set to zero", (Weights(pattern="2:4"),)),
        ),
        claims=(Claim("half_ratio", 1, 4), Claim("half_smaller", 0, 0)),
        correct_option=1,
    ),
    Lesson(
        "11-distillation",
        runs=(
            LessonRun("half", "Half of the neurons removed, with repair", _neurons(0.5, "activation", True)),
        ),
        claims=(Claim("half_ratio", 1.3, 4),),
        correct_option=1,
    ),
    Lesson("12-put-together", budget="25%", claims=(Claim("chosen_ratio", 1, 10),)),
)

BY_KEY = {lesson.key: lesson for lesson in LESSONS}
"""The lessons by key."""
