"""Tasks and events cross a process border: they can be pickled, and hold no weights."""

import math
import pickle
import zipfile
from dataclasses import replace
from itertools import pairwise

import pytest

import pruning
from page.workers.abilities import AbilitiesTask
from page.workers.export import ZIP, ExportTask, PublishTask, notes_on
from page.workers.lesson import LessonTask
from page.workers.messages import (
    Done,
    Evaluation,
    Failed,
    ImportanceMap,
    LayerInfluences,
    LessonModel,
    LessonResult,
    NextTokens,
    Partial,
    Progress,
    Prompt,
    PrunedSummary,
    Queued,
    Released,
    RoundedModels,
    Stopped,
    Texts,
    TrainingUpdate,
)
from page.workers.rounding import RoundingTask
from page.workers.storage import Storage
from page.workers.tasks import (
    CompareTask,
    DistillTask,
    EvaluateTask,
    ImportanceTask,
    InfluenceTask,
    NextTokensTask,
    PruneTask,
    SearchTask,
    SweepTask,
    TaskContext,
    TokenLossTask,
    WarmUpTask,
)
from page.workers.workbench import Visitor, Workbench
from pruning import Access, Calibration, Distillation, Neurons, Recipe, Sampling
from pruning.architectures.shape import Shape
from pruning.distillation.progress import EvalPoint, TrainingProgress
from pruning.errors import Cancelled
from pruning.evaluation import skills as evaluation_skills
from pruning.evaluation.inspection import NextToken, TokenLoss
from pruning.shape_search.candidates import Candidate
from pruning.shape_search.search import SearchResult, Trial
from pruning.shape_search.sweep import SweepPoint
from pruning.sharing.gguf.rounded import LeftOut, RoundedPoint
from pruning.text.generation import stream_together
from tests.helpers import models
from tests.helpers.chat import named
from tests.helpers.saved import cut

RECIPE = Recipe(base="public", steps=(Neurons(fraction=0.25, criterion="l2", repair=False),))
CUSTOM = Recipe(base="public", calibration=Calibration.custom("text " * 300), steps=RECIPE.steps)
CALIBRATION = Calibration(text="story", tokens=256)

TASKS = [
    PruneTask(RECIPE, Prompt("Once")),
    PruneTask(CUSTOM),
    CompareTask(RECIPE, Prompt("Once", True, "Be brief."), Sampling(8)),
    EvaluateTask(RECIPE),
    AbilitiesTask(RECIPE),
    SearchTask("public", "25%", CALIBRATION, 0),
    DistillTask(RECIPE, Distillation(minutes=1), Prompt("Once"), Sampling(8)),
    NextTokensTask(RECIPE, "Once"),
    TokenLossTask(RECIPE, "Once upon a time"),
    ImportanceTask("public", ("l1", "l2"), 0.2, CALIBRATION, 0),
    InfluenceTask("public", CALIBRATION, 0),
    SweepTask("public", ("l1", "l2"), CALIBRATION, 0),
    RoundingTask(RECIPE),
    ExportTask(RECIPE, ZIP, "smaller"),
    PublishTask(RECIPE, "smaller", True, "token"),
    LessonTask("02-the-simplest-cut"),
]


