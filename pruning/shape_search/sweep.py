"""Quality against size: one kind of cut, deeper and deeper, under several criteria."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pruning.calibration.calibrate import windows_of
from pruning.loading.load import LoadedModel
from pruning.pipeline import prune
from pruning.progress import Progress, Reporter, silent
from pruning.recipe import Recipe
from pruning.steps.neurons import Neurons
from pruning.text.choice import Calibration
from pruning.text.likelihood import mean_loss, perplexity_of

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class SweepPoint:
    """One model of a sweep. `perplexity`: on held-out calibration text."""

    criterion: str
    fraction: float
    parameters: int
    perplexity: float
    recipe: Recipe


def iter_sweep(
    base: LoadedModel,
    criteria: Iterable[str],
    calibration: Calibration | None = None,
    seed: int = 0,
    progress: Reporter = silent,
) -> Iterator[SweepPoint]:
    """Cut a growing share of the MLP neurons under each criterion, and measure every model."""
    calibration = calibration or Calibration()
    heldout = windows_of(base, calibration, seed, progress).heldout
    plan = [(fraction, criterion) for fraction in FRACTIONS for criterion in criteria]
    for done, (fraction, criterion) in enumerate(plan):
        where = Progress("Cutting and measuring", done, len(plan))
        progress(where)
        step = Neurons(fraction=fraction, criterion=criterion)
        recipe = Recipe(base=base.source.name, calibration=calibration, steps=[step], seed=seed)
        pruned = prune(recipe, base, lambda _, where=where: progress(where))
        yield SweepPoint(
            criterion,
            fraction,
            pruned.report.after.parameters,
            perplexity_of(mean_loss(pruned.model, heldout)),
            recipe,
        )
