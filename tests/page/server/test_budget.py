"""What a visitor may ask for: too much is refused before it is queued, with what would fit."""

from dataclasses import replace
from itertools import count

import pytest

from page.server import budget, session
from page.server.budget import (
    CHAT_TOKENS,
    MAX_STEPS,
    allowance,
    check_budget,
    check_request,
    check_task,
    prompt_tokens,
)
from page.server.jobs import run_job
from page.server.queue import JobKey
from page.workers import abilities as page_abilities
from page.workers import export as page_export
from page.workers import rounding as page_rounding
from page.workers import tasks as page_tasks
from page.workers.abilities import AbilitiesTask
from page.workers.export import ZIP, ExportTask, PublishTask
from page.workers.lesson import LessonTask
from page.workers.messages import Failed, FoundModel, Prompt
from page.workers.rounding import RoundingTask
from page.workers.storage import Storage
from page.workers.tasks import (
    CompareTask,
    DistillTask,
    EvaluateTask,
    FindTask,
    ImportanceTask,
    InfluenceTask,
    LoadTask,
    NextTokensTask,
    PruneTask,
    SearchTask,
    SweepTask,
    Task,
    TokenLossTask,
    WarmUpTask,
)
from page.workers.workbench import Visitor
from pruning import (
    Calibration,
    Channels,
    Distillation,
    Layers,
    Neurons,
    Recipe,
    Reconstruction,
    Sampling,
    Vocabulary,
    Weights,
)
from pruning.architectures.config import config_from_dict
from pruning.architectures.shape import Shape
from pruning.cost.allowance import Allowance, changes_to_fit, replaced
from pruning.errors import RecipeError
from pruning.estimate import estimate, generating, next_tokens, saving, search
from pruning.lessons import LESSONS
from pruning.steps import Heads
from pruning.steps.distillation import HubDataset
from pruning.text.prompt import MAX_PROMPT_TOKENS
from tests.helpers import models

GB = 10**9
SPACE = Allowance(seconds=300, speed=4 * 60 * GB, memory=6 * GB, disk=10 * GB)
"""A machine of two cores, each of which does thirty billion operations a second, with the margin of the page."""


def llama(hidden, neurons, layers, heads, keys, vocabulary=128_256, head_dim=64):
    return Shape.of(
        config_from_dict(
            {
                "model_type": "llama",
                "hidden_size": hidden,
                "intermediate_size": neurons,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": keys,
                "head_dim": head_dim,
                "vocab_size": vocabulary,
                "max_position_embeddings": 8192,
                "tie_word_embeddings": True,
            }
        )
    )


DEFAULT = llama(576, 1536, 30, 9, 3, vocabulary=49_152)
LLAMA_1B = llama(2048, 8192, 16, 32, 8)
LLAMA_3B = llama(3072, 8192, 28, 24, 8, head_dim=128)
GPT2 = Shape.of(config_from_dict({"model_type": "gpt2"}))


def recipe(*steps, **calibration):
    return Recipe(base="smollm2-135m", steps=steps, calibration=Calibration(**calibration))


