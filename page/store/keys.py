"""What a result depends on: the keys of results that are kept, and of work that several visitors watch.

Two tasks have the same key only if nothing that matters differs: the pinned recipe, the base that is really used,
the prompt and how it is read, the sampling, and the bundled texts. Only what is public is kept on disk.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files

from page.server.form import CHAT, EXAMPLE_PROMPTS, FIRST_PROMPTS
from page.store.results import Key
from page.workers import lesson as lessons
from page.workers.abilities import AbilitiesTask
from page.workers.lesson import LessonTask
from page.workers.messages import Prompt
from page.workers.tasks import CompareTask, EvaluateTask, PruneTask, Task
from pruning import Distillation, Recipe, Sampling, catalog
from pruning.errors import PruningError
from pruning.evaluation import answers, panels, skills
from pruning.lessons import BY_KEY
from pruning.loading.source import Source
from pruning.text.passages import CUSTOM

FORMATS = {"cut": 1, "texts": 1, "evaluation": 1, "lesson": 1, "abilities": 1}
"""For each kind of result a number, which is raised when the same task gives another result than before."""
BUNDLED_TEXTS = ("pruning.text.passages", "pruning.text.questions")
DATA = (".txt", ".jsonl")


@dataclass(frozen=True)
class Base:
    """The base that is really used.

    Attributes:
        hub_id: Its id on the Hub.
        revision: Its commit, or the version of the package that it comes from.
        public: Whether anyone may have it.
    """

    hub_id: str | None
    revision: str | None
    public: bool = True

    @classmethod
    def of(cls, source: Source) -> "Base":
        return cls(source.hub_id, source.revision, source.public)


LookUp = Callable[[str], Base]
"""Returns the base of a name; raises `PruningError` if it cannot be used."""


@dataclass(frozen=True)
class Description:
    """What the result of a task depends on.

    Attributes:
        kind: The kind of the result.
        plain: Everything that it depends on, as plain values.
        public: Whether all of that is known to everyone, so that anyone may have the result.
        lasting: Whether it will be the same on another day.
    """

    kind: str
    plain: Mapping[str, object]
    public: bool
    lasting: bool = True


def result_key(task: Task, look_up: LookUp) -> Key | None:
    """Return the key under which the result of a task is kept; None if it is not kept.

    Raises:
        PruningError: A model cannot be used.
    """
    described = describe(task, look_up)
    if described is None or not (described.public and described.lasting):
        return None
    plain = {"format": FORMATS[described.kind], "texts": texts_digest(), **described.plain}
    return Key(described.kind, _digest(plain))


def flight_key(tasks: Sequence[Task], owner: str, look_up: LookUp) -> str | None:
    """Return the key of work that several may watch; None if nobody else may.

    What is not public is watched by its owner alone.

    Raises:
        PruningError: A model cannot be used.
    """
    described = [describe(task, look_up) for task in tasks]
    known = [each for each in described if each is not None]
    if len(known) < len(tasks):
        return None
    public = all(each.public for each in known)
    if not (public or owner):
        return None
    return _digest([owner if not public else "", [[each.kind, each.plain] for each in known]])


def is_public(tasks: Sequence[Task], look_up: LookUp) -> bool:
    """Return whether the results of tasks depend on nothing but what is known to everyone."""
    described = [describe(task, look_up) for task in tasks]
    return all(each is not None and each.public for each in described)


def describe(task: Task, look_up: LookUp) -> Description | None:
    """Return what the result of a task depends on; None for a task whose results nobody else may have."""
    match task:
        case PruneTask(recipe, prompt):
            asked = None if prompt is None else asdict(prompt)
            return _of_recipe("cut", recipe, look_up, {"prompt": asked}, prompt)
        case CompareTask(recipe, prompt, sampling):
            # The seed has no effect if the likeliest token is always taken.
            read = sampling if sampling.temperature else replace(sampling, seed=0)
            plain = {"prompt": asdict(prompt), "sampling": _plain_sampling(read)}
            return _of_recipe("texts", recipe, look_up, plain, prompt)
        case EvaluateTask(recipe, speed):
            described = _of_recipe("evaluation", recipe, look_up, {"speed": speed})
            return replace(described, lasting=described.lasting and not speed)
        case AbilitiesTask(recipe, most):
            return _of_recipe("abilities", recipe, look_up, {"panels": panels_digest(), "most": most})
        case LessonTask(key):
            return _of_lesson(key, look_up)
    return None


def _of_recipe(
    kind: str, recipe: Recipe, look_up: LookUp, others: Mapping[str, object], prompt: Prompt | None = None
) -> Description:
    base = look_up(recipe.base)
    pinned = recipe if recipe.revision else recipe.pinned(base.revision)
    plain = {"recipe": pinned.canonical(), "base": [base.hub_id, base.revision], **others}
    return Description(
        kind,
        plain,
        public=base.public and is_public_recipe(recipe) and (prompt is None or is_bundled(prompt)),
        # Of another revision than the one that was looked up, nothing is known.
        lasting=pinned.revision == base.revision and base.revision is not None and _is_repeatable(recipe),
    )


def _of_lesson(key: str, look_up: LookUp) -> Description:
    lesson = BY_KEY[key]
    names = [catalog.DEFAULT_MODEL, *(run.base for run in lesson.runs if run.base)]
    bases = []
    for name in names:
        try:
            base = look_up(name)
        except PruningError:
            if name == catalog.DEFAULT_MODEL:
                raise
            base = Base(None, None)  # The run falls back to the default model.
        bases.append([name, base.hub_id, base.revision])
    # Without types, the key is that of the time when no lesson had any.
    types = (lesson.types,) if lesson.types else ()
    plain = {
        "lesson": repr((lesson.key, lesson.runs, lesson.chart, lesson.budget, *types)),
        "prompt": lessons.PROMPT,
        "sampling": _plain_sampling(lessons.SAMPLING),
        "tokens": [lessons.EVALUATION_TOKENS, lessons.SEARCH_TOKENS],
        "criteria": lessons.IMPORTANCE_CRITERIA,
        "bases": bases,
    }
    return Description("lesson", plain, public=True)


def is_public_recipe(recipe: Recipe) -> bool:
    """Return whether a recipe reads nothing that belongs to a visitor: no text, dataset, file or other model."""
    return all(choice.text != CUSTOM for choice in recipe.texts) and not any(
        step.without_paths() != step
        or (isinstance(step, Distillation) and (step.dataset is not None or step.teacher is not None))
        for step in recipe.steps
    )


def is_bundled(prompt: Prompt) -> bool:
    """Return whether a prompt is one that the page itself offers, in a mode in which it offers it."""
    return prompt in BUNDLED_PROMPTS


def bundled_prompt(text: str, mode: str) -> Prompt:
    """Return a prompt as the page gives it to both models in a mode."""
    return Prompt(text, chat=None if mode == CHAT else False)


BUNDLED_PROMPTS = tuple(
    bundled_prompt(text, mode)
    for mode, first in FIRST_PROMPTS.items()
    for text in dict.fromkeys((first, *EXAMPLE_PROMPTS[mode]))
)
"""Every prompt that the page offers, the first one first."""


def _is_repeatable(recipe: Recipe) -> bool:
    """Return whether a recipe gives the same weights on any machine: not if it trains by the clock."""
    return not any(isinstance(step, Distillation) and step.steps is None for step in recipe.steps)


def _plain_sampling(sampling: Sampling) -> list[object]:
    return [sampling.max_new_tokens, float(sampling.temperature), sampling.seed]


@cache
def texts_digest() -> str:
    """Return the SHA-256 of all bundled texts that models read."""
    digest = hashlib.sha256()
    for package in BUNDLED_TEXTS:
        for file in sorted(files(package).iterdir(), key=lambda each: each.name):
            if file.name.endswith(DATA):
                content = file.read_bytes()
                digest.update(f"{file.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


@cache
def panels_digest() -> str:
    """Return the SHA-256 of the items and the questions that models are asked, and of how they are asked."""
    items = [asdict(item) for item in skills.panel("reported")]
    questions = [asdict(item) for item in panels.answers(answers.REPORTED)]
    return _digest([items, questions, answers.MAX_NEW_TOKENS])


def _digest(plain: object) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
