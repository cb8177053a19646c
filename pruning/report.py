"""What a run did and what was measured of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pruning.architectures.families import CHANNEL, EXPERT, KEY_VALUE, LAYER, NEURON, QUERY, TOKEN
from pruning.architectures.shape import Shape
from pruning.evaluation.answers import Answers, AnswersKept, compare
from pruning.evaluation.perplexity import Quality
from pruning.evaluation.skills import SkillsResult
from pruning.text.passages import GENRES

COUNTED = {
    "layers": LAYER,
    "channels": CHANNEL,
    "neurons": NEURON,
    "heads": QUERY,
    "key_value_heads": KEY_VALUE,
    "experts": EXPERT,
    "tokens": TOKEN,
}
"""What a report counts of a model; neurons, heads and experts in each layer."""


def count_units(shape: Shape) -> dict[str, int]:
    """Return how many units of each kind a shape has, under the names of `COUNTED`."""
    return {name: shape.count(kind) for name, kind in COUNTED.items() if kind in shape.anatomy.units}


@dataclass(frozen=True)
class Measured:
    """The size of a model, and what was measured of it.

    Attributes:
        components: Parameters by component; tied embeddings count once, as embeddings.
        bytes: Bytes of the weights in a safetensors file, without its small header.
        quality: Perplexity by genre, as far as it was measured.
        tokens_per_second: The speed of greedy generation at batch size 1: the median of several rounds.
        speeds: The speed in each round, in which the base and the pruned model took turns.
        units: How many units there are of each kind, under the names of `COUNTED`.
        answers: What it answered to the bundled questions, if it was asked.
        skills: What it can do, if that was measured.
    """

    components: Mapping[str, int]
    bytes: int
    quality: Quality | None = None
    tokens_per_second: float | None = None
    units: Mapping[str, int] = field(default_factory=dict)
    speeds: tuple[float, ...] = ()
    answers: Answers | None = None
    skills: SkillsResult | None = None

    @classmethod
    def of(cls, shape: Shape, bytes_each: int) -> "Measured":
        """Return the size that a shape has with `bytes_each` bytes for each parameter."""
        return cls(shape.components, shape.parameters * bytes_each, units=count_units(shape))

    @property
    def parameters(self) -> int:
        return sum(self.components.values())

    @property
    def has_full_quality(self) -> bool:
        """Whether the quality is known for every genre."""
        return self.quality is not None and len(self.quality.genres) == len(GENRES)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; of answers and skills, what they come to."""
        return asdict(replace(self, answers=None, skills=None)) | {
            "answers": None if self.answers is None else self.answers.to_dict(),
            "skills": None if self.skills is None else self.skills.to_dict(),
        }


@dataclass(frozen=True)
class Sample:
    """What the base and the pruned model write to one prompt, the likeliest token each time.

    Attributes:
        prompt: A question, or a text to continue.
        base: What the base writes.
        pruned: What the pruned model writes.
        is_question: Whether the prompt was asked in the chat format, so that the texts are answers.
    """

    prompt: str
    base: str
    pruned: str
    is_question: bool = False


@dataclass(frozen=True)
class Report:
    """What a run did and what was measured.

    Attributes:
        before: The base.
        after: The pruned model.
        notes: For each step, what it reports.
        samples: Continuations of a few prompts.
        seconds: Duration of each stage, in seconds.
        base_notes: What was done to make a model of the base's files, in sentences.
    """

    before: Measured
    after: Measured
    notes: tuple[tuple[Any, ...], ...] = ()
    samples: tuple[Sample, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    base_notes: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether quality, speed and samples were measured; the speed comes last."""
        return self.after.tokens_per_second is not None

    @property
    def answers_kept(self) -> AnswersKept | None:
        """How the answers compare with the base's; None if either was not asked."""
        base, pruned = self.before.answers, self.after.answers
        return None if base is None or pruned is None else compare(base, pruned)

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters before and after, in total and by component, as plain values."""
        return compare_components(self.before.components, self.after.components)

    @property
    def sizes(self) -> dict[str, dict[str, Any]]:
        """The kinds of unit that were removed: how many there were and are, and the exact share that was removed."""
        return compare_units(self.before.units, self.after.units)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        models = {"before": self.before.to_dict(), "after": self.after.to_dict()}
        plain = replace(self, before=Measured({}, 0), after=Measured({}, 0))
        return asdict(plain) | models | {"sizes": self.sizes}


def compare_units(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return the kinds of unit that differ, with their numbers before and after and the share removed."""
    return {
        name: {"before": count, "after": after[name], "removed": 1 - after[name] / count}
        for name, count in before.items()
        if after[name] != count
    }


def compare_components(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any]:
    """Return parameters before and after, in total and by component, as plain values."""
    return {
        "before": sum(before.values()),
        "after": sum(after.values()),
        "components": {name: {"before": before[name], "after": after[name]} for name in before},
    }
