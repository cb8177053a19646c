"""Each lesson's text is complete and quotes only metrics that its runs measure."""

import re
from pathlib import Path
from string import Template

import pytest

import pruning
from pruning import Calibration, Recipe, lessons
from pruning.architectures.shape import Shape
from pruning.lessons import (
    LESSONS,
    Claim,
    format_metrics,
    metrics_of_runs,
    metrics_of_shape,
    metrics_of_types,
)
from pruning.lessons.lesson import SECTIONS, split_sections
from pruning.lessons.metrics import removed_by_step
from tests.helpers.models import loaded

TEXT = Calibration(tokens=1280, window=64)

each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.key)


@pytest.fixture(scope="module")
def evaluated():
    """Any base and any pruned, evaluated model: the names of the metrics do not depend on which."""
    base = loaded("llama")
    step = pruning.Neurons(fraction=0.3, criterion="l1")
    return base, pruning.run(Recipe(base="tiny", calibration=TEXT, steps=[step]), base=base)


def metrics_on_the_page(lesson, base, pruned):
    """The metrics that the page's course has for a lesson."""
    metrics = metrics_of_shape(Shape.of(base.model.config))
    metrics |= metrics_of_runs([(run.name, pruned) for run in lesson.runs])
    for run in lesson.runs:
        metrics |= {f"{run.name}_model": "a model", f"{run.name}_width_before": 48}
    metrics |= metrics_of_types(dict.fromkeys(lesson.types, pruned.report))
    if lesson.budget:
        metrics |= metrics_of_runs([("chosen", pruned)])
        metrics |= {"previewed": 9, "measured": 3, "chosen": "1 layer"}
    return metrics


@each_lesson
def test_every_name_in_a_text_is_a_metric_of_its_runs(lesson, evaluated):
    metrics = metrics_on_the_page(lesson, *evaluated)
    assert "$" not in lesson.notice(format_metrics(metrics))
    for claim in lesson.claims:
        assert isinstance(metrics[claim.metric], int | float)


@each_lesson
def test_every_text_is_complete(lesson):
    assert lesson.title
    assert lesson.introduction
    question, options = lesson.prediction
    assert question.endswith(("?", "…"))
    assert len(set(options)) == 3
    assert all(options)
    assert lesson.question.endswith("?")
    assert lesson.explanation
    assert re.findall(r"\]\(https://", lesson.sources)
    assert lesson.next
    assert lesson.claims


@each_lesson
def test_the_verdict_is_an_answer_that_the_metrics_of_the_runs_show_or_none(lesson, evaluated):
    metrics = metrics_on_the_page(lesson, *evaluated)
    assert lesson.measured_option(metrics) in {None, *lesson.prediction[1]}
    assert (lesson.outcome is None) == (lesson.number == 11)  # Its run does not distill.


BY_NUMBER = {lesson.number: lesson for lesson in LESSONS}


@pytest.mark.parametrize(
    ("number", "metrics", "place"),
    [
        (2, {"l1_smaller": 0.118}, 1),
        (8, {"nine_growth": 2.81 / 0.51}, 2),
        (8, {"nine_growth": 3.0}, 0),
        (8, {"nine_growth": 1.0}, 1),
        (9, {"repaired_ratio": 2.5}, None),
        (10, {"half_file_share": 1.0}, 1),
        (12, {"chosen_removed_neurons": 16, "chosen_removed_heads": 0, "chosen_removed_layers": 17}, 2),
        (12, {"chosen_removed_neurons": 18, "chosen_removed_heads": 0, "chosen_removed_layers": 17}, 0),
        (12, {"chosen_removed_neurons": 0, "chosen_removed_heads": 0, "chosen_removed_layers": 0}, None),
        (13, {"pruned_ratio": 2.3, "q8_0_ratio": 1.0, "q4_0_ratio": 1.4}, 1),
        (13, {"pruned_ratio": 1.2, "q8_0_ratio": 1.4, "q4_0_ratio": 1.4}, 0),
    ],
)
def test_the_verdict_follows_the_figures_of_the_run(number, metrics, place):
    lesson = BY_NUMBER[number]
    expected = None if place is None else lesson.prediction[1][place]
    assert lesson.measured_option(metrics) == expected


def test_what_is_removed_is_counted_step_by_step(evaluated):
    _, pruned = evaluated
    removed = removed_by_step(pruned)
    assert removed["layers"] == removed["heads"] == 0
    assert removed["neurons"] == pruned.report.before.parameters - pruned.report.after.parameters > 0