def events():
    pruned = cut(models.loaded("llama"))
    shape = Shape.of(models.loaded("llama").model.config)
    summary = PrunedSummary.of(pruned, shape)
    trial = Trial(Candidate((0, 0, 0, 8), 1000), RECIPE, 2.0)
    training = TrainingProgress(
        seconds=1.0,
        seconds_left=math.inf,
        step=1,
        tokens=10,
        loss=None,
        perplexity=9.0,
        evaluated=True,
        curve=(EvalPoint(0.0, 0, 9.0),),
        perplexity_best=9.0,
        perplexity_teacher=8.0,
        perplexity_before=10.0,
    )
    chart = ImportanceMap([[1.0, 0.5]], [0.9], 0.2, ("l1", "l2"))
    model = LessonModel("Original model", pruned.report, False, "text")
    return [
        Queued(2, 40.0),
        Progress("Working", 1, 2),
        Released(10.0),
        Stopped("Stopped."),
        Failed("No."),
        Done(summary),
        Partial(Evaluation(pruned.recipe, pruned.report)),
        Partial(Texts("a", "b")),
        Partial(trial),
        Done(SearchResult(trial, (trial,), ((1000, 8.0),), 2.0, 5)),
        Partial(TrainingUpdate(training, "text")),
        Done(NextTokens([NextToken("a", 0.5)], [NextToken("b", 0.5)])),
        Done([TokenLoss("a", (None, None)), TokenLoss("b", (1.0, 2.0))]),
        Done(chart),
        Done(LayerInfluences([0.1, 0.2])),
        Partial(SweepPoint("l1", 0.2, 1000, 8.0, RECIPE)),
        Partial(
            RoundedModels((RoundedPoint(True, "q8_0", 1000, 1.2),), (LeftOut(True, ("q4_0",), "No."),), True)
        ),
        Done(LessonResult((model,), {"base": 8.0}, shape, pruned.source, RECIPE, chart)),
    ]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_a_task_can_be_pickled(task):
    assert pickle.loads(pickle.dumps(task)) == task


def test_a_custom_text_travels_with_its_task():
    assert pickle.loads(pickle.dumps(PruneTask(CUSTOM))).recipe.calibration.content == "text " * 300


def test_an_event_can_be_pickled_and_is_small():
    for event in events():
        pickled = pickle.dumps(event)
        assert pickle.loads(pickled) == event
        assert len(pickled) < 50_000


def test_neither_a_token_nor_a_custom_text_is_printed():
    assert "secret" not in repr(PublishTask(RECIPE, "smaller", True, "secret"))
    assert "text text" not in repr(PruneTask(CUSTOM))
    assert "secret" not in repr(Visitor("ada", Access(token="secret")))


def chatting():
    """Return a small random model with a chat format."""
    words = named("chatml_default_system")
    model = models.tiny("llama", vocab_size=len(words))
    return replace(models.loaded("llama"), model=model, tokenizer=words)


class Job:
    stopped = finish_requested = False


@pytest.fixture
def perform(monkeypatch, tmp_path):
    """`perform(task)` returns what a task emits and its result, on a small random model."""

    bases, plain = {"chat": chatting()}, models.loaded("llama")

    def load(name, **settings):
        loaded = bases.get(name, plain)
        return replace(loaded, source=replace(loaded.source, name=name, public=True))

    monkeypatch.setattr("pruning.loading.load.load", load)
    monkeypatch.setattr("pruning.loading.load.find", lambda name, **settings: load(name).source)
    bench, job = Workbench(10**9, downloads=Storage(tmp_path / "kept", 10**9)), Job()
    context = TaskContext(bench, Visitor(), print, job)

    def run(task, emit=None):
        emitted = []
        return emitted, task.perform(replace(context, emit=emit or emitted.append))

    run.job, run.context = job, context
    return run


def test_pruning_gives_what_the_pruned_model_says_of_itself(perform):
    _, summary = perform(PruneTask(RECIPE))
    expected = cut(models.loaded("llama"))
    assert summary.to_dict()["parameters"] == expected.to_dict()["parameters"]
    assert summary.to_dict()["config"] == expected.to_dict()["config"]
    assert summary.recipe.revision == expected.source.revision


def test_an_empty_prompt_is_refused_before_a_result_is_shown(perform):
    with pytest.raises(Exception, match="prompt is empty"):
        perform(PruneTask(RECIPE, Prompt(" ")))


def test_a_prompt_is_a_question_where_there_is_a_chat_format(perform):
    chat, plain = RECIPE.model_copy(update={"base": "chat"}), RECIPE
    asked = {
        (name, wish): perform(PruneTask(recipe, Prompt("Why?", wish)))[1]
        for name, recipe in (("chat", chat), ("plain", plain))
        for wish in (None, False)
    }
    assert [key for key, summary in asked.items() if summary.is_chat] == [("chat", None)]
    reasons = {key: summary.plain_reason for key, summary in asked.items() if summary.plain_reason}
    assert reasons == {("plain", None): "The tokenizer has no chat template."}
    assert perform(PruneTask(chat, Prompt("Why?", True, "Be brief.")))[1].is_chat
    for prompt in (Prompt("Why?", True), Prompt("Why?", None, "Be brief.")):
        with pytest.raises(Exception, match="This model cannot chat"):
            perform(PruneTask(plain, prompt))


