"""What a visitor's settings become: tasks, for Prune and for the texts after a distillation."""

import json
import re
from dataclasses import replace
from datetime import date
from html import unescape

import pytest

from page.server.form import CONTROLS
from page.server.jobs import Replaced
from page.workers.messages import (
    Done,
    Evaluation,
    Failed,
    Partial,
    Progress,
    Prompt,
    PrunedSummary,
    Queued,
    Stopped,
    Texts,
)
from page.workers.tasks import CompareTask, DistillTask, EvaluateTask, PruneTask
from pruning import Calibration, Distillation, Neurons, Recipe, Sampling
from pruning.architectures.shape import Shape
from pruning.distillation.progress import EvalPoint
from pruning.distillation.result import DistillationNote
from tests.helpers import models
from tests.helpers.saved import cut

RECIPE = Recipe(base="smollm2-135m", steps=(Neurons(fraction=0.2),))
VALUES = [control.start for control in CONTROLS]


@pytest.fixture
def run(monkeypatch):
    """`run(events)` makes every job yield these events; it returns the tasks that were asked for."""

    def replace(*jobs):
        tasks, events = [], iter(jobs)

        def run_job(plan, visitor, name, **settings):
            tasks.append(plan())
            yield from next(events)

        async def watch_job(plan, visitor, name, **settings):
            for event in run_job(plan, visitor, name):
                yield event

        monkeypatch.setattr("page.sections.prune.watch_job", watch_job)
        monkeypatch.setattr("page.sections.prune.run_job", run_job)
        monkeypatch.setattr("page.sections.distill.run_job", run_job)
        return tasks

    return replace


def summary(*notes):
    pruned = cut(models.loaded("llama"))
    report = pruned.report
    object.__setattr__(report, "notes", (*report.notes, *notes))
    shape = Shape.of(models.loaded("llama").model.config)
    return PrunedSummary(pruned.recipe, report, shape, pruned.shape, pruned.source)


def test_prune_gives_both_models_the_prompt_as_the_visitor_asks(handler, request_of, run):
    tasks = run([])
    given = ["Once", "chat", 60, 0.7, None, "smollm2-135m", "story", "", 512, 3, *VALUES]
    list(handler("prune")(request_of(), None, *given))
    ((prune, compare, evaluate),) = tasks
    recipe = prune.recipe
    assert (recipe.base, recipe.calibration.text, recipe.calibration.tokens) == ("smollm2-135m", "story", 512)
    assert recipe.seed == 3
    assert prune == PruneTask(recipe, Prompt("Once"))
    assert compare == CompareTask(recipe, Prompt("Once"), Sampling(60, 0.7, 3))
    assert evaluate == EvaluateTask(recipe)


def test_the_texts_after_a_distillation_follow_the_visitors_settings(handler, request_of, run):
    note = DistillationNote(
        text="general",
        tokens=10,
        refit_tokens=0,
        steps=1,
        best_step=1,
        seconds=1.0,
        loss=1.0,
        perplexity_teacher=8.0,
        perplexity_before=10.0,
        perplexity_after=9.0,
        heldout_tokens=10,
        ended="done",
        improved=True,
        reproducible=False,
        hardware="CPU",
        precision="float32",
        curve=(EvalPoint(0.0, 0, 10.0),),
    )
    distilled = summary((note,))
    tasks = run([Done(distilled)], [])
    list(handler("distill")(request_of(), None, RECIPE, 2, "", "Once", "chat", 60, 0.7, 3))
    (distill,), (prune, compare, _) = tasks
    sampling = Sampling(60, 0.7, 3)
    assert distill == DistillTask(RECIPE, Distillation(minutes=2), Prompt("Once"), sampling)
    assert prune == PruneTask(distilled.recipe, Prompt("Once"))
    assert compare == CompareTask(distilled.recipe, Prompt("Once"), sampling)


@pytest.mark.parametrize("minutes", [0, -1, 61, "2", None, True, float("nan")])
def test_the_training_time_is_bounded(minutes, handler, request_of):
    updates = list(handler("distill")(request_of(), None, RECIPE, minutes, "", "Once", "chat", 60, 0.7, 3))
    assert "Choose 1 to 60 minutes." in updates[1]["distill-status"]