@each_lesson
def test_a_name_is_quoted_only_after_the_run(lesson):
    notice = Template(lesson._parts["Notice"])
    assert notice.is_valid()
    assert notice.get_identifiers()
    for part in (
        lesson.title,
        lesson.introduction,
        *lesson.prediction[1],
        lesson.question,
        lesson.explanation,
    ):
        assert "$" not in part


@each_lesson
def test_every_run_has_a_recipe_that_loads_again(lesson):
    for run in lesson.runs:
        recipe = run.recipe()
        assert recipe.steps == run.steps
        assert Recipe.parse(recipe.to_yaml()) == recipe
        assert run.recipe("another/model").base == "another/model"


def test_lessons_are_numbered_without_gaps():
    assert [lesson.number for lesson in LESSONS] == list(range(1, len(LESSONS) + 1))


def test_every_text_beside_the_table_belongs_to_a_lesson():
    texts = {file.stem for file in Path(lessons.__file__).parent.glob("*.md")}
    assert texts == {lesson.key for lesson in LESSONS}
    assert {lesson.key: lesson for lesson in LESSONS} == lessons.BY_KEY


def test_a_text_is_split_into_its_parts():
    text = "# A title\n\nAn introduction.\n\n" + "\n\n".join(f"## {name}\n\nOn {name}." for name in SECTIONS)
    parts = split_sections(text, "99-example")
    assert parts == {"title": "A title", "introduction": "An introduction."} | {
        name: f"On {name}." for name in SECTIONS
    }


@pytest.mark.parametrize("names", [SECTIONS[1:], (*SECTIONS, "More"), SECTIONS[::-1], ()])
def test_a_text_with_other_sections_is_rejected(names):
    text = "# A title\n\n" + "\n\n".join(f"## {name}\n\nText." for name in names)
    with pytest.raises(ValueError, match=r"99-example\.md has the sections"):
        split_sections(text, "99-example")


@pytest.mark.parametrize(("value", "holds"), [(0.9, False), (1, True), (1.5, True), (2, True), (2.1, False)])
def test_a_claim_holds_within_its_range_and_at_its_ends(value, holds):
    assert Claim("ratio", 1, 2).holds({"ratio": value}) is holds


def test_a_claim_about_a_text_is_an_error():
    with pytest.raises(TypeError, match="l1_model"):
        Claim("l1_model").holds({"l1_model": "distilgpt2"})


def test_runs_are_compared_with_each_other_by_genre_and_by_repair(evaluated):
    _, pruned = evaluated
    quality = pruned.report.after.quality.genres
    metrics = metrics_of_runs([("story", pruned), ("code", pruned), ("plain", pruned), ("repaired", pruned)])
    # All four are the same model here.
    assert metrics["story_advantage"] == metrics["code_advantage"] == metrics["repaired_gain"] == 1
    assert metrics["story_code"] == quality["code"].value
    assert metrics["plain_ratio"] == pytest.approx(
        pruned.report.after.quality.overall.value / pruned.report.before.quality.overall.value
    )
    assert "plain_advantage" not in metrics


def test_a_model_that_was_not_evaluated_has_no_metrics(evaluated):
    base, _ = evaluated
    step = pruning.Neurons(fraction=0.3, criterion="l1")
    pruned = pruning.run(Recipe(base="tiny", steps=[step]), base=base, evaluate=False)
    with pytest.raises(ValueError, match="run small has not been evaluated"):
        metrics_of_runs([("small", pruned)])


def test_the_shares_of_a_shape_add_up_to_one():
    shape = Shape.of(loaded("llama").model.config)
    metrics = metrics_of_shape(shape)
    assert metrics.pop("parameters_before") == shape.parameters
    assert sum(metrics.values()) == pytest.approx(1)


def test_metrics_are_formatted_for_readers():
    metrics = {
        "a_perplexity": 2.5e8,
        "b_ratio": 1.234,
        "c_share": 0.119,
        "d_bytes": 269_000_000,
        "e": 12_345,
        "f_model": "distilgpt2",
    }
    assert format_metrics(metrics) == {
        "a_perplexity": "250 million",
        "b_ratio": "1.23",
        "c_share": "11.9%",
        "d_bytes": "269 MB",
        "e": "12,345",
        "f_model": "distilgpt2",
    }