@pytest.mark.parametrize("wish", [None, True, False])
def test_both_models_read_the_prompt_in_the_same_way(perform, wish):
    recipe = RECIPE.model_copy(update={"base": "chat"})
    _, texts = perform(CompareTask(recipe, Prompt("Why?", wish), Sampling(6)))
    assert texts.before == pruning.generate(chatting(), "Why?", Sampling(6), chat=wish is not False)
    assert texts.before != pruning.generate(chatting(), "Why?", Sampling(6), chat=wish is False)


def test_comparing_emits_growing_texts_and_returns_the_last(perform):
    emitted, texts = perform(CompareTask(RECIPE, Prompt(models.PROMPT), Sampling(6)))
    grown = [event.value for event in emitted if isinstance(event, Partial)]
    assert grown[-1] == texts
    assert all(len(a.before) <= len(b.before) for a, b in pairwise(grown))
    assert texts.before
    assert texts.after


def test_the_base_answers_a_prompt_once_for_each_owner_until_they_leave(perform, monkeypatch):
    asked = []

    def counted(all_models, *args, **settings):
        asked.append(len(all_models))
        return stream_together(all_models, *args, **settings)

    monkeypatch.setattr("page.workers.tasks.stream_together", counted)
    smaller = RECIPE.model_copy(update={"steps": (Neurons(fraction=0.5, criterion="l1"),)})
    bench, mine, theirs = perform.context.workbench, Visitor("ada:1"), Visitor("bob:1")
    texts = [
        CompareTask(recipe, Prompt("Once"), sampling).perform(
            replace(perform.context, visitor=visitor, emit=print)
        )
        for visitor, recipe, sampling in [
            (mine, RECIPE, Sampling(6)),
            (mine, smaller, Sampling(6)),
            (mine, smaller, Sampling(7)),
            (theirs, smaller, Sampling(6)),
        ]
    ]
    assert asked == [2, 1, 2, 2]
    assert texts[0].before == texts[1].before == texts[3].before
    assert texts[1].after == texts[3].after
    bench.forget("ada")
    CompareTask(smaller, Prompt("Once"), Sampling(6)).perform(
        replace(perform.context, visitor=mine, emit=print)
    )
    CompareTask(RECIPE, Prompt("Once"), Sampling(6)).perform(
        replace(perform.context, visitor=theirs, emit=print)
    )
    assert asked[4:] == [2, 1]


def test_the_warm_up_lets_the_base_answer_for_everyone(perform, monkeypatch):
    repaired = Recipe(base="public", calibration=CALIBRATION, steps=(Neurons(fraction=0.25),))
    perform(WarmUpTask(repaired, Prompt("Once"), Sampling(6)))
    asked = []

    def counted(all_models, *args, **settings):
        asked.append(len(all_models))
        return stream_together(all_models, *args, **settings)

    monkeypatch.setattr("page.workers.tasks.stream_together", counted)
    for name, prompt in [("ada:1", "Once"), ("bob:1", "Once"), ("bob:1", "Twice")]:
        CompareTask(RECIPE, Prompt(prompt), Sampling(6)).perform(
            replace(perform.context, visitor=Visitor(name), emit=print)
        )
    assert asked == [1, 1, 2]


def test_a_distilled_model_is_compared_with_what_it_was_before_too(perform):
    step = Distillation(steps=1, batch=1, window=64, text="general", learning_rate=1e-2)
    distilled = RECIPE.model_copy(update={"steps": (*RECIPE.steps, step)})
    prompt, sampling = Prompt(models.PROMPT), Sampling(6)
    _, texts = perform(CompareTask(distilled, prompt, sampling))
    _, before = perform(CompareTask(RECIPE, prompt, sampling))
    assert (texts.before, texts.undistilled) == (before.before, before.after)
    assert before.undistilled is None
    only = RECIPE.model_copy(update={"steps": (step,)})
    assert perform(CompareTask(only, prompt, sampling))[1].undistilled is None


