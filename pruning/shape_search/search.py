"""Search the shape within a budget that loses least: thousands computed, a few measured.

Each kind of unit is removed alone in a few amounts. What that costs in loss, interpolated and added
up, ranks every shape within the budget; the best few are pruned and measured, beside the best of each
kind alone, and the best of those are reconstructed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.architectures.shape import Shape
from pruning.calibration.calibrate import windows_of
from pruning.errors import RecipeError
from pruning.evaluation.speed import tokens_per_second
from pruning.lazy import torch
from pruning.loading.given import AnyModel, open_model
from pruning.loading.load import LoadedModel, weights_id
from pruning.pipeline import prune
from pruning.progress import Progress, Reporter, bar, silent, with_bar
from pruning.recipe import Recipe
from pruning.repair.kept_repairs import forget_repairs
from pruning.shape_search.budget import Budget, read_bytes
from pruning.shape_search.candidates import Candidate, all_candidates, largest_within, probes
from pruning.shape_search.costs import FINALISTS, finalists, fit_costs, predict_curve
from pruning.shape_search.gaps import repair_all_gaps
from pruning.shape_search.result import SearchResult, Trial
from pruning.shape_search.scores import LOSS, SavedScores, Score, check_score, measure_score, name_of_score
from pruning.steps import Channels, Heads, Layers, Neurons, Reconstruction
from pruning.steps.base import StepContext
from pruning.text.choice import DEFAULT_CALIBRATION, AnyCalibration, Calibration
from pruning.text.likelihood import mean_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUICK_TOKENS = 4096
"""The most calibration tokens that a quick search reads for each trial."""

SHAPES_BETWEEN_REPORTS = 1000
"""How many shapes are computed between two reports of progress."""

RECONSTRUCTED = 2
"""How many of the best models are reconstructed by least squares before the choice."""

__all__ = ["Budget", "SearchResult", "Trial", "iter_search", "read_bytes", "search"]


@with_bar
def search(
    model: AnyModel,
    budget: Budget | str | int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    calibration: AnyCalibration | None = None,
    seed: int = 0,
    thorough: bool = True,
    score: str | Score = LOSS,
    steps: Collection[str] | None = None,
    multiple_of: int | None = None,
    top_k: int = FINALISTS,
    scores: str | os.PathLike[str] | None = None,
    progress: Reporter = bar,
) -> SearchResult:
    """Search the shape within a budget that loses least on held-out calibration text.

    Args:
        model: The model to prune, as `pruning.prune` takes it; it is not changed.
        budget: How large the result may be: the number of parameters, a text such as `30%` (smaller), `100M`
            (parameters) or `300MB` (on disk), or a `Budget`, which also limits memory and latency.
        tokenizer: The tokenizer of a model that transformers loaded.
        calibration: The text to calibrate and measure on.
        seed: The seed of the recipes.
        thorough: Whether to choose layers by trying each, to reconstruct the best models, and to read all
            of the calibration text for each trial, which takes several times as long.
        score: What to choose by among the best predicted: `loss`, `answers`, `skills`, or a function of the pruned
            model that returns a number, higher for a better one.
        steps: What may be cut: `layers`, `heads`, `channels` and `neurons`; None for all.
        multiple_of: What widths are a multiple of; None for 32, or less if the model is small.
        top_k: How many of the best predicted shapes are measured.
        scores: A file in which every measurement is kept at once, so that the search can be resumed.
        progress: Called before every trial, and during it; by default a bar on a terminal.

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
        model,
        budget,
        tokenizer,
        calibration=calibration,
        seed=seed,
        thorough=thorough,
        score=score,
        steps=steps,
        multiple_of=multiple_of,
        top_k=top_k,
        scores=scores,
        progress=progress,
    ):
        if isinstance(event, SearchResult):
            return event
    raise AssertionError("a search ends with its result")


