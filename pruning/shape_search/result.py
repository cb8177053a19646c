"""What a search measures and returns."""

from dataclasses import dataclass
from typing import Any

from pruning.recipe import Recipe
from pruning.shape_search.candidates import Candidate
from pruning.text.likelihood import perplexity_of


@dataclass(frozen=True)
class Trial:
    """A candidate that was pruned and measured.

    Attributes:
        candidate: Its shape.
        recipe: How it is made.
        loss: Nats per token on held-out calibration text.
        score: What the search chooses by, if that is not the loss: higher is better. None if it was not measured.
        problem: Why the score could not be measured.
    """

    candidate: Candidate
    recipe: Recipe
    loss: float
    score: float | None = None
    problem: str = ""

    @property
    def title(self) -> str:
        """What is removed, and whether the model was reconstructed."""
        steps = {step.step for step in self.recipe.steps}
        return f"{self.candidate.title}{', reconstructed' if 'reconstruction' in steps else ''}"

    @property
    def perplexity(self) -> float:
        """Perplexity on held-out calibration text."""
        return perplexity_of(self.loss)


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        chosen: The trial within the budget that loses least.
        trials: Every trial, from large to small.
        curve: For falling numbers of parameters, the least perplexity that the measured costs predict.
        base_loss: The loss of the base model, in nats per token on the same text.
        shapes_considered: How many shapes were computed from the config.
    """

    chosen: Trial
    trials: tuple[Trial, ...]
    curve: tuple[tuple[int, float], ...]
    base_loss: float
    shapes_considered: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: the chosen recipe, every trial, and the curve.

        `perplexity_dense` and `previewed` are what 0.1 called `perplexity_base` and `shapes_considered`.
        """
        base_perplexity = perplexity_of(self.base_loss)
        return {
            "recipe": self.chosen.recipe.to_dict(),
            "parameters": self.chosen.candidate.parameters,
            "perplexity": self.chosen.perplexity,
            "perplexity_base": base_perplexity,
            "perplexity_dense": base_perplexity,
            "points": [
                {
                    "cut": trial.title,
                    "parameters": trial.candidate.parameters,
                    "perplexity": trial.perplexity,
                    **({} if trial.score is None else {"score": trial.score}),
                    **({"problem": trial.problem} if trial.problem else {}),
                    "recipe": trial.recipe.to_dict(),
                }
                for trial in self.trials
            ],
            "curve": [{"parameters": size, "perplexity": value} for size, value in self.curve],
            "shapes_considered": self.shapes_considered,
            "previewed": self.shapes_considered,
        }
