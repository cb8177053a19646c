"""Prune or quantize: a base and its pruned model, each with its weights as the types of GGUF hold them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pruning.architectures.shape import Shape
from pruning.evaluation.base_quality import base_quality
from pruning.evaluation.perplexity import evaluate
from pruning.guard import loss_rise
from pruning.loading.load import LoadedModel
from pruning.pipeline import Pruned
from pruning.progress import Progress, Reporter, at_place, silent
from pruning.sharing.gguf.quantize import round_weights
from pruning.sharing.gguf.types import GGUF_TYPES, gguf_types
from pruning.steps import AnyStep
from pruning.text.likelihood import perplexity_of

ROUNDED_TYPES = ("f16", "q8_0", "q5_0", "q4_0")
"""The types that are compared, those with the most bits first."""

TOKENS = 1000
"""Tokens of held-out text that each model is measured on."""

_EXPERTS = "Its experts share tensors, and such tensors are not rounded here."


@dataclass(frozen=True)
class RoundedPoint:
    """A model with its weights rounded to a type.

    Attributes:
        is_pruned: Whether it is the pruned model, or its base.
        type: A key of `GGUF_TYPES`.
        bytes: What its weights take in a file of that type.
        ratio: Its perplexity on held-out text over that of the base whose weights are not rounded. If the vocabulary
            was pruned, bits per byte are compared, and the ratio is that for each token of the base.
    """

    is_pruned: bool
    type: str
    bytes: int
    ratio: float


@dataclass(frozen=True)
class LeftOut:
    """Types that a model's weights cannot be rounded to.

    Attributes:
        is_pruned: Whether it is the pruned model, or its base.
        types: Keys of `GGUF_TYPES`.
        reason: Why, in a sentence.
    """

    is_pruned: bool
    types: tuple[str, ...]
    reason: str


def tokens_read(steps: Sequence[AnyStep]) -> int | None:
    """Return how many tokens `iter_rounded` reads; None for all, since vocabularies compare on the same text alone."""
    return None if any(step.changes_vocabulary for step in steps) else TOKENS


def iter_rounded(
    base: LoadedModel, pruned: Pruned, *, progress: Reporter = silent
) -> Iterator[RoundedPoint | LeftOut]:
    """Round the weights of a base and of its pruned model to each of `ROUNDED_TYPES`, and measure every copy.

    Args:
        base: The base; it is not changed.
        pruned: The model that was made from it; it is not changed.
        progress: Called before every copy, and while it is measured.

    Yields:
        What cannot be rounded, then a point for each type of each model, as soon as it is measured.
    """
    plan = []
    for model in (base, pruned):
        is_pruned, obstacles = model is pruned, _obstacles(model)
        plan += [(is_pruned, type) for type in ROUNDED_TYPES if not obstacles[type]]
        for reason in dict.fromkeys(filter(None, obstacles.values())):
            yield LeftOut(
                is_pruned, tuple(type for type in ROUNDED_TYPES if obstacles[type] == reason), reason
            )
    if not plan:
        return
    steps, report = pruned.recipe.steps, pruned.report
    tokens = tokens_read(steps)
    before = replace(report.before, quality=base_quality(base, tokens=tokens, progress=progress))
    for done, (is_pruned, type) in enumerate(plan):
        name, model, size = (
            ("pruned", pruned, report.after) if is_pruned else ("original", base, report.before)
        )
        place = Progress(f"Rounding the {name} model to {type} and measuring it", done, len(plan))
        progress(place)
        rounded = replace(model, model=round_weights(model.model, type))
        quality = evaluate(rounded, tokens=tokens, progress=at_place(place, progress))
        compared = replace(report, before=before, after=replace(size, quality=quality))
        rise = loss_rise(steps if is_pruned else (), compared)
        assert rise is not None, "both were measured on every genre"
        yield RoundedPoint(
            is_pruned, type, GGUF_TYPES[type].weight_bytes(size.parameters), perplexity_of(rise)
        )


def _obstacles(model: LoadedModel | Pruned) -> dict[str, str]:
    """Return for each of `ROUNDED_TYPES` why a model's weights cannot be rounded to it; empty if they can."""
    if any(parameter.ndim > 2 for parameter in model.model.parameters()):
        return dict.fromkeys(ROUNDED_TYPES, _EXPERTS)
    obstacles = gguf_types(Shape.of(model.model.config))
    return {type: obstacles[type] for type in ROUNDED_TYPES}
