"""The results that come with the program are there, small, and what the program of today would make."""

from dataclasses import replace

import pytest

from page.store.defaults import PERCENTAGES, SAMPLING, default_recipe, tasks_by_name
from page.store.keys import BUNDLED_PROMPTS, Base, result_key
from page.store.prepare import prepare
from page.store.results import PREPARED, ResultStore, read_prepared
from page.store.values import decode, encode
from page.workers.abilities import AbilitiesTask
from page.workers.messages import Evaluation, FoundModel, Texts
from page.workers.tasks import CompareTask, EvaluateTask, PruneTask, TaskContext
from page.workers.workbench import Visitor, Workbench
from pruning import catalog
from pruning.architectures.shape import Shape
from pruning.evaluation.skills import measure_skills, panel
from pruning.formatting import format_number

MODEL = catalog.MODELS[catalog.DEFAULT_MODEL]
REVISION = MODEL.offline.revision
AGAIN = "Make them again: python -m page.store.prepare"


def packaged(name):
    assert name == catalog.DEFAULT_MODEL
    return Base(MODEL.hub_id, REVISION)


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "results")


@pytest.mark.parametrize(
    ("name", "tasks"),
    [(name, tasks) for name, tasks in tasks_by_name(REVISION) if name.startswith("neurons")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_default_recipe_is_recorded_at_every_tenth(name, tasks, store):
    entries = [store.find(result_key(task, packaged)) for task in tasks]
    assert None not in entries, AGAIN
    compare, evaluate = (
        decode(task, entry.value, REVISION) for task, entry in zip(tasks[1:], entries[1:], strict=True)
    )
    assert isinstance(compare, Texts)
    assert isinstance(evaluate, Evaluation)
    assert compare.before == "The capital of France is Paris."
    assert evaluate.report.after.has_full_quality


@pytest.mark.parametrize(
    ("name", "tasks"),
    [(name, tasks) for name, tasks in tasks_by_name(REVISION) if name.startswith("prompts")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_prompt_that_the_page_offers_is_recorded_at_every_tenth(name, tasks, store):
    assert len(tasks) == 2 * len(BUNDLED_PROMPTS[1:])
    for task in tasks:
        entry = store.find(result_key(task, packaged))
        assert entry is not None, AGAIN
        if isinstance(task, CompareTask):
            texts = decode(task, entry.value, REVISION)
            assert min(len(texts.before), len(texts.after)) > 0


@pytest.mark.parametrize("percent", PERCENTAGES)
def test_what_the_model_can_still_do_is_recorded_at_every_tenth(percent, store):
    task = AbilitiesTask(default_recipe(percent, REVISION))
    entry = store.find(result_key(task, packaged))
    assert entry is not None, AGAIN
    abilities = decode(task, entry.value, REVISION)
    assert abilities.overall.pruned.items == len(panel("reported"))
    assert 0 <= abilities.answers.kept.kept.share <= 1


def test_prepared_results_are_small_and_nobody_wrote_anything_else_into_them():
    assert sum(file.stat().st_size for file in PREPARED.iterdir()) < 2_000_000
    wanted = {f"{name}.json" for name, _ in tasks_by_name(REVISION)}
    assert {file.name for file in PREPARED.iterdir()} <= wanted
    assert len(list(read_prepared(PREPARED))) > 20


def test_what_is_prepared_is_not_made_again(tmp_path, monkeypatch):
    made = []

    def perform(task):
        made.append(task)
        return Texts("a", "b")

    tasks = [CompareTask(default_recipe(20, REVISION), prompt, SAMPLING) for prompt in BUNDLED_PROMPTS[:3]]
    groups = [("one", tasks[:2]), ("other", tasks[2:])]
    monkeypatch.setattr("page.store.prepare.tasks_by_name", lambda revision: groups)
    monkeypatch.setattr("page.store.prepare.packaged_base", packaged)
    prepare(tmp_path, perform, ["one"])
    assert made == tasks[:2]
    prepare(tmp_path, perform)
    assert made == tasks
    prepare(tmp_path, perform, is_over=lambda: True)
    assert made == tasks
    assert len(dict(read_prepared(tmp_path))) == 3


class Control:
    stopped = finish_requested = False


@pytest.mark.real
@pytest.mark.slow
def test_a_sample_that_is_made_again_is_the_same(smollm2, user_cache, store, monkeypatch):
    """If this fails, results changed: raise their number in `page.store.keys.FORMATS`, and make them again."""
    monkeypatch.setenv("SECATEUR_CACHE", str(smollm2.source.folder.parents[1]))
    context = TaskContext(Workbench(4 * 10**9), Visitor(), lambda event: None, Control())
    found = FoundModel(Shape.of(smollm2.model.config), smollm2.source)
    recipe, prompt = default_recipe(50, REVISION), BUNDLED_PROMPTS[0]
    cut, texts, evaluation = (
        (
            decode(task, store.find(result_key(task, packaged)).value, REVISION, found),
            task.perform(context),
            task,
        )
        for task in (PruneTask(recipe, prompt), CompareTask(recipe, prompt, SAMPLING), EvaluateTask(recipe))
    )
    assert cut[0].report.parameters == cut[1].report.parameters
    assert replace(cut[0], report=None, before=None, after=None) == replace(
        cut[1], report=None, before=None, after=None
    )
    assert encode(texts[2], texts[0]).keys() == encode(texts[2], texts[1]).keys()
    # Another processor may add numbers in another order, so a text may part from the recorded one after a while.
    assert [each[:12] for each in (texts[0].before, texts[0].after)] == [
        each[:12] for each in (texts[1].before, texts[1].after)
    ]
    for side in ("before", "after"):
        recorded, measured = (getattr(each.report, side).quality for each in evaluation[:2])
        assert recorded.overall.value == pytest.approx(measured.overall.value, rel=0.01), format_number(
            measured.overall.value
        )


@pytest.mark.real
@pytest.mark.slow
def test_a_skill_that_is_measured_again_is_the_same(smollm2, user_cache, store, monkeypatch):
    """If this fails, results changed: raise the number of `abilities`, and make them again."""
    monkeypatch.setenv("SECATEUR_CACHE", str(smollm2.source.folder.parents[1]))
    task = AbilitiesTask(default_recipe(20, REVISION))
    recorded = decode(task, store.find(result_key(task, packaged)).value, REVISION).skills["arithmetic"]
    pruned = Workbench(4 * 10**9).prune(task.recipe, Visitor())
    measured = measure_skills(pruned, [item for item in panel("reported") if item.skill == "arithmetic"])
    # Another processor may add numbers in another order, which decides an item at most.
    assert measured.overall.accuracy == pytest.approx(recorded.pruned.accuracy, abs=0.02)
    assert measured.overall.margin == pytest.approx(recorded.pruned.margin, rel=0.01)
