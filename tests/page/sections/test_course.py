"""What a lesson shows while it runs, when it was recorded, and when another one is chosen."""

from dataclasses import replace
from datetime import date

import pytest

from page.server.jobs import Replaced, Watch
from page.server.queue import JobKey
from page.server.session import jobs
from page.workers.lesson import LessonTask
from page.workers.messages import Done, LessonModel, LessonResult, Queued
from pruning import Layers, Recipe, catalog
from pruning.architectures.shape import Shape
from pruning.lessons import LESSONS
from tests.helpers import models
from tests.page.html.samples import quality, report

FIRST, SECOND = LESSONS[0], LESSONS[1]


@pytest.fixture
def result():
    """The result of a lesson that shows the base alone."""
    base = models.loaded("llama")
    shape = Shape.of(base.model.config)
    shares = {f"{name}_share": 0.25 for name in ("embeddings", "attention", "mlp", "norms", "head")}
    return LessonResult((), {"parameters_before": 10, **shares}, shape, base.source)


@pytest.fixture
def run(monkeypatch):
    """`run(*events)` makes every lesson yield these; it returns the tasks and settings that were asked for."""

    def replace(*events):
        asked = []

        async def watch_job(plan, visitor, name, **settings):
            asked.append((plan(), settings))
            for event in events:
                if event is Replaced:
                    raise Replaced
                yield event

        monkeypatch.setattr("page.sections.course.watch_job", watch_job)
        return asked

    return replace


def test_a_lesson_that_runs_shows_its_place_and_then_its_results(handler, request_of, run, result):
    asked = run(Queued(2), Done(result))
    queued, done, idle = handler("run")(request_of(), None, FIRST.key, None)
    assert asked == [([LessonTask(FIRST.key)], {"live": False})]
    assert "You are number 2" in queued["lesson-status"]
    assert queued["lesson-stop"].visible
    assert "model-map" in done["lesson-results"]
    assert "Recorded" not in done["lesson-results"]
    assert not done["lesson-live"].visible
    assert idle["lesson-run"].visible


def test_a_lesson_draws_the_model_that_it_made(handler, request_of, run, result):
    layers = result.base.anatomy.layers
    recipe = Recipe(base=catalog.DEFAULT_MODEL, steps=(Layers(count=1),), kept_layers=(0, *range(2, layers)))
    made = LessonModel("One <layer> less", report(quality(10.0), quality(20.0)), True, "text")
    run(Done(replace(result, models=(made,), recipe=recipe)))
    shown, _ = handler("run")(request_of(), None, FIRST.key, None)
    drawn = shown["lesson-results"]
    assert "One &lt;layer&gt; less</h3>" in drawn
    assert 'class="layer removed" data-layer="1"' in drawn
    assert drawn.count("layer removed") == 1
    assert 'role="button"' not in drawn
    assert 'id="parameters-' not in drawn


def test_a_lesson_of_another_model_has_no_drawing(handler, request_of, run, result):
    recipe = Recipe(base="distilgpt2", steps=(Layers(count=1),))
    made = LessonModel("Smaller", report(quality(10.0), quality(20.0)), True, "text")
    run(Done(replace(result, models=(made,), recipe=recipe)))
    shown, _ = handler("run")(request_of(), None, FIRST.key, None)
    assert "model-map" not in shown["lesson-results"]


def test_a_recorded_lesson_is_shown_at_once_with_its_date(handler, request_of, run, result):
    run(Done(result, date(2026, 11, 26)))
    (shown,) = handler("run")(request_of(), None, FIRST.key, None)
    assert "Recorded on 26 November 2026." in shown["lesson-results"]
    assert shown["lesson-live"].visible
    assert 'class="status done"' in shown["lesson-status"]


def test_run_it_live_runs_it(handler, request_of, run, result):
    asked = run(Done(result))
    list(handler("run_lesson_live")(request_of(), None, FIRST.key, None))
    assert asked == [([LessonTask(FIRST.key)], {"live": True})]


def test_choosing_another_lesson_ends_what_the_first_one_shows(handler, request_of):
    request = request_of()
    name = JobKey(request.session_hash, "lesson")
    watch = Watch(name)
    jobs.replace(name, watch)
    watch.ended.set()
    (shown,) = handler("choose_lesson")(request, SECOND.key)
    assert watch.is_replaced
    assert name not in jobs
    assert SECOND.title in shown["lesson-see"]
    assert (shown["lesson-results"], shown["lesson-status"]) == ("", "")
    assert [shown["lesson-run"].visible, shown["lesson-stop"].visible] == [True, False]


def test_a_lesson_that_was_left_shows_nothing_more(handler, request_of, run):
    run(Queued(2), Replaced)
    (only,) = handler("run")(request_of(), None, FIRST.key, None)
    assert "You are number 2" in only["lesson-status"]
