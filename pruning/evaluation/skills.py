"""What a model can still do: questions on nine skills, each with a right completion and wrong ones."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, get_args

from pruning.evaluation.paired import (
    Interval,
    Share,
    describe_accuracy,
    describe_margin,
    paired_difference,
    paired_mean_difference,
    share_of,
)
from pruning.progress import Reporter, silent
from pruning.text.completions import Question, score_completions
from pruning.text.generation import CausalLM

SKILLS = {
    "facts": "Facts",
    "grammar": "Grammar",
    "arithmetic": "Arithmetic",
    "common_sense": "Common sense",
    "reading": "Reading a short passage",
    "memory": "Remembering from the context",
    "code": "Code",
    "instructions": "Following a simple instruction",
    "languages": "Other languages",
}

LEAST_ITEMS = 75
"""How many items an interval needs to be shown: with fewer it says little, and invites to read too much."""

Split = Literal["development", "reported"]
"""The items that choices were made on, and those that are only reported."""

SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Item:
    """One question of the panel.

    Attributes:
        skill: A key of `SKILLS`.
        context: What the model reads first; may be empty.
        right: The right completion, with the space before it.
        wrong: One to three wrong ones, likewise.
        split: Whether choices may be made on it.
        passage: A name that items share whose contexts begin with the same passage; None if there is none.
    """

    skill: str
    context: str
    right: str
    wrong: tuple[str, ...]
    split: Split
    passage: str | None = None

    @property
    def completions(self) -> tuple[str, ...]:
        """The right completion and the wrong ones, in this order, which nothing that is scored depends on."""
        return (self.right, *self.wrong)

    @property
    def chance(self) -> float:
        """The probability to get it by guessing."""
        return 1 / len(self.completions)


@dataclass(frozen=True)
class Answer:
    """How a model scored the completions of an item.

    Attributes:
        item: The item.
        scores: The log-likelihood of each completion in nats per byte of UTF-8, in the order of the item's
            `completions`; None if the tokenizer cannot write the item, or the model cannot read one so long.
    """

    item: Item
    scores: tuple[float, ...] | None

    @property
    def margin(self) -> float | None:
        """The score of the right completion less that of the best wrong one, in nats per byte."""
        return None if self.scores is None else self.scores[0] - max(self.scores[1:])

    @property
    def is_right(self) -> bool:
        """Whether the right completion has the highest score."""
        return self.margin is not None and self.margin > 0


@dataclass(frozen=True)
class SkillResult:
    """What a model did on items.

    Attributes:
        items: The items that were answered.
        excluded: The items that were left out: the tokenizer cannot write them, or the model cannot read one so long.
        accuracy: The share of the answered items that it got, with its interval if there are at least `LEAST_ITEMS`;
            None if it answered none.
        chance: The accuracy of guessing; None if it answered none.
        margin: The mean margin of the answered items in nats per byte; None if it answered none.
        interval: The exact interval of the accuracy; None below `LEAST_ITEMS`.
    """

    items: int
    excluded: int
    accuracy: float | None
    chance: float | None
    margin: float | None
    interval: Share | None


@dataclass(frozen=True)
class SkillsResult:
    """What a model did on the panel.

    Attributes:
        overall: On all items, each weighing the same.
        skills: By skill.
        answers: Each item with its scores.
        tokens_read: How many tokens the model read.
    """

    overall: SkillResult
    skills: dict[str, SkillResult]
    answers: tuple[Answer, ...]
    tokens_read: int

    def to_dict(self) -> dict[str, Any]:
        """Return the results as plain values, without the single answers."""
        return {
            "overall": asdict(self.overall),
            "skills": {skill: asdict(result) for skill, result in self.skills.items()},
            "tokens_read": self.tokens_read,
        }


@dataclass(frozen=True)
class SkillDifference:
    """How two models differ on the items that both answered.

    Attributes:
        items: How many items that are.
        accuracy: The difference in accuracy, with its exact interval; None below `LEAST_ITEMS`.
        margin: The difference of the mean margins, in nats per byte; None below `LEAST_ITEMS`.
    """

    items: int
    accuracy: Interval | None
    margin: Interval | None

    def describe(self) -> str:
        """Say in one or two sentences what differs: within its interval of zero, nothing does."""
        if self.accuracy is None or self.margin is None:
            return f"Too few items to compare: {self.items}, and {LEAST_ITEMS} are needed."
        return f"{describe_accuracy(self.accuracy)} {describe_margin(self.margin)}"


@dataclass(frozen=True)
class SkillsDifference:
    """How two models differ on the panel: overall, and by skill."""

    overall: SkillDifference
    skills: dict[str, SkillDifference]


@lru_cache
def panel(split: Split | None = None) -> tuple[Item, ...]:
    """Return the items of a split, or all of them, skill by skill."""
    items = []
    for skill in SKILLS:
        lines = files(__package__).joinpath("panels", "skills", f"{skill}.jsonl").read_text(encoding="utf-8")
        for line in lines.splitlines():
            values = json.loads(line)
            items.append(Item(skill, **values | {"wrong": tuple(values["wrong"])}))
    return tuple(item for item in items if split in (None, item.split))


def measure_skills(
    model: CausalLM,
    items: Sequence[Item] | None = None,
    *,
    progress: Reporter = silent,
) -> SkillsResult:
    """Measure what a model can do.

    A completion is scored by its log-likelihood per byte of UTF-8, which does not depend on the vocabulary; the
    model gets an item if the right one has the highest score.

    Args:
        model: The model and its tokenizer, such as `LoadedModel` or `Pruned`.
        items: The items; by default the panel's reported ones.
        progress: Called before every batch; it may raise `Cancelled`.

    Returns:
        The results, overall and by skill.

    Raises:
        ModelError: The tokenizer failed on a text.
    """
    items = panel("reported") if items is None else items
    questions = [Question(item.context, item.completions, item.passage) for item in items]
    scored = score_completions(
        model.model, model.tokenizer, questions, name="questions on skills", progress=progress
    )
    answers = tuple(
        Answer(item, None if values is None else _per_byte(item, values))
        for item, values in zip(items, scored.values, strict=True)
    )
    present = {answer.item.skill for answer in answers}
    skills = {
        skill: summarize_answers([answer for answer in answers if answer.item.skill == skill])
        for skill in SKILLS
        if skill in present
    }
    return SkillsResult(summarize_answers(answers), skills, answers, scored.tokens_read)


def _per_byte(item: Item, values: Sequence[float]) -> tuple[float, ...]:
    return tuple(
        value / len(completion.encode()) for value, completion in zip(values, item.completions, strict=True)
    )


def summarize_answers(answers: Sequence[Answer]) -> SkillResult:
    """Put answers together, every item weighing the same."""
    given = [answer for answer in answers if answer.scores is not None]
    excluded = len(answers) - len(given)
    if not given:
        return SkillResult(0, excluded, None, None, None, None)
    share = share_of(sum(answer.is_right for answer in given), len(given))
    return SkillResult(
        len(given),
        excluded,
        share.share,
        statistics.fmean(answer.item.chance for answer in given),
        statistics.fmean(_margins(given)),
        share if len(given) >= LEAST_ITEMS else None,
    )


def compare_skills(base: SkillsResult, other: SkillsResult) -> SkillsDifference:
    """Compare two models on the items that both answered, pair by pair.

    Args:
        base: What the base did.
        other: What the other model did on the same items in the same order.

    Returns:
        The differences, other less base, overall and by skill.

    Raises:
        ValueError: They were asked different items.
    """
    if [answer.item for answer in base.answers] != [answer.item for answer in other.answers]:
        raise ValueError("The two models were asked different items, which cannot be compared in pairs.")
    pairs = [
        (before, after)
        for before, after in zip(base.answers, other.answers, strict=True)
        if before.scores is not None and after.scores is not None
    ]
    return SkillsDifference(
        _compare(pairs),
        {skill: _compare([pair for pair in pairs if pair[0].item.skill == skill]) for skill in base.skills},
    )


def _compare(pairs: Sequence[tuple[Answer, Answer]]) -> SkillDifference:
    if len(pairs) < LEAST_ITEMS:
        return SkillDifference(len(pairs), None, None)
    base, other = zip(*pairs, strict=True)
    return SkillDifference(
        len(pairs),
        paired_difference([answer.is_right for answer in base], [answer.is_right for answer in other]),
        paired_mean_difference(_margins(base), _margins(other)),
    )


def _margins(answers: Sequence[Answer]) -> list[float]:
    """Return the margins; that of a ruined model, whose scores are no numbers, is that of knowing nothing: 0."""
    margins = [answer.margin for answer in answers if answer.margin is not None]
    return [margin if math.isfinite(margin) else 0.0 for margin in margins]
