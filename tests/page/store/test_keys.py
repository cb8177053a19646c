"""Keys differ if anything that matters differs; only what is public is kept, and private work never meets."""

from dataclasses import replace

import pytest

from page.store import keys
from page.store.keys import BUNDLED_PROMPTS, Base, flight_key, is_public, result_key
from page.workers.abilities import AbilitiesTask
from page.workers.export import ExportTask, PublishTask
from page.workers.lesson import LessonTask
from page.workers.messages import Prompt
from page.workers.tasks import (
    CompareTask,
    DistillTask,
    EvaluateTask,
    NextTokensTask,
    PruneTask,
    TokenLossTask,
)
from pruning import Calibration, Distillation, Layers, Neurons, Recipe, Sampling
from pruning.errors import ModelError
from pruning.evaluation.skills import panel
from pruning.steps.distillation import HubDataset

RECIPE = Recipe(base="smollm2-135m", steps=(Neurons(fraction=0.2),))
FIRST = BUNDLED_PROMPTS[0]
OWN = Calibration.custom("The keeper climbed the stairs and lit the lamp. " * 40)


def known(name):
    return Base(f"hub/{name}", "commit")


def recipe(**changes):
    return RECIPE.model_copy(update=changes)


TASKS = [
    PruneTask(RECIPE),
    PruneTask(RECIPE, FIRST),
    PruneTask(RECIPE, BUNDLED_PROMPTS[1]),
    PruneTask(recipe(seed=1)),
    PruneTask(recipe(base="smollm2-360m")),
    PruneTask(recipe(steps=(Neurons(fraction=0.3),))),
    PruneTask(recipe(steps=(Neurons(fraction=0.2, criterion="l1"),))),
    PruneTask(recipe(steps=(Neurons(fraction=0.2), Layers(count=1)))),
    PruneTask(recipe(steps=(Layers(count=1), Neurons(fraction=0.2)))),
    PruneTask(recipe(calibration=Calibration(text="general"))),
    PruneTask(recipe(calibration=Calibration(text="general", tokens=512))),
    CompareTask(RECIPE, FIRST, Sampling(40)),
    CompareTask(RECIPE, FIRST, Sampling(41)),
    CompareTask(RECIPE, FIRST, Sampling(40, 0.7)),
    CompareTask(RECIPE, FIRST, Sampling(40, 0.7, 1)),
    CompareTask(RECIPE, replace(FIRST, chat=False), Sampling(40)),
    CompareTask(RECIPE, BUNDLED_PROMPTS[1], Sampling(40)),
    EvaluateTask(RECIPE),
    EvaluateTask(RECIPE, speed=True),
    AbilitiesTask(RECIPE),
    LessonTask("03-the-wrong-way"),
    LessonTask("05-ask-the-data"),
]


def test_every_difference_that_matters_makes_another_key():
    made = [flight_key([task], "ada", known) for task in TASKS]
    assert None not in made
    assert len(set(made)) == len(TASKS)
    kept = [key for task in TASKS if (key := result_key(task, known)) is not None]
    assert len(set(kept)) == len(kept) == len(TASKS) - 2  # Without a speed, and a question asked as a text.


def test_a_seed_without_effect_makes_no_other_key():
    tasks = [CompareTask(RECIPE, FIRST, Sampling(40, 0, seed)) for seed in (0, 1)]
    assert result_key(tasks[0], known) == result_key(tasks[1], known)


@pytest.mark.parametrize(
    "other", [Base("hub/smollm2-135m", "other"), Base("hub/other", "commit")], ids=["revision", "base"]
)
@pytest.mark.parametrize(
    "task", [TASKS[0], TASKS[11], TASKS[17], TASKS[19]], ids=lambda task: type(task).__name__
)
def test_the_base_that_is_really_used_counts(task, other):
    assert result_key(task, known) != result_key(task, lambda name: other)


def test_a_lesson_that_falls_back_to_another_base_is_another_result():
    def offline(name):
        if name == "distilgpt2":
            raise ModelError("The Hub cannot be reached.")
        return known(name)

    task = LessonTask("02-the-simplest-cut")
    assert None not in (result_key(task, offline), result_key(task, known))
    assert result_key(task, offline) != result_key(task, known)


def test_other_bundled_texts_make_other_keys(monkeypatch):
    before = result_key(TASKS[0], known)
    monkeypatch.setattr(keys, "texts_digest", lambda: "other")
    assert result_key(TASKS[0], known) != before