@pytest.mark.parametrize("values", [("a", 0.7, 3), (60, None, 3), (60, 3.0, 3), (60, 0.7, -1), (0, 0.7, 3)])
def test_bad_settings_of_the_texts_are_refused(values, handler, request_of):
    updates = list(handler("distill")(request_of(), None, RECIPE, 2, "", "Once", "chat", *values))
    assert 'class="status failed"' in updates[1]["distill-status"]


def test_each_event_has_its_place_and_the_buttons_come_back(handler, request_of, run):
    result = summary()
    run([Queued(2), Progress("Cutting", 1, 2), Done(result), Partial(Texts("a", "")), Done(Texts("a", "b"))])
    given = ["Once", "chat", 60, 0.7, None, "smollm2-135m", "story", "", 512, 3, *VALUES]
    updates = list(handler("prune")(request_of(), None, *given))
    queued, cutting, pruned, growing, written, idle = updates
    assert not any("prune" in update for update in updates)
    assert queued["stop"].visible
    assert "You are number 2 in the queue." in queued["status"]
    assert "1 of 2" in cutting["status"]
    parts = {"picture", "result-heading", "measures", "genres", "distill", "inspect", "export", "recipe"}
    assert {*parts, "link"} <= set(pruned)
    assert not pruned["run-live"].visible
    assert pruned["recipe"] == result.recipe.to_yaml()
    assert pruned["link"].startswith("http://page/?recipe=")
    assert "Writing" in growing["status"]
    assert "cursor" in growing["texts"]
    assert "cursor" not in written["texts"]
    assert "question" not in written["texts"]
    assert not idle["stop"].visible
    assert 'class="status done"' in idle["status"]


@pytest.mark.parametrize(
    ("event", "kind", "text"),
    [
        (Stopped("Stopped."), "stopped", "What was not measured stays blank."),
        (Failed("The queue is full."), "failed", "The queue is full."),
    ],
)
def test_a_job_that_ends_early_says_so_and_brings_the_buttons_back(
    event, kind, text, handler, request_of, run
):
    run([event])
    given = ["Once", "chat", 60, 0.7, None, "smollm2-135m", "story", "", 512, 3, *VALUES]
    shown, idle = handler("prune")(request_of(), None, *given)
    assert f'class="status {kind}"' in shown["status"]
    assert text in shown["status"]
    assert not idle["stop"].visible


def test_the_page_keeps_the_digest_of_a_visitors_own_text_and_not_the_text(handler, request_of, run):
    text = "The keeper climbed the stairs and lit the lamp at dusk. " * 60
    own = RECIPE.model_copy(update={"calibration": Calibration.custom(text, tokens=512)})
    pruned = summary()
    tasks = run([Done(replace(pruned, recipe=own))])
    given = ["Once", "chat", 60, 0.7, None, "smollm2-135m", "custom", text, 512, 3, *VALUES]
    updates = list(handler("prune")(request_of(), None, *given))
    assert tasks[0][0].recipe.calibration.content == text
    kept = next(update["state"] for update in updates if "state" in update)
    assert kept.calibration.sha256 == own.calibration.sha256
    assert all(text[:50] not in repr(update) for update in updates)
    assert kept.calibration.content is None


def test_a_distillation_takes_the_visitors_own_text_along(handler, request_of, run):
    own = RECIPE.model_copy(update={"calibration": Calibration.custom("text " * 300)})
    tasks = run([])
    list(
        handler("distill")(
            request_of(), None, own.without_custom_text(), 2, "text " * 300, "Once", "chat", 60, 0.7, 3
        )
    )
    assert tasks[0][0].recipe.calibration.content == "text " * 300


GIVEN = [60, 0.7, None, "smollm2-135m", "story", "", 512, 3, *VALUES]


def test_a_text_is_continued_in_the_mode_that_says_so(handler, request_of, run):
    tasks = run([])
    list(handler("prune")(request_of(), None, "Once", "continue", *GIVEN))
    prune, compare, _ = tasks[0]
    assert prune.prompt == compare.prompt == Prompt("Once", chat=False)