ATTACKS = {
    "batch": (recipe(Distillation(steps=1, batch=4096, micro_batch_size=1, window=8192)), "batch"),
    "micro-batch": (
        recipe(Distillation(steps=1, batch=4096, micro_batch_size=4096, window=8192)),
        "of memory",
    ),
    "memory alone": (recipe(Distillation(steps=1, batch=64, micro_batch_size=64, window=1024)), "of memory"),
    "tokens": (recipe(Neurons(fraction=0.2), tokens=1_000_000, window=8192), "calibration.tokens"),
    "steps": (recipe(Distillation(steps=10_000)), "steps of step 1"),
    "minutes": (recipe(Distillation(minutes=10_000)), "minutes of step 1"),
    "epochs": (recipe(Reconstruction(epochs=100)), "takes at least"),
    "evaluations": (recipe(Distillation(steps=400, batch=1, window=16, num_evals=10_000)), "takes at least"),
    "samples": (recipe(Distillation(steps=1, samples=1_000_000)), "samples"),
    "self-generated": (recipe(Neurons(fraction=0.2), text="self_generated", tokens=1_000_000), "tokens"),
    "dataset": (
        recipe(Distillation(steps=1, dataset=HubDataset(name="a/b", tokens=100_000_000))),
        "dataset.tokens",
    ),
    "greedy": (recipe(Layers(count=27, method="greedy")), "takes at least"),
    "trials": (recipe(Layers(count=2, method="perplexity"), tokens=200_000), "tokens"),
    "many passes": (recipe(*[Reconstruction(epochs=8)] * 8), "takes at least"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_recipe_that_could_never_end_is_refused_with_what_would_fit(attack):
    asked, named = ATTACKS[attack]
    with pytest.raises(RecipeError, match=named) as refusal:
        check_budget(asked, DEFAULT, allowed=SPACE, base_is_mapped=True)
    message = str(refusal.value)
    assert "at most" in message or "set " in message.lower()
    assert "\n" not in message


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_refusal_advises_is_accepted(attack):
    asked, _ = ATTACKS[attack]

    def cost_of(changed):
        return estimate(changed, DEFAULT, free=SPACE.memory, base_is_mapped=True)

    changes = changes_to_fit(asked, cost_of, SPACE)
    assert changes
    for change in changes:
        asked = replaced(asked, change.place, change.value)
    assert SPACE.excess(cost_of(asked)) <= 1


def test_another_teacher_is_refused_unless_it_was_looked_up_and_fits():
    asked = recipe(Distillation(steps=1, teacher="someone/large", text="general"))
    with pytest.raises(RecipeError, match="Another teacher"):
        check_budget(asked, DEFAULT, allowed=SPACE)
    with pytest.raises(RecipeError, match=r"of memory.*[Ll]eave out teacher"):
        check_budget(asked, DEFAULT, allowed=SPACE, teachers={"someone/large": LLAMA_3B})
    assert check_budget(asked, DEFAULT, allowed=SPACE, teachers={"someone/large": GPT2}).memory < SPACE.memory


def test_a_model_that_is_too_large_is_refused_with_a_size_that_fits():
    with pytest.raises(RecipeError, match=r"A model of at most about \d+ million parameters"):
        check_budget(recipe(Neurons(fraction=0.2)), LLAMA_3B, allowed=SPACE)


def test_a_recipe_of_many_large_steps_is_refused_with_those_that_fit(monkeypatch):
    estimates = count()

    def counted(*args, **settings):
        next(estimates)
        return estimate(*args, **settings)

    monkeypatch.setattr(budget, "estimate", counted)
    asked = recipe(
        Heads(groups=1), *[Distillation(steps=10_000, num_evals=9_999, batch=512)] * (MAX_STEPS - 1)
    )
    with pytest.raises(RecipeError, match="Leave out the steps after step 1"):
        check_budget(asked, DEFAULT, allowed=SPACE, base_is_mapped=True)
    assert next(estimates) < 50  # A refusal must not cost the server much.


def test_a_recipe_of_too_many_steps_is_refused():
    with pytest.raises(RecipeError, match=f"at most {MAX_STEPS}"):
        check_budget(recipe(*[Reconstruction(epochs=0)] * (MAX_STEPS + 1)), DEFAULT, allowed=SPACE)


def test_a_long_prompt_is_refused_with_a_length_that_fits():
    tight = Allowance(300, 240 * GB, 2 * GB, 10 * GB)
    with pytest.raises(RecipeError, match=r"At most [\d,]+ tokens fit, not 80,000"):
        check_request(80_000, "tokens", lambda tokens: next_tokens(DEFAULT, tokens), tight)
    check_request(500, "tokens", lambda tokens: next_tokens(DEFAULT, tokens), tight)
    check_request(1_024, "new tokens", lambda new: generating([DEFAULT, DEFAULT], 1_000, new), SPACE)


def test_a_question_counts_with_what_its_chat_format_adds():
    plain, chat = (prompt_tokens(Prompt("x" * 400, chat)) for chat in (False, None))
    assert (plain, chat) == (100, 100 + CHAT_TOKENS)
    assert prompt_tokens(Prompt("x" * 400, True, "y" * 40)) == chat + 10
    assert prompt_tokens(Prompt("x" * 10**6, True)) == MAX_PROMPT_TOKENS


def test_a_saved_model_that_would_fill_the_disk_is_refused():
    full = Allowance(300, 240 * GB, 6 * GB, 100_000_000)
    with pytest.raises(RecipeError, match="of disk"):
        check_request(1, "models", lambda _: saving(DEFAULT, packed=True), full)


DEFAULTS = {
    "layers": Layers(count=2),
    "heads": Heads(groups=1),
    "neurons": Neurons(fraction=0.2),
    "reconstruction": Reconstruction(),
    "channels": Channels(fraction=0.25),
    "vocabulary": Vocabulary(fraction=0.2),
    "weights": Weights(fraction=0.5),
    "distillation": Distillation(steps=20),
}


@pytest.mark.parametrize("step", DEFAULTS)
def test_a_step_as_it_is_offered_is_accepted(step):
    check_budget(recipe(DEFAULTS[step]), DEFAULT, allowed=SPACE, base_is_mapped=True)


@pytest.mark.parametrize("step", ["layers", "neurons", "reconstruction", "vocabulary", "weights"])
def test_larger_models_are_accepted_on_a_machine_that_holds_them(step):
    larger = Allowance(3600, 240 * GB, 16 * GB, 40 * GB)
    for shape in (GPT2, llama(1024, 3072, 28, 16, 8, 151_936, head_dim=128), LLAMA_1B):
        check_budget(recipe(DEFAULTS[step]), shape, allowed=larger)


def test_five_minutes_of_distillation_are_accepted_by_a_job_that_has_them():
    job = Allowance(420, SPACE.speed, SPACE.memory, SPACE.disk)
    check_budget(recipe(Distillation(minutes=5)), DEFAULT, allowed=job, base_is_mapped=True)


def test_every_lesson_is_accepted():
    for lesson in LESSONS:
        for run in lesson.runs:
            shape = DEFAULT if run.base is None or run.base == "smollm2-135m" else GPT2
            asked = Recipe(base="base", steps=run.steps)
            check_budget(asked, shape, allowed=SPACE, base_is_mapped=True)


def test_a_quick_search_is_accepted():
    assert SPACE.excess(search(DEFAULT, thorough=False, free=SPACE.memory)) <= 1


def test_this_machine_has_an_allowance():
    allowed = allowance(seconds=60)
    assert allowed.seconds == 60
    assert min(allowed.speed, allowed.memory, allowed.disk) > 0


NEURONS = recipe(Neurons(fraction=0.2))
ENDLESS = recipe(*[Reconstruction(epochs=100)] * 3)
TEXT, SAMPLING = "Once upon a time there was a model. " * 5, Sampling(max_new_tokens=40)
PROMPT = Prompt(TEXT)
LONG_TEXT = Calibration(tokens=1_000_000, window=8192)
USUAL = Calibration()

TASKS = {
    "prune": (PruneTask(NEURONS), PruneTask(ENDLESS)),
    "compare": (CompareTask(NEURONS, PROMPT, SAMPLING), CompareTask(ENDLESS, PROMPT, SAMPLING)),
    "evaluate": (EvaluateTask(NEURONS), EvaluateTask(ENDLESS)),
    "abilities": (AbilitiesTask(NEURONS), AbilitiesTask(ENDLESS)),
    "distill": (
        DistillTask(NEURONS, Distillation(minutes=2), PROMPT, SAMPLING),
        DistillTask(NEURONS, Distillation(steps=100_000), PROMPT, SAMPLING),
    ),
    "next tokens": (NextTokensTask(NEURONS, TEXT), NextTokensTask(ENDLESS, TEXT)),
    "token losses": (TokenLossTask(NEURONS, TEXT), TokenLossTask(ENDLESS, TEXT)),
    "rounding": (RoundingTask(NEURONS), RoundingTask(ENDLESS)),
    "search": (
        SearchTask("smollm2-135m", "25%", USUAL, 0),
        SearchTask("large", "25%", USUAL, 0),
    ),
    "sweep": (
        SweepTask("smollm2-135m", ("l1", "activation"), Calibration(tokens=2048), 0),
        SweepTask("smollm2-135m", ("l1", "activation"), LONG_TEXT, 0),
    ),
    "importance": (
        ImportanceTask("smollm2-135m", ("l1", "activation"), 0.2, USUAL, 0),
        ImportanceTask("smollm2-135m", ("l1", "activation"), 0.2, LONG_TEXT, 0),
    ),
    "influence": (
        InfluenceTask("smollm2-135m", USUAL, 0),
        InfluenceTask("smollm2-135m", LONG_TEXT, 0),
    ),
    "export": (ExportTask(NEURONS, ZIP, "smaller"), ExportTask(ENDLESS, ZIP, "smaller")),
    "export to GGUF": (ExportTask(NEURONS, "f16", "smaller"), ExportTask(ENDLESS, "f16", "smaller")),
    "publish": (PublishTask(NEURONS, "smaller", True, "token"), PublishTask(ENDLESS, "a", True, "token")),
}
"""Of each kind of task one as the page offers it, and one that is too large."""

FIXED = {FindTask, LoadTask, LessonTask, WarmUpTask}
"""Kinds of tasks whose size no visitor chooses."""

VISITOR = Visitor("ada:1")


@pytest.fixture
def machine(monkeypatch):
    """Let the page run on `SPACE`, with the default model and a large one."""
    shapes = {"smollm2-135m": DEFAULT, "large": llama(8192, 28_672, 80, 64, 8)}

    def look_up(name, _visitor):
        return FoundModel(shapes[name], replace(models.loaded("llama").source, name=name))

    monkeypatch.setattr(budget, "look_up", look_up)
    monkeypatch.setattr(budget, "allowance", lambda seconds: replace(SPACE, seconds=seconds))


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_as_the_page_offers_it_is_accepted(kind, machine):
    check_task(TASKS[kind][0], VISITOR, 300)


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_that_could_never_end_is_refused(kind, machine):
    with pytest.raises(RecipeError, match=r"This (needs|takes) at?"):
        check_task(TASKS[kind][1], VISITOR, 300)


def test_every_kind_of_task_whose_size_a_visitor_chooses_is_estimated():
    rooms = {**vars(page_tasks), **vars(page_export), **vars(page_rounding), **vars(page_abilities)}
    kinds = {kind for kind in rooms.values() if isinstance(kind, type) and issubclass(kind, Task)}
    assert kinds | {LessonTask} == {type(task) for pair in TASKS.values() for task in pair} | FIXED | {Task}


@pytest.mark.parametrize("kind", TASKS)
def test_an_attack_fails_with_a_sentence_and_never_reaches_the_queue(kind, machine, pools, monkeypatch):
    def start(*_args):
        raise AssertionError("the job was queued")

    monkeypatch.setattr(session.jobs, "start", start)
    (event,) = run_job(lambda: [TASKS[kind][1]], VISITOR, JobKey("session"))
    assert isinstance(event, Failed)
    assert event.message.startswith("This ")
    assert event.message.endswith(".")


def test_a_model_that_is_kept_on_disk_is_not_estimated_again(machine, monkeypatch, tmp_path):
    storage = Storage(tmp_path, 10**9)
    monkeypatch.setattr(session.pools, "models", storage)
    step = Distillation(minutes=4)
    long = NEURONS.model_copy(update={"steps": (*NEURONS.steps, step, step)})
    for task in (
        PruneTask(long),
        CompareTask(long, PROMPT, SAMPLING),
        DistillTask(long, step, PROMPT, SAMPLING),
    ):
        with pytest.raises(RecipeError, match="it may take"):
            check_task(task, VISITOR, 300)
    with storage.new(long.sha256, VISITOR.owner):
        pass
    for task in (
        PruneTask(long),
        CompareTask(long, PROMPT, SAMPLING),
        DistillTask(long, step, PROMPT, SAMPLING),
    ):
        check_task(task, VISITOR, 300)


def test_a_model_that_would_fill_the_disk_is_not_exported(machine, monkeypatch):
    monkeypatch.setattr(budget, "allowance", lambda seconds: replace(SPACE, seconds=seconds, disk=10**8))
    for task in (TASKS["export"][0], TASKS["export to GGUF"][0], TASKS["publish"][0]):
        with pytest.raises(RecipeError, match="of disk"):
            check_task(task, VISITOR, 300)
