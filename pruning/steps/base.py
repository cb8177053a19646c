"""The interface of a step, and what a step is given to work on."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from pruning.progress import Reporter, silent
from pruning.schema import Frozen
from pruning.shape import Shape
from pruning.statistics import SavedStatistics, Statistics
from pruning.surgery import Kept


@dataclass(frozen=True)
class Subject:
    """The model that a step works on. `statistics` is there for a step that asked for it."""

    model: PreTrainedModel
    shape: Shape
    statistics: Statistics | SavedStatistics | None
    seed: int
    progress: Reporter = silent


@dataclass(frozen=True)
class Refit:
    """What repair made: new tensors by parameter name, and a line on each projection for the report."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[dict, ...] = ()


class Step(Frozen, ABC):
    """One cut. The shape that results follows from the config alone; the rest needs the model."""

    @abstractmethod
    def sites(self, shape: Shape) -> tuple[str, ...]:
        """The projections whose inputs ranking or repairing must have seen; empty for none."""

    @abstractmethod
    def reshape(self, shape: Shape) -> Shape:
        """The shape after the cut. Raises `RecipeError` where it is impossible."""

    @abstractmethod
    def rank(self, subject: Subject) -> Kept:
        """Which units stay in each layer."""

    @abstractmethod
    def refit(self, subject: Subject, kept: Kept) -> Refit:
        """New values for what writes back into the residual stream; empty for none."""

    @abstractmethod
    def describe(self) -> str:
        """The step in one line, for people."""

    def to_python(self) -> str:
        """The expression that makes this step."""
        values = self.model_dump(exclude={"step"}, exclude_none=True)
        inner = ", ".join(f"{key}={value!r}" for key, value in values.items())
        return f"pruning.{type(self).__name__}({inner})"
