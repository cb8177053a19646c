"""Prune or quantize: points appear one by one, and the status line says what goes wrong."""

import pytest

from page.server.queue import JobKey
from page.server.session import jobs
from page.workers.messages import Partial, Progress, RoundedModels
from page.workers.rounding import RoundingTask
from pruning import Calibration, Neurons, Recipe, SavingError
from pruning.sharing.gguf.rounded import RoundedPoint

pytestmark = pytest.mark.usefixtures("pools")

RECIPE = Recipe(base="smollm2-135m", steps=(Neurons(fraction=0.2),))
FIRST, SECOND = RoundedPoint(False, "f16", 2000, 1.0), RoundedPoint(True, "q8_0", 900, 1.4)


def models(*points):
    return RoundedModels(points, (), False)


@pytest.fixture(autouse=True)
def any_cost(monkeypatch):
    """The model is never loaded here, so what it costs is not known."""
    monkeypatch.setattr("page.server.jobs.check_task", lambda task, visitor, seconds: None)


@pytest.fixture
def compare(handler, request_of, monkeypatch):
    """`compare(perform, recipe)` returns the session of the job and its updates; `perform` does the work."""

    def run(perform, recipe=RECIPE):
        monkeypatch.setattr(RoundingTask, "perform", perform)
        request = request_of()
        return request.session_hash, handler("show_rounded")(request, None, recipe, "")

    return run


def test_points_are_drawn_as_they_are_measured(compare):
    def perform(task, context):
        context.emit(Progress("Rounding the original model to f16 and measuring it", 0, 2))
        context.emit(Partial(models(FIRST), replaces=True))
        return models(FIRST, SECOND)

    _, updates = compare(perform)
    shown = list(updates)
    assert any("Rounding the original model to f16" in update.get("inspect-status", "") for update in shown)
    charts = [update["rounding-chart"] for update in shown if "rounding-chart" in update]
    assert ["Pruned, q8_0" in chart for chart in charts] == [False, True]
    assert shown[-1]["inspect-status"] == ""


def test_a_stopped_comparison_keeps_the_points_that_it_has(compare):
    def endless(task, context):
        context.emit(Partial(models(FIRST), replaces=True))
        while True:
            context.emit(Progress("Rounding"))

    session, updates = compare(endless)
    shown = next(update for update in updates if "rounding-chart" in update)
    assert "Original, f16" in shown["rounding-chart"]
    jobs.stop(JobKey(session, "inspect"))
    *_, last = updates
    assert 'class="status stopped"' in last["inspect-status"]
    assert "rounding-chart" not in last


def test_a_failed_comparison_shows_the_reason(compare):
    def fail(task, context):
        raise SavingError("llama.cpp is not installed.")

    _, updates = compare(fail)
    *_, last = updates
    assert "llama.cpp is not installed." in last["inspect-status"]


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (None, "press Prune first"),
        (
            RECIPE.model_copy(
                update={"calibration": Calibration.custom("text " * 300)}
            ).without_custom_text(),
            "paste it again",
        ),
    ],
    ids=["nothing was pruned", "a text that is not kept"],
)
def test_without_a_recipe_the_status_line_says_what_to_do(recipe, reason, compare):
    _, updates = compare(lambda task, context: pytest.fail("it works"), recipe)
    *_, last = updates
    assert reason in last["inspect-status"]
