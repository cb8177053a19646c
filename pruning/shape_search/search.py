"""Search the shape within a budget that loses least: thousands computed, a few measured.

Each kind of unit is removed alone in a few amounts. What that costs in loss, interpolated and added
up, ranks every shape within the budget; the best few are pruned and measured, beside the best of each
kind alone, and the best of those are reconstructed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from pruning.architectures.shape import Shape
from pruning.calibration.calibrate import windows_of
from pruning.loading.given import AnyModel, open_model
from pruning.loading.load import LoadedModel
from pruning.pipeline import prune
from pruning.progress import Progress, Reporter, silent
from pruning.recipe import Recipe
from pruning.shape_search.budget import Budget
from pruning.shape_search.candidates import Candidate, all_candidates, largest_within, probes
from pruning.shape_search.costs import finalists, fit_costs, predict_curve
from pruning.shape_search.result import SearchResult, Trial
from pruning.steps import Channels, Heads, Layers, Neurons, Reconstruction
from pruning.text.choice import DEFAULT_CALIBRATION, Calibration
from pruning.text.likelihood import mean_loss

QUICK_TOKENS = 4096
"""The most calibration tokens that a quick search reads for each trial."""

SHAPES_BETWEEN_REPORTS = 1000
"""How many shapes are computed between two reports of progress."""

RECONSTRUCTED = 2
"""How many of the best models are reconstructed by least squares before the choice."""

__all__ = ["Budget", "SearchResult", "Trial", "iter_search", "search"]


def search(
    model: AnyModel,
    budget: Budget | str | int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    calibration: Calibration | None = None,
    seed: int = 0,
    thorough: bool = True,
    progress: Reporter = silent,
) -> SearchResult:
    """Search the shape within a budget that loses least on held-out calibration text.

    Args:
        model: The model to prune, as `pruning.prune` takes it; it is not changed.
        budget: The most parameters to keep: a `Budget`, a number, or a text such as `30%`, `100M` or `300MB`.
        tokenizer: The tokenizer of a model that transformers loaded.
        calibration: The text to calibrate and measure on.
        seed: The seed of the recipes.
        thorough: Whether to choose layers by trying each, to reconstruct the best models, and to read all
            of the calibration text for each trial, which takes several times as long.
        progress: Called before every trial, and during it.

    Returns:
        The best trial within the budget, all other trials, and the predicted quality by size.

    Raises:
        RecipeError: No shape is within the budget.
        ModelError: The model cannot be used.

    Example:
        >>> import pruning
        >>> base = pruning.load("smollm2-135m")
        >>> result = pruning.search(base, "25%", thorough=False)
        >>> pruned = pruning.run(result.chosen.recipe, base=base)
    """
    for event in iter_search(
        model, budget, tokenizer, calibration=calibration, seed=seed, thorough=thorough, progress=progress
    ):
        if isinstance(event, SearchResult):
            return event
    raise AssertionError("a search ends with its result")


def iter_search(
    model: AnyModel,
    budget: Budget | str | int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    calibration: Calibration | None = None,
    seed: int = 0,
    thorough: bool = True,
    progress: Reporter = silent,
) -> Iterator[Trial | SearchResult]:
    """Search as `search` does, and yield every trial as soon as it is measured; at last, the result.

    See `search` for the arguments and errors.

    Example:
        >>> import pruning
        >>> base = pruning.load("smollm2-135m")
        >>> for event in pruning.iter_search(base, pruning.Budget(100_000_000), thorough=False):
        ...     if isinstance(event, pruning.Trial):
        ...         perplexity = event.perplexity
    """
    base = open_model(model, tokenizer, progress=progress)
    shape = Shape.of(base.model.config)
    if not isinstance(budget, Budget):
        budget = Budget.parse(str(budget), shape, base.storage_dtype.itemsize)
    candidates = []
    for number, candidate in enumerate(all_candidates(shape)):
        if number % SHAPES_BETWEEN_REPORTS == 0:
            progress(Progress("Computing shapes"))
        candidates.append(candidate)
    within = largest_within(candidates, budget)
    runner = _TrialRunner(base, calibration or DEFAULT_CALIBRATION, seed, thorough, progress)

    yield from runner.run("Probing one kind of unit", probes(shape, candidates))
    costs = fit_costs(runner.base_loss, runner.trials.values())
    yield from runner.run("Trying the best predicted", finalists(within, costs))
    if thorough:
        yield from runner.reconstruct("Reconstructing the best", budget)

    yield SearchResult(
        chosen=runner.best(budget)[0],
        trials=tuple(sorted(runner.trials.values(), key=lambda trial: -trial.candidate.parameters)),
        curve=tuple(predict_curve(candidates, costs, runner.base_loss)),
        base_loss=runner.base_loss,
        shapes_considered=len(candidates),
    )


@dataclass
class _TrialRunner:
    """Prunes and measures candidates, each once.

    `trials`: by the digest of the recipe, in the order in which they were measured.
    """

    base: LoadedModel
    calibration: Calibration
    seed: int
    thorough: bool
    progress: Reporter
    trials: dict[str, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._shape = Shape.of(self.base.model.config)
        self._text = self.calibration
        if not self.thorough:
            tokens = min(self.calibration.tokens, QUICK_TOKENS)
            self._text = self.calibration.model_copy(update={"tokens": tokens})
        self._heldout: Sequence[torch.Tensor] = windows_of(
            self.base, self._text, self.seed, self.progress
        ).heldout
        self.base_loss = mean_loss(self.base.model, self._heldout, self.progress)

    def run(self, stage: str, candidates: Sequence[Candidate]) -> Iterator[Trial]:
        """Measure candidates, and yield the trial of each that was not measured before."""
        for done, candidate in enumerate(candidates):
            place = Progress(f"{stage} ({candidate.title})", done, len(candidates))
            yield from self._measure(candidate, self._recipe(candidate), place)

    def reconstruct(self, stage: str, budget: Budget) -> Iterator[Trial]:
        """Reconstruct the best trials within a budget, and yield the trial of each."""
        recipes = [(trial.candidate, _reconstructed(trial.recipe)) for trial in self.best(budget)]
        chosen = [(candidate, recipe) for candidate, recipe in recipes if recipe is not None][:RECONSTRUCTED]
        for done, (candidate, recipe) in enumerate(chosen):
            place = Progress(f"{stage} ({candidate.title})", done, len(chosen))
            yield from self._measure(candidate, recipe, place)

    def best(self, budget: Budget) -> list[Trial]:
        """Return the trials within a budget, those that lose least first."""
        within = [trial for trial in self.trials.values() if trial.candidate.parameters <= budget.parameters]
        return sorted(within, key=lambda trial: trial.loss)

    def _recipe(self, candidate: Candidate) -> Recipe:
        steps = [kind.step(self._shape, count) for kind, count in candidate.removed]
        if self.thorough:
            steps = [
                step.model_copy(update={"method": "perplexity"}) if isinstance(step, Layers) else step
                for step in steps
            ]
        return Recipe(
            base=self.base.source.name, calibration=self.calibration, steps=tuple(steps), seed=self.seed
        )

    def _measure(self, candidate: Candidate, recipe: Recipe, place: Progress) -> Iterator[Trial]:
        if recipe.digest in self.trials:
            return
        self.progress(place)

        def report(_progress: Progress) -> None:
            # The steps report only so that the search can be stopped while they run.
            self.progress(place)

        read = recipe.model_copy(update={"calibration": self._text})
        pruned = prune(self.base, recipe=read, share_memory=True, progress=report)
        trial = Trial(candidate, recipe, mean_loss(pruned.model, self._heldout, report))
        self.trials[recipe.digest] = trial
        yield trial


def _reconstructed(recipe: Recipe) -> Recipe | None:
    """Return the recipe with a reconstruction at the end instead of the repair of heads and neurons.

    None if it removes channels: then the residual stream of the base is not a target.
    """
    if any(isinstance(step, Channels) for step in recipe.steps):
        return None
    steps = [
        step.model_copy(update={"repair": False}) if isinstance(step, Heads | Neurons) else step
        for step in recipe.steps
    ]
    return recipe.model_copy(update={"steps": (*steps, Reconstruction(epochs=0))})
