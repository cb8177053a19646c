"""The task that measures what a pruned model can still do: its skills first, then its answers."""

from dataclasses import dataclass, replace

from page.workers.messages import Partial
from page.workers.tasks import Task, TaskContext
from pruning import LoadedModel, Recipe
from pruning.calibration.cache import CacheKey, cached
from pruning.evaluation.abilities import Abilities, compare_abilities, compare_answers
from pruning.evaluation.answers import Answers, evaluate_answers
from pruning.evaluation.skills import Item, SkillsResult, measure_skills, panel
from pruning.progress import Reporter
from pruning.text.chat import PlainText
from pruning.text.chat_learning import learn_chat_format


@dataclass(frozen=True, kw_only=True)
class SkillsKey(CacheKey[SkillsResult]):
    """The items that a base was asked."""

    items: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True)
class AnswersKey(CacheKey[Answers]):
    """The number of questions that a base was asked; None for all."""

    questions: int | None


@dataclass(frozen=True)
class AbilitiesTask(Task):
    """Measure the skills and the answers of a pruned model and its base. Other visitors get their texts first.

    Attributes:
        recipe: The recipe of the model.
        most: The most items and questions; None for all of them, which is what the page asks for.
    """

    requeues = True
    recipe: Recipe
    most: int | None = None

    def perform(self, context: TaskContext) -> Abilities:
        """Emit the skills, and return them with the answers."""
        base, pruned = context.workbench.load_pair(self.recipe, context.visitor, context.emit)
        items = panel("reported")[: self.most]
        measured = measure_skills(pruned, items, progress=context.emit)
        abilities = compare_abilities(_skills_of(base, items, context.emit), measured)
        formats = [learn_chat_format(model.tokenizer) for model in (base, pruned)]
        plain = [learned for learned in formats if isinstance(learned, PlainText)]
        if plain:
            reason = f"This model cannot chat, so its answers are not measured. {plain[0].reason}"
            return replace(abilities, no_answers=reason)
        context.emit(Partial(abilities, replaces=True))
        before = _answers_of(base, self.most, context.emit)
        after = evaluate_answers(pruned, questions=self.most, progress=context.emit)
        return replace(abilities, answers=compare_answers(before, after))


def _skills_of(base: LoadedModel, items: tuple[Item, ...], progress: Reporter) -> SkillsResult:
    """Return the skills of a base, measured once."""
    key = SkillsKey(text_sha256=None, items=items)
    return cached(base.model, key, lambda: measure_skills(base, items, progress=progress))


def _answers_of(base: LoadedModel, questions: int | None, progress: Reporter) -> Answers:
    """Return the answers of a base, asked once."""
    key = AnswersKey(text_sha256=None, questions=questions)
    return cached(base.model, key, lambda: evaluate_answers(base, questions=questions, progress=progress))