@pytest.mark.parametrize(("prompt", "mode"), [("Once", "ask"), ("Once", None), (None, "chat")])
def test_a_prompt_or_a_mode_that_no_control_sends_is_refused(prompt, mode, handler, request_of):
    updates = list(handler("prune")(request_of(), None, prompt, mode, *GIVEN))
    assert 'class="status failed"' in updates[0]["status"]


def test_a_question_stands_above_its_answers_and_comes_along_with_the_link(handler, request_of, run):
    pruned = replace(summary(), prompt=Prompt("Why?", chat=True))
    run([Done(pruned), Partial(Texts("a", "")), Done(Texts("a", "b"))])
    updates = list(handler("prune")(request_of(), None, "Why?", "chat", *GIVEN))
    shown = [update["texts"] for update in updates if "texts" in update]
    assert len(shown) == 3
    assert all('class="prompt question">Why?</span>' in texts for texts in shown)
    assert updates[0]["link"].endswith("&mode=chat&prompt=Why%3F")
    assert not any("mode" in update for update in updates)


def test_a_model_that_cannot_chat_continues_the_text_and_the_page_says_why(handler, request_of, run):
    reason = "The tokenizer has no chat template."
    pruned = replace(summary(), prompt=Prompt("Why?", chat=False), plain_reason=reason)
    run([Done(pruned), Done(Texts("a", "b"))])
    updates = list(handler("prune")(request_of(), None, "Why?", "chat", *GIVEN))
    assert updates[0]["mode"].value == "continue"
    assert updates[0]["mode"].info.endswith(f"so it continues a text. {reason}")
    assert updates[0]["prompt"].label == "Text to continue"
    assert '"Why?", "continue", 60' in unescape(updates[0]["result-heading"])
    assert "question" not in updates[1]["texts"]
    assert updates[0]["link"].endswith("&mode=continue&prompt=Why%3F")


def test_recorded_results_are_shown_all_at_once_with_their_date(handler, request_of, run):
    day = date(2026, 11, 26)
    pruned = replace(summary(), prompt=Prompt("Why?", chat=True))
    report = pruned.report
    run([Done(each, day) for each in (pruned, Texts("a", "b"), Evaluation(pruned.recipe, report))])
    (shown,) = handler("prune")(request_of(), None, "Why?", "chat", *GIVEN)
    assert "Recorded on 26 November 2026." in shown["result-heading"]
    assert "20% of the MLP neurons removed" in shown["result-heading"]
    assert shown["run-live"].visible
    assert "cursor" not in shown["texts"]
    assert not shown["stop"].visible


def test_measures_that_were_recorded_stay_while_the_texts_are_written(handler, request_of, run):
    pruned = summary()
    full = replace(pruned.report, before=replace(pruned.report.before, bytes=123_000_000))
    day = date(2026, 11, 26)
    run([Done(Evaluation(pruned.recipe, full), day), Done(pruned), Done(Texts("a", "b"))])
    updates = list(handler("prune")(request_of(), None, "Why?", "chat", *GIVEN))
    assert [("measures" in update) for update in updates] == [True, False, False]
    assert "123 MB" in updates[0]["measures"]


def test_a_job_that_was_replaced_shows_nothing_more(handler, request_of, monkeypatch):
    async def replaced(plan, visitor, name, **settings):
        yield Progress("Cutting")
        raise Replaced

    monkeypatch.setattr("page.sections.prune.watch_job", replaced)
    (only,) = handler("prune")(request_of(), None, "Why?", "chat", *GIVEN)
    assert only["stop"].visible


def test_what_a_visitor_asks_for_comes_back_for_comparison_without_their_own_text(handler, request_of, run):
    text = "A secret text of the visitor. " * 60
    run([Done(summary()), Done(Texts("a", "b"))])
    values = ["Why?", "chat", 60, 0.7, None, "smollm2-135m", "custom", text, 512, 3, *VALUES]
    updates = list(handler("prune")(request_of(), None, *values))
    heading = next(update["result-heading"] for update in updates if "result-heading" in update)
    (settings,) = re.findall('data-settings="([^"]*)"', heading)
    assert json.loads(unescape(settings)) == ["", *values[:4], *values[5:7], *values[8:]]
