"""Results survive their way through a file, without what belongs to the machine of the moment."""

import json
from dataclasses import replace

import pytest

from page.store.values import decode, encode
from page.workers.abilities import AbilitiesTask
from page.workers.lesson import LessonTask
from page.workers.messages import (
    Evaluation,
    FoundModel,
    ImportanceMap,
    LayerInfluences,
    LessonModel,
    LessonResult,
    Prompt,
    PrunedSummary,
    Texts,
)
from page.workers.tasks import CompareTask, EvaluateTask, PruneTask
from pruning import Layers, Neurons, Recipe, RecipeError, Sampling, pipeline
from pruning.architectures.shape import Shape
from pruning.evaluation.abilities import Abilities
from pruning.evaluation.perplexity import Perplexity, Quality
from pruning.report import Sample
from pruning.text.passages import GENRES
from tests.helpers import models
from tests.page.html.test_abilities import answers, compared

ONE = Perplexity(12.345678901234567, 1000, 512, "Held out", 1.25)
QUALITY = Quality(ONE, dict.fromkeys(GENRES, ONE))


@pytest.fixture(scope="module")
def base():
    return models.loaded("llama")


def pruned_with(base, *steps):
    recipe = Recipe(base=base.source.name, steps=steps).pinned(base.source.revision)
    return recipe, pipeline.prune(recipe, base)


def through_a_file(task, result, base):
    plain = json.loads(json.dumps(encode(task, result)))
    found = FoundModel(Shape.of(base.model.config), base.source)
    return decode(task, plain, base.source.revision, found)


@pytest.mark.parametrize("steps", [(Neurons(fraction=0.25, criterion="l1"),), (Layers(layers=(0,)),)])
def test_a_cut_comes_back_as_it_was(steps, base):
    recipe, pruned = pruned_with(base, *steps)
    summary = PrunedSummary.of(pruned, Shape.of(base.model.config))
    asked = Prompt("Why?", chat=None)
    summary = replace(summary, prompt=replace(asked, chat=True), plain_reason="")
    back = through_a_file(PruneTask(recipe, asked), summary, base)
    assert back.recipe == summary.recipe
    assert back.prompt == summary.prompt
    assert back.after.components == summary.after.components
    assert back.after.config.to_dict() == summary.after.config.to_dict()
    assert back.report.parameters == summary.report.parameters
    assert json.dumps(back.report.to_dict()["notes"]) == json.dumps(summary.report.to_dict()["notes"])


def test_an_evaluation_comes_back_without_speed_samples_and_durations(base):
    recipe, pruned = pruned_with(base, Neurons(fraction=0.25, criterion="l1"))
    report = replace(
        pruned.report,
        before=replace(pruned.report.before, quality=QUALITY, tokens_per_second=10.5),
        after=replace(pruned.report.after, quality=QUALITY, tokens_per_second=11.5),
        samples=(Sample("a", "b", "c"),),
    )
    back = through_a_file(EvaluateTask(recipe), Evaluation(pruned.recipe, report), base)
    assert back.recipe == pruned.recipe
    assert back.report.after.quality == QUALITY
    assert back.report.before.parameters == report.before.parameters
    assert (back.report.before.tokens_per_second, back.report.after.tokens_per_second) == (None, None)
    assert (back.report.samples, back.report.seconds) == ((), {})


def test_texts_come_back(base):
    texts = Texts("Größe\n<b>", "\U0001f600")
    task = CompareTask(Recipe(base="x", steps=(Layers(count=1),)), Prompt("Why?"), Sampling())
    assert through_a_file(task, texts, base) == texts


@pytest.mark.parametrize(
    "chart",
    [None, LayerInfluences([0.5, 0.25]), ImportanceMap([[1.0, 0.5]], [0.75], 0.2, ("l1", "activation"))],
)
def test_a_lesson_comes_back(chart, base):
    _, pruned = pruned_with(base, Layers(layers=(0,)))
    report = replace(pruned.report, after=replace(pruned.report.after, quality=QUALITY))
    result = LessonResult(
        (LessonModel("One", report, True, " sea."),),
        {"ratio": 1.5, "chosen": "2 layers"},
        Shape.of(base.model.config),
        base.source,
        pruned.recipe,
        chart,
    )
    back = through_a_file(LessonTask("03-the-wrong-way"), result, base)
    assert back.models[0].report.after == report.after
    assert (back.models[0].title, back.models[0].text, back.models[0].is_pruned) == ("One", " sea.", True)
    assert (dict(back.metrics), back.recipe) == (dict(result.metrics), pruned.recipe)
    assert repr(back.chart).replace("(", "[").replace(")", "]") == repr(chart).replace("(", "[").replace(
        ")", "]"
    )


def test_abilities_come_back(base):
    task = AbilitiesTask(Recipe(base="x", steps=(Layers(count=1),)))
    measured = Abilities(compared(-0.2, -0.05), {"facts": compared(-0.2, 0.1)}, answers(0.4))
    assert through_a_file(task, measured, base) == measured


DAMAGED = [
    None,
    5,
    [],
    {},
    {"report": {}},
    {"report": {"before": 1}, "layers": None, "chat": True, "reason": ""},
]


@pytest.mark.parametrize("plain", DAMAGED, ids=range(len(DAMAGED)))
@pytest.mark.parametrize("kind", ["cut", "evaluation", "texts", "lesson", "abilities"])
def test_damaged_values_are_told_apart(kind, plain, base):
    recipe = Recipe(base="x", steps=(Layers(count=1),))
    task = {
        "cut": PruneTask(recipe, Prompt("Why?")),
        "evaluation": EvaluateTask(recipe),
        "texts": CompareTask(recipe, Prompt("Why?"), Sampling()),
        "lesson": LessonTask("03-the-wrong-way"),
        "abilities": AbilitiesTask(recipe),
    }[kind]
    found = FoundModel(Shape.of(base.model.config), base.source)
    with pytest.raises((ValueError, TypeError, KeyError, RecipeError)):
        decode(task, plain, base.source.revision, found)
