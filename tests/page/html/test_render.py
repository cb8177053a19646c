"""The shared pieces: numbers, status lines, notes."""

import math
from dataclasses import replace

import pytest

from page.html import render
from pruning.criteria import CRITERIA
from pruning.distillation.progress import TrainingProgress
from pruning.distillation.result import DistillationNote
from tests.page.html.samples import Page


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1_000, "1.0k"), (134_515_008, "134.5M"), (1_235_814_400, "1.2B")],
)
def test_parameters_are_counted_in_the_largest_unit(number, text):
    assert render.format_count(number) == text


@pytest.mark.parametrize(
    ("original", "pruned", "text"),
    [(100, 88.2, "−11.8%"), (100, 150, "+50.0%"), (100, 100.01, "±0.0%"), (0, 5, "±0.0%")],
)
def test_a_change_has_its_sign(original, pruned, text):
    assert render.format_change(original, pruned) == text


def test_a_status_shows_how_far_the_work_is():
    page = Page(render.status("Calibrating", 1, 4, "busy"))
    assert page.text == "Calibrating1 of 4"
    assert page.values("style") == ["width:25.0%"]
    assert page.values("role") == []  # The page has one live region, which stays.
    assert page.values("class") == ["status busy", "track"]


def test_a_status_without_a_total_moves_only_while_busy():
    assert "track unknown" in Page(render.status("Loading", kind="busy")).values("class")
    assert "track unknown" not in Page(render.status("Done.", kind="done")).values("class")


def test_a_count_can_be_hidden():
    page = Page(render.status("Distilling", 500, 1000, "busy", show_count=False))
    assert page.text == "Distilling"
    assert page.values("style") == ["width:50.0%"]


def test_a_message_has_a_link_only_if_there_is_one():
    assert Page(render.message("Published:")).tags == ["p"]
    page = Page(render.message("Published:", "done", link="https://example.org/a?b=1&c=2"))
    assert page.values("href") == ["https://example.org/a?b=1&c=2"]
    assert page.text == "Published: https://example.org/a?b=1&c=2"


def test_a_recipe_is_listed_step_by_step():
    page = Page(render.recipe_note(["3 layers", "20% of the MLP neurons"]))
    assert page.tags.count("li") == 2
    assert "3 layers" in page.pieces


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=lambda criterion: criterion.name)
def test_a_criterion_shows_its_formula_its_source_and_its_needs(criterion):
    page = Page(render.criterion_note(criterion))
    assert criterion.formula in page.text
    assert criterion.source in page.text
    assert page.values("href") == [criterion.url] * bool(criterion.url)
    assert ("Reads calibration text" in page.text) is criterion.needs_calibration
    assert ("warning" in page.values("class")) is bool(criterion.warning)


def training(step, seconds_left):
    return TrainingProgress(
        done=250,
        total=1000,
        seconds=60.0,
        seconds_left=seconds_left,
        step=step,
        tokens=12_000,
        loss=1.0,
        perplexity=30.0,
        evaluated=True,
        curve=(),
        perplexity_best=30.0,
        perplexity_teacher=20.0,
        perplexity_before=40.0,
    )


def test_a_training_shows_its_perplexity_between_the_two_models():
    page = Page(render.training_status(training(10, 90.0)))
    assert page.text == "1.5 minutes left; 12,000 tokens read; perplexity 40.0 → 30.0 (original 20.0)"
    assert page.values("style") == ["width:25.0%"]


def test_a_training_before_its_first_step_has_no_estimate():
    assert Page(render.training_status(training(0, math.inf))).text == "Starting"


def test_a_refit_before_the_first_step_says_how_long_the_training_takes():
    event = replace(training(0, 90.0), text="Refitting layers")
    assert Page(render.training_status(event)).text == "Refitting layers: 1.5 minutes left"


def note(improved):
    return DistillationNote(
        text="general",
        tokens=12_000,
        refit_tokens=0,
        steps=100,
        best_step=90 if improved else 0,
        seconds=120.0,
        loss=1.0,
        perplexity_teacher=20.0,
        perplexity_before=40.0,
        perplexity_after=25.0 if improved else 40.0,
        heldout_tokens=2_048,
        ended="done",
        improved=improved,
        reproducible=False,
        hardware="a processor",
        precision="float32",
        curve=(),
    )


def test_a_distillation_reports_what_it_gained():
    page = Page(render.distillation_result(note(improved=True)))
    assert page.text == "Distilled on 12,000 tokens in 2.0 minutes: perplexity 40.0 → 25.0 (original 20.0)."
    assert "status done" in page.values("class")
    refitted = Page(render.distillation_result(replace(note(improved=True), refit_tokens=8_192)))
    assert refitted.text.startswith(
        "Refitted on 8,192 tokens, then distilled on 12,000 tokens in 2.0 minutes"
    )
    stopped = replace(note(improved=True), refit_tokens=8_192, steps=0, tokens=0)
    assert Page(render.distillation_result(stopped)).text.startswith(
        "Refitted on 8,192 tokens in 2.0 minutes:"
    )


def test_a_distillation_without_a_gain_says_that_the_model_is_unchanged():
    page = Page(render.distillation_result(note(improved=False)))
    assert page.text == "No improvement on held-out text; the model is unchanged."
    assert "status stopped" in page.values("class")