def test_distilling_samples_as_the_visitor_asks_and_stops_when_asked(perform, monkeypatch):
    samplings = []

    def generate(model, prompt, sampling, *, chat, system):
        samplings.append(sampling)
        return "sample"

    monkeypatch.setattr("page.workers.tasks.generate", generate)
    perform.job.finish_requested = True
    step = Distillation(steps=50)
    emitted, summary = perform(DistillTask(RECIPE, step, Prompt(models.PROMPT), Sampling(8, 0.7, 3)))
    updates = [event.value for event in emitted if isinstance(event, Partial)]
    assert set(samplings) == {Sampling(8, 0.7, 3)}
    assert [update.sample for update in updates if update.progress.evaluated] == ["sample"] * len(samplings)
    assert all(update.progress.training is None for update in updates)
    assert summary.recipe.steps == (*RECIPE.steps, step)
    (note,) = summary.report.notes[-1]
    assert note.steps < 50


def test_a_long_sample_is_kept_short_while_training(perform, monkeypatch):
    samplings = []
    monkeypatch.setattr("page.workers.tasks.generate", lambda *given, **_: samplings.append(given[2]) or "")
    perform.job.finish_requested = True
    perform(DistillTask(RECIPE, Distillation(steps=2), Prompt(models.PROMPT), Sampling(200, 0.7, 3)))
    assert set(samplings) == {Sampling(24, 0.7, 3)}


def test_a_sweep_emits_points_of_every_criterion(perform):
    emitted, _ = perform(SweepTask("public", ("l1", "l2"), CALIBRATION, 0))
    points = [event.value for event in emitted if isinstance(event, Partial)]
    assert {point.criterion for point in points} == {"l1", "l2"}


def test_the_lesson_on_searching_measures_the_shape_that_it_finds(perform):
    emitted, result = perform(LessonTask("12-put-together"))
    original, chosen = result.models
    assert chosen.is_pruned
    assert chosen.report.after.parameters <= 0.75 * original.report.before.parameters
    assert result.metrics["measured"] > 1
    assert result.metrics["chosen"] == chosen.title
    assert {"chosen_ratio", "chosen_smaller", "chosen_removed_neurons"} <= result.metrics.keys()
    assert any(isinstance(event, Partial) and isinstance(event.value, Trial) for event in emitted)


def test_rounding_emits_the_points_so_far_and_returns_them_all(perform):
    emitted, models = perform(RoundingTask(RECIPE))
    grown = [event.value for event in emitted if isinstance(event, Partial)]
    assert grown[-1] == models
    assert all(after.points[: len(before.points)] == before.points for before, after in pairwise(grown))
    assert [(point.is_pruned, point.type) for point in models.points] == [(False, "f16"), (True, "f16")]
    assert not models.from_4_bits
    stages = [event.text for event in emitted if isinstance(event, Progress)]
    assert "Rounding the pruned model to f16 and measuring it" in stages


def test_rounding_stops_between_points(perform):
    task, emitted = RoundingTask(RECIPE), []

    def emit(event):
        emitted.append(event)
        if isinstance(event, Partial) and event.value.points:
            raise pruning.Cancelled("Stopped.")

    with pytest.raises(pruning.Cancelled):
        perform(task, emit)
    assert max(len(event.value.points) for event in emitted if isinstance(event, Partial)) == 1


def test_rounding_knows_weights_that_had_4_bits(perform, monkeypatch):
    monkeypatch.setattr("page.workers.rounding.is_offline", lambda source: source.name == "public")
    assert perform(RoundingTask(RECIPE))[1].from_4_bits


def test_an_unknown_format_is_refused(perform):
    with pytest.raises(Exception, match="There is no format 'exe'"):
        perform(ExportTask(RECIPE, "exe", "smaller"))