def test_other_items_make_other_keys_of_abilities_alone(monkeypatch):
    tasks = [AbilitiesTask(RECIPE), EvaluateTask(RECIPE)]
    before = [result_key(task, known) for task in tasks]
    items = panel("reported")
    monkeypatch.setattr(keys.skills, "panel", lambda split: (replace(items[0], right=" other"), *items[1:]))
    keys.panels_digest.cache_clear()
    try:
        after = [result_key(task, known) for task in tasks]
    finally:
        keys.panels_digest.cache_clear()
    assert after[0] != before[0]
    assert after[1] == before[1]


@pytest.mark.parametrize(
    "task", [TASKS[0], TASKS[11], TASKS[17], TASKS[19], TASKS[20]], ids=lambda task: type(task).__name__
)
def test_a_format_number_that_is_raised_makes_other_keys(task, monkeypatch):
    before = result_key(task, known)
    monkeypatch.setattr(keys, "FORMATS", {kind: number + 1 for kind, number in keys.FORMATS.items()})
    assert result_key(task, known) != before


TRAINED = Distillation(steps=4)
PRIVATE = {
    "own calibration text": recipe(calibration=OWN),
    "own text of a step": recipe(
        steps=(Neurons(fraction=0.2), TRAINED.model_copy(update={"teacher": "ada/secret"}))
    ),
    "dataset": recipe(
        steps=(Neurons(fraction=0.2), TRAINED.model_copy(update={"dataset": HubDataset(name="ada/secret")}))
    ),
}


@pytest.mark.parametrize("private", PRIVATE.values(), ids=PRIVATE)
@pytest.mark.parametrize(
    "task",
    [PruneTask, lambda each: CompareTask(each, FIRST, Sampling()), EvaluateTask, AbilitiesTask],
    ids=["prune", "compare", "evaluate", "abilities"],
)
def test_what_reads_a_visitors_own_is_never_kept_and_never_meets_anothers(task, private):
    assert result_key(task(private), known) is None
    assert not is_public([task(private)], known)
    assert flight_key([task(private)], "ada", known) != flight_key([task(private)], "bob", known)
    assert flight_key([task(private)], "", known) is None


def test_a_private_base_is_never_kept_and_never_meets_anothers():
    def private(name):
        return Base("ada/secret", "commit", public=False)

    for task in TASKS[:-2]:
        assert result_key(task, private) is None
        assert flight_key([task], "ada", private) != flight_key([task], "bob", private)
        assert flight_key([task], "", private) is None


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt("My name is Ada."),
        replace(FIRST, text=f"{FIRST.text} "),
        replace(FIRST, system="Be brief."),
        replace(FIRST, chat=True),
    ],
)
def test_a_prompt_that_the_page_does_not_offer_is_the_visitors_own(prompt):
    task = CompareTask(RECIPE, prompt, Sampling())
    assert result_key(task, known) is None
    assert result_key(PruneTask(RECIPE, prompt), known) is None
    assert flight_key([task], "ada", known) != flight_key([task], "bob", known)
    assert flight_key([PruneTask(RECIPE), task], "", known) is None


def test_one_private_task_makes_the_whole_work_private():
    tasks = [PruneTask(RECIPE), CompareTask(RECIPE, Prompt("My name is Ada."), Sampling())]
    assert flight_key(tasks, "ada", known) != flight_key(tasks, "bob", known)
    assert flight_key(tasks[:1], "ada", known) == flight_key(tasks[:1], "bob", known)


@pytest.mark.parametrize(
    "task",
    [
        DistillTask(RECIPE, TRAINED, FIRST, Sampling()),
        ExportTask(RECIPE, "zip", "name"),
        PublishTask(RECIPE, "ada/model", True, "token"),
        NextTokensTask(RECIPE, "text"),
        TokenLossTask(RECIPE, "text"),
    ],
    ids=lambda task: type(task).__name__,
)
def test_other_work_is_neither_kept_nor_shared(task):
    assert result_key(task, known) is None
    assert flight_key([task], "ada", known) is None
    assert not is_public([task], known)


def test_what_depends_on_the_clock_is_watched_together_but_not_kept():
    timed = PruneTask(recipe(steps=(Neurons(fraction=0.2), Distillation(minutes=1))))
    assert result_key(timed, known) is None
    assert flight_key([timed], "ada", known) == flight_key([timed], "bob", known)
    assert result_key(PruneTask(recipe(steps=(Neurons(fraction=0.2), TRAINED))), known) is not None


def test_a_revision_that_was_not_looked_up_is_not_kept():
    assert result_key(PruneTask(recipe(revision="older")), known) is None
    assert result_key(PruneTask(recipe(revision="commit")), known) == result_key(PruneTask(RECIPE), known)
