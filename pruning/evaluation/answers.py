"""Short questions, answered and judged: of the good answers of a base, the share that a pruned model keeps.

An answer is *good* if it is right, was ended by the model itself, and does not loop (see `judge`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pruning.evaluation.judge import Item, is_right, loops
from pruning.evaluation.paired import Share, share_kept
from pruning.evaluation.panels import answers as panel
from pruning.progress import Reporter, silent
from pruning.text.answering import Answer, iter_answers
from pruning.text.prompt import CausalLM

MAX_NEW_TOKENS = 96
"""The most tokens of an answer; what is cut off there is not good."""

REPORTED = "reported"


@dataclass(frozen=True)
class Judged:
    """An answer to one question, and what a program found of it.

    Attributes:
        question: What was asked.
        text: What the model answered.
        right: Whether it is right.
        ended: Whether the model ended it by itself.
        loops: Whether it repeats itself.
        tokens: Its token ids.
    """

    question: str
    text: str
    right: bool
    ended: bool
    loops: bool
    tokens: tuple[int, ...]

    @property
    def good(self) -> bool:
        return self.right and self.ended and not self.loops


@dataclass(frozen=True)
class Answers:
    """What a model answered to the questions of a panel, in their order."""

    judged: tuple[Judged, ...]

    @property
    def good(self) -> int:
        return sum(answer.good for answer in self.judged)

    @property
    def right(self) -> int:
        return sum(answer.right for answer in self.judged)

    @property
    def loops(self) -> int:
        return sum(answer.loops for answer in self.judged)

    @property
    def items(self) -> int:
        return len(self.judged)

    def to_dict(self) -> dict[str, Any]:
        """Return how many answers are good, right and looping, of how many, as plain values."""
        return {"good": self.good, "right": self.right, "loops": self.loops, "items": self.items}


@dataclass(frozen=True)
class AnswersKept:
    """The answers of a pruned model beside those of its base.

    Attributes:
        kept: Of the base's good answers, the share that is still good, with its exact interval.
        loops: How many more answers loop than the base's.
        diverged: The mean share of the base's answer that the pruned model's begins with, in tokens.
    """

    kept: Share
    loops: int
    diverged: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def evaluate_answers(
    model: CausalLM,
    *,
    split: str = REPORTED,
    questions: int | None = None,
    progress: Reporter = silent,
) -> Answers:
    """Have a model answer the bundled questions, and judge its answers.

    Args:
        model: The model and its tokenizer, such as `LoadedModel` or `Pruned`. Without a chat format, it
            continues the questions as plain text.
        split: `reported`, or `development`, which is for choosing settings.
        questions: Ask only this number of questions, evenly from all kinds; None for all of the split.
        progress: Called after every token.

    Raises:
        RecipeError: The tokenizer has a token that the model has no embedding for.

    Example:
        >>> import pruning
        >>> base = pruning.load("smollm2-135m")
        >>> answers = pruning.evaluate_answers(base, questions=4)
        >>> 0 <= answers.good <= answers.items == 4
        True
    """
    items = _some(panel(split), questions)
    answered = dict(
        iter_answers(
            model,
            [item.question for item in items],
            max_new_tokens=MAX_NEW_TOKENS,
            progress=progress,
        )
    )
    return Answers(tuple(_judge(item, answered[number]) for number, item in enumerate(items)))


def compare(base: Answers, pruned: Answers) -> AnswersKept:
    """Compare the answers of a pruned model with those of its base to the same questions."""
    pairs = list(zip(base.judged, pruned.judged, strict=True))
    shares = [_common(before.tokens, after.tokens) / max(len(before.tokens), 1) for before, after in pairs]
    kept = share_kept([before.good for before, _ in pairs], [after.good for _, after in pairs])
    return AnswersKept(kept, pruned.loops - base.loops, sum(shares) / max(len(shares), 1))


def _some(items: Sequence[Item], count: int | None) -> Sequence[Item]:
    if count is None or count >= len(items):
        return items
    return [items[number * len(items) // count] for number in range(count)]


def _judge(item: Item, answer: Answer) -> Judged:
    return Judged(
        item.question,
        answer.text,
        is_right(item, answer.text),
        answer.ended,
        loops(answer.text),
        answer.ids,
    )


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two answers have in common from their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