def test_the_same_export_is_made_once(perform):
    _, first = perform(ExportTask(RECIPE, ZIP, "smaller"))
    emitted, second = perform(ExportTask(RECIPE, ZIP, "smaller"))
    assert (second, emitted) == (first, [])
    assert first.name == "smaller.zip"
    with zipfile.ZipFile(first) as archive:
        assert "smaller/model.safetensors" in archive.namelist()
        assert {each.compress_type for each in archive.infolist()} == {zipfile.ZIP_STORED}


def test_what_was_measured_of_a_model_is_not_measured_again_to_hand_it_over(perform, tmp_path):
    known = perform(EvaluateTask(RECIPE))[1].report
    another_worker = Workbench(10**9, downloads=Storage(tmp_path / "others", 10**9))
    emitted = []
    context = replace(perform.context, workbench=another_worker, emit=emitted.append)
    file = ExportTask(RECIPE, ZIP, "smaller", known).perform(context)
    stages = [event.text for event in emitted if isinstance(event, Progress)]
    assert "Writing samples" in stages
    assert not any("perplexity" in stage for stage in stages)
    with zipfile.ZipFile(file) as archive:
        assert f"{known.after.quality.overall.value:.2f}" in archive.read("smaller/README.md").decode()


def test_a_gguf_file_is_compared_before_it_is_offered(perform):
    emitted, file = perform(ExportTask(RECIPE, "f16", "smaller"))
    assert file.name == "smaller-f16.gguf"
    assert any("llama.cpp agrees after 480 tokens" in line for line in notes_on(file))
    assert any(line.startswith("ollama: ollama create smaller-f16") for line in notes_on(file))
    stages = [event.text for event in emitted if isinstance(event, Progress)]
    assert "Comparing f16 with llama.cpp" in stages
    assert perform(ExportTask(RECIPE, "f16", "smaller")) == ([], file)


def test_a_format_that_the_rows_do_not_allow_is_refused_with_the_reason(perform):
    with pytest.raises(pruning.RecipeError, match=r"Rows of .* not multiples of 256") as error:
        perform(ExportTask(RECIPE, "q4_k_s", "smaller"))
    assert str(error.value).endswith(
        "Choose another format, or a width that fits under How to choose what to cut."
    )


def test_a_lesson_without_runs_shows_the_base_alone(perform):
    emitted, result = perform(LessonTask("01-where-the-parameters-live"))
    assert (emitted, result.models, result.recipe) == ([], (), None)
    assert result.metrics["parameters_before"] == result.base.parameters


def test_skills_come_first_and_answers_after_them(perform):
    recipe = RECIPE.model_copy(update={"base": "chat"})
    emitted, abilities = perform(AbilitiesTask(recipe, most=2))
    (first,) = [event.value for event in emitted if isinstance(event, Partial)]
    assert first == replace(abilities, answers=None)
    assert abilities.overall.base.items == abilities.overall.pruned.items == 2
    assert abilities.skills == {}  # Too few items for an interval.
    assert abilities.answers.items == 2


def test_a_model_that_cannot_chat_is_asked_no_questions(perform):
    emitted, abilities = perform(AbilitiesTask(RECIPE, most=2))
    assert abilities.answers is None
    assert abilities.no_answers == (
        "This model cannot chat, so its answers are not measured. The tokenizer has no chat template."
    )
    assert not [event for event in emitted if isinstance(event, Partial)]


def test_measuring_abilities_hears_stop_and_measures_the_base_once(perform, monkeypatch):
    recipe, asked = RECIPE.model_copy(update={"base": "chat"}), []
    measure = evaluation_skills.measure_skills
    monkeypatch.setattr(
        "page.workers.abilities.measure_skills",
        lambda model, *rest, **settings: asked.append(model) or measure(model, *rest, **settings),
    )
    for _ in range(2):
        perform(AbilitiesTask(recipe, most=1))
    assert len(asked) == 3

    def stop(event):
        if "choices" in getattr(event, "text", ""):
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        AbilitiesTask(recipe, most=1).perform(replace(perform.context, emit=stop))