def iter_search(
    model: AnyModel,
    budget: Budget | str | int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    calibration: AnyCalibration | None = None,
    seed: int = 0,
    thorough: bool = True,
    score: str | Score = LOSS,
    steps: Collection[str] | None = None,
    multiple_of: int | None = None,
    top_k: int = FINALISTS,
    scores: str | os.PathLike[str] | None = None,
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
    check_score(score)
    if top_k < 1:
        raise RecipeError(f"top_k is {top_k}. At least one shape has to be measured.")
    base = open_model(model, tokenizer, progress=progress)
    shape = Shape.of(base.model.config)
    if not isinstance(budget, Budget):
        budget = Budget.parse(str(budget), shape, base.storage_dtype.itemsize)
    candidates = []
    for number, candidate in enumerate(all_candidates(shape, steps, multiple_of)):
        if number % SHAPES_BETWEEN_REPORTS == 0:
            progress(Progress("Computing shapes"))
        candidates.append(candidate)
    allows = _limit(base, shape, budget, progress)
    within = largest_within(candidates, budget, allows)
    text = DEFAULT_CALIBRATION if calibration is None else Calibration.of(calibration, progress=progress)
    runner = _TrialRunner(
        base, text, seed, thorough, progress, allows, score, Path(scores) if scores else None
    )
    probed = probes(shape, candidates)
    runner.layer_counts = {count for each in (*probed, *within) if (count := each.amounts[0])}

    try:
        yield from runner.run("Probing one kind of unit", probed)
        costs = fit_costs(runner.base_loss, runner.trials.values())
        yield from runner.run("Trying the best predicted", finalists(within, costs, top_k))
        if thorough:
            yield from runner.reconstruct("Reconstructing the best")
    finally:
        runner.forget()

    yield SearchResult(
        chosen=runner.chosen(),
        trials=tuple(sorted(runner.trials.values(), key=lambda trial: -trial.candidate.parameters)),
        curve=tuple(predict_curve(candidates, costs, runner.base_loss)),
        base_loss=runner.base_loss,
        shapes_considered=len(candidates),
    )


def _limit(
    base: LoadedModel, shape: Shape, budget: Budget, progress: Reporter
) -> Callable[[Candidate], bool]:
    """Return a function that says whether a candidate is within the budget."""
    base_latency = None
    if budget.latency is not None:
        (speed,) = tokens_per_second((base.model,), base.tokenizer, progress=progress)
        # Decoding reads every weight once for each token.
        base_latency = 1 / (speed * shape.parameters)

    def allows(candidate: Candidate) -> bool:
        kept = shape
        for kind, count in candidate.removed:
            kept = kept.resized(kind.unit, kept.count(kind.unit) - count)
        return budget.allows(kept, candidate.parameters, base.storage_dtype.itemsize, base_latency)

    return allows


@dataclass
class _TrialRunner:
    """Prunes and measures candidates, each once.

    `trials`: by the digest of the recipe, in the order in which they were measured.
    `layer_counts`: the numbers of layers that candidates remove.
    """

    base: LoadedModel
    calibration: Calibration
    seed: int
    thorough: bool
    progress: Reporter
    allows: Callable[[Candidate], bool]
    score: str | Score = LOSS
    file: Path | None = None
    trials: dict[str, Trial] = field(default_factory=dict)
    layer_counts: Collection[int] = ()

    def __post_init__(self) -> None:
        self._shape = Shape.of(self.base.model.config)
        self._text = self.calibration
        if not self.thorough:
            tokens = min(self.calibration.tokens, QUICK_TOKENS)
            self._text = self.calibration.model_copy(update={"tokens": tokens})
        self._windows = windows_of(self.base, self._text, self.seed, self.progress)
        self._heldout: Sequence[torch.Tensor] = self._windows.heldout
        self._gaps_are_repaired = False
        self.base_loss = mean_loss(self.base.model, self._heldout, self.progress)
        text = json.dumps(self._text.canonical(), sort_keys=True, default=str)
        self._saved = SavedScores(self.file, weights_id(self.base), text)

    def run(self, stage: str, candidates: Sequence[Candidate]) -> Iterator[Trial]:
        """Measure candidates, and yield the trial of each that was not measured before."""
        for done, candidate in enumerate(candidates):
            place = Progress(f"{stage} ({candidate.title})", done, len(candidates))
            yield from self._measure(candidate, self._recipe(candidate), place)

    def reconstruct(self, stage: str) -> Iterator[Trial]:
        """Reconstruct the best trials within the budget, and yield the trial of each."""
        recipes = [(trial.candidate, _reconstructed(trial.recipe)) for trial in self.best()]
        chosen = [(candidate, recipe) for candidate, recipe in recipes if recipe is not None][:RECONSTRUCTED]
        for done, (candidate, recipe) in enumerate(chosen):
            place = Progress(f"{stage} ({candidate.title})", done, len(chosen))
            yield from self._measure(candidate, recipe, place)

    def best(self) -> list[Trial]:
        """Return the trials within the budget, the best first: those with a score before those without."""
        within = [trial for trial in self.trials.values() if self.allows(trial.candidate)]
        return sorted(
            within, key=lambda trial: (-math.inf if trial.score is None else trial.score, -trial.loss)
        )[::-1]

    def chosen(self) -> Trial:
        """Return the best trial.

        Raises:
            RecipeError: None of them has a score.
        """
        best = self.best()[0]
        if self.score != LOSS and best.score is None:
            raise RecipeError(
                f"The score gave no number for any of the {len(self.best())} models: {best.problem}. Correct "
                "the function."
            )
        return best

    def forget(self) -> None:
        """Drop what was kept for the trials that remove layers."""
        forget_repairs(self.base.model, self._windows)

    def _repair_gaps_once(self, recipe: Recipe, report: Reporter) -> None:
        """Repair the gaps of all candidates, before the first trial that removes layers."""
        step = recipe.steps[0]
        if self._gaps_are_repaired or not isinstance(step, Layers):
            return
        model, words = self.base.model, self.base.tokenizer
        context = StepContext(
            model, words, self._shape, self.base, windows=self._windows, seed=self.seed, progress=report
        )
        repair_all_gaps(step, context, self.layer_counts)
        self._gaps_are_repaired = True

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

        loss = self._saved.get(recipe.digest, LOSS)
        wants_score = self.score != LOSS and self.allows(candidate)
        name = name_of_score(self.score)
        score = self._saved.get(recipe.digest, name) if wants_score else None
        problem = ""
        if loss is None or (wants_score and score is None):
            self._repair_gaps_once(recipe, report)
            read = recipe.model_copy(update={"calibration": self._text})
            pruned = prune(self.base, recipe=read, share_memory=True, progress=report)
            if loss is None:
                loss = mean_loss(pruned.model, self._heldout, report)
                self._saved.put(recipe.digest, LOSS, loss)
            if wants_score and score is None:
                score, problem = measure_score(self.score, pruned, report)
                if score is not None:
                    self._saved.put(recipe.digest, name, score)
        trial = Trial(candidate, recipe, loss, score, problem)
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
