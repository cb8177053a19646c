"""What a pruned model can still do, beside its base: skills and answers, without the single items."""

from collections.abc import Mapping
from dataclasses import dataclass

from pruning.evaluation.answers import Answers, AnswersKept, compare
from pruning.evaluation.skills import (
    LEAST_ITEMS,
    SkillDifference,
    SkillResult,
    SkillsResult,
    compare_skills,
)


@dataclass(frozen=True)
class SkillComparison:
    """What a base and its pruned model did on the same items, and how they differ."""

    base: SkillResult
    pruned: SkillResult
    difference: SkillDifference


@dataclass(frozen=True)
class AnswerComparison:
    """How a base and its pruned model answered the same questions.

    Attributes:
        items: The number of questions.
        base_good: How many answers of the base are good.
        base_loops: How many answers of the base loop.
        pruned_loops: How many answers of the pruned model loop.
        kept: The share of the base's good answers that the pruned model keeps.
    """

    items: int
    base_good: int
    base_loops: int
    pruned_loops: int
    kept: AnswersKept


@dataclass(frozen=True)
class Abilities:
    """What a pruned model can still do.

    Attributes:
        overall: On all items.
        skills: The skills that have enough items for an interval, by key.
        answers: How the models answered; None if that was not measured, or not yet.
        no_answers: Why the answers are not measured, in one sentence; empty if they are, or will be.
    """

    overall: SkillComparison
    skills: Mapping[str, SkillComparison]
    answers: AnswerComparison | None = None
    no_answers: str = ""


def compare_abilities(base: SkillsResult, pruned: SkillsResult) -> Abilities:
    """Compare the skills of a pruned model with those of its base.

    Args:
        base: What the base did.
        pruned: What the pruned model did on the same items in the same order.

    Returns:
        The comparison, without answers.

    Raises:
        ValueError: They were asked different items.
    """
    difference = compare_skills(base, pruned)
    return Abilities(
        SkillComparison(base.overall, pruned.overall, difference.overall),
        {
            skill: SkillComparison(base.skills[skill], pruned.skills[skill], of_skill)
            for skill, of_skill in difference.skills.items()
            if of_skill.items >= LEAST_ITEMS
        },
    )


def compare_answers(base: Answers, pruned: Answers) -> AnswerComparison:
    """Compare the answers of a pruned model with those of its base to the same questions."""
    return AnswerComparison(base.items, base.good, base.loops, pruned.loops, compare(base, pruned))
