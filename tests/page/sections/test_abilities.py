"""The panel of skills and answers: recorded figures at once, others on request, and never under another result."""

from datetime import date

import pytest

from page.sections import abilities as section
from page.workers.abilities import AbilitiesTask
from page.workers.messages import Done, Evaluation, Partial, Stopped
from pruning import Neurons, Recipe
from pruning.evaluation.abilities import Abilities
from tests.page.html.test_abilities import answers, compared
from tests.page.sections.test_prune import VALUES, run, summary  # noqa: F401

RECIPE = Recipe(base="smollm2-135m", steps=(Neurons(fraction=0.2),))
FOUND = Abilities(compared(-0.2, -0.05), {}, answers(0.4))
GIVEN = ["Once", "chat", 60, 0.7, None, "smollm2-135m", "story", "", 512, 3, *VALUES]


@pytest.fixture
def measured(monkeypatch):
    """`measured(*events)` makes a measurement yield these events; it returns the tasks that were asked for."""

    def replace(*events):
        tasks = []

        async def watch_job(plan, visitor, name, **settings):
            tasks.extend(plan())
            for event in events:
                yield event

        monkeypatch.setattr("page.sections.abilities.watch_job", watch_job)
        return tasks

    return replace


def test_the_skills_are_shown_before_the_answers(handler, request_of, measured):
    first = Abilities(FOUND.overall, {})
    tasks = measured(Partial(first, replaces=True), Done(FOUND))
    started, *updates = handler("measure_abilities")(request_of(), None, RECIPE, summary().report, "")
    assert tasks == [AbilitiesTask(RECIPE)]
    assert "measured next" in started["abilities"]
    assert started["stop-abilities"].visible
    filled = next(update for update in updates if "abilities" in update)
    assert "40% are still good" in filled["abilities"]
    assert not filled["measure-abilities"].visible
    assert "only 40% of the original&#x27;s good answers are still good" in filled["measures"]
    assert not updates[-1]["stop-abilities"].visible


def test_a_measurement_that_is_stopped_can_be_started_again(handler, request_of, measured):
    measured(Stopped("Stopped."))
    stopped, idle = handler("measure_abilities")(request_of(), None, RECIPE, None, "")
    assert "Stopped." in stopped["abilities-status"]
    assert not idle["stop-abilities"].visible
    assert "measure-abilities" not in stopped | idle


def test_a_new_result_clears_the_panel_and_offers_the_button(handler, request_of, run):  # noqa: F811
    run([Done(summary())])
    pruned, *_ = handler("prune")(request_of(), None, *GIVEN)
    assert pruned["measure-abilities"].visible
    assert section.NOT_MEASURED in pruned["abilities"]


def test_a_recorded_panel_is_shown_with_the_result_and_its_warning(handler, request_of, run, monkeypatch):  # noqa: F811
    monkeypatch.setattr("page.sections.prune.recall_from", lambda *_: Done(FOUND, date(2026, 11, 27)))
    pruned = summary()
    run([Done(pruned), Done(Evaluation(RECIPE, pruned.report))])
    shown, evaluated, _ = handler("prune")(request_of(), None, *GIVEN)
    assert not shown["measure-abilities"].visible
    assert "Recorded on 27 November 2026." in shown["abilities"]
    assert "only 40%" in evaluated["measures"]
