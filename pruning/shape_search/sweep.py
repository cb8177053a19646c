"""Quality against size: MLP neurons removed in growing shares, under several criteria."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pruning.architectures.shape import Shape
from pruning.calibration.calibrate import windows_of
from pruning.loading.load import LoadedModel
from pruning.pipeline import prune
from pruning.progress import Progress, Reporter, at_place, silent
from pruning.recipe import Recipe
from pruning.shape_search.scores import LOSS, Score, check_score, measure_score
from pruning.steps.neurons import Neurons, can_repair
from pruning.text.choice import DEFAULT_CALIBRATION, Calibration
from pruning.text.likelihood import mean_loss, perplexity_of

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class SweepPoint:
    """A model of a sweep.

    Attributes:
        criterion: What its neurons were ranked by.
        fraction: The share of the neurons that was removed.
        parameters: The parameters that remain.
        perplexity: On held-out calibration text.
        recipe: How it is made.
        score: The share of good answers, the accuracy in the skills, or what the caller's function returned; None if
            nothing but the loss was asked for, or the function gave no number.
    """

    criterion: str
    fraction: float
    parameters: int
    perplexity: float
    recipe: Recipe
    score: float | None = None


def iter_sweep(
    base: LoadedModel,
    criteria: Iterable[str],
    *,
    calibration: Calibration | None = None,
    seed: int = 0,
    score: str | Score = LOSS,
    progress: Reporter = silent,
) -> Iterator[SweepPoint]:
    """Remove a growing share of the MLP neurons under each criterion, and measure every model.

    Args:
        base: The model to prune; it is not changed.
        criteria: Names of criteria.
        calibration: The text to calibrate and measure on.
        seed: The seed of the recipes.
        score: A second measure: `answers`, `skills`, or a function of the model. By default, only the loss.
        progress: Called before every model, and while it is pruned.

    Yields:
        A point for each share of `FRACTIONS` and each criterion, as soon as it is measured.

    Raises:
        RecipeError: A criterion or a score is unknown.

    Example:
        >>> import pruning
        >>> base = pruning.load("smollm2-135m")
        >>> points = list(pruning.iter_sweep(base, ["activation", "l1"]))
        >>> [point.fraction for point in points if point.criterion == "l1"]
        [0.1, 0.2, 0.3, 0.4, 0.5]
    """
    check_score(score)
    calibration = calibration or DEFAULT_CALIBRATION
    heldout = windows_of(base, calibration, seed, progress).heldout
    repairable = can_repair(Shape.of(base.model.config))
    names = list(criteria)
    plan = [(fraction, criterion) for fraction in FRACTIONS for criterion in names]
    for done, (fraction, criterion) in enumerate(plan):
        place = Progress("Pruning and measuring", done, len(plan))
        progress(place)
        step = Neurons(fraction=fraction, criterion=criterion)
        if not repairable:
            step = step.model_copy(update={"repair": False})
        recipe = Recipe(base=base.source.name, calibration=calibration, steps=(step,), seed=seed)
        report = at_place(place, progress)
        pruned = prune(base, recipe=recipe, share_memory=True, progress=report)
        perplexity = perplexity_of(mean_loss(pruned.model, heldout, report))
        value = None if score == LOSS else measure_score(score, pruned, report)[0]
        yield SweepPoint(criterion, fraction, pruned.shape.parameters, perplexity, recipe, value)
