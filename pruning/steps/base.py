"""The interface of a step, and what a step is given to work on."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from pruning.progress import Progress, Reporter, silent
from pruning.repair import repair_projection
from pruning.schema import Frozen
from pruning.shape import Shape
from pruning.statistics import SavedStatistics, Statistics
from pruning.surgery import Kept, oriented
from pruning.windows import Windows


@dataclass(frozen=True)
class Subject:
    """The model that a step works on. `statistics` and the windows of the calibration text are there
    for a step that asked for them."""

    model: PreTrainedModel
    shape: Shape
    statistics: Statistics | SavedStatistics | None
    seed: int
    windows: Windows | None = None
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

    @property
    def reads_text(self) -> bool:
        """Whether ranking runs the model on the calibration text itself."""
        return False

    @abstractmethod
    def reshape(self, shape: Shape) -> Shape:
        """The shape after the cut. Raises `RecipeError` where it is impossible."""

    @abstractmethod
    def rank(self, subject: Subject) -> Kept:
        """Which units stay in each layer."""

    def refit(self, subject: Subject, kept: Kept) -> Refit:
        """New values for what writes back into the residual stream; empty for none."""
        return Refit()

    @abstractmethod
    def describe(self) -> str:
        """The step in one line, for people."""

    def to_python(self) -> str:
        """The expression that makes this step."""
        values = self.model_dump(exclude={"step"}, exclude_none=True)
        inner = ", ".join(f"{key}={value!r}" for key, value in values.items())
        return f"pruning.{type(self).__name__}({inner})"


def refit_writes(subject: Subject, kind: str, kept: Sequence[torch.Tensor]) -> Refit:
    """Refit, in every layer, the projection that neurons or heads write through.

    `kept`: for each layer, which inputs of the projection stay.
    """
    anatomy = subject.shape.anatomy
    tensors, notes = {}, []
    for layer, indices in enumerate(kept):
        subject.progress(Progress("Repairing, layers", layer, anatomy.layers))
        module = anatomy.write_module(layer, kind)
        write = anatomy.tensor(f"{module}.weight")
        matrix = oriented(subject.model.get_parameter(write.name).detach(), write)
        repair = repair_projection(subject.statistics.gram(module, subject.progress), matrix, indices)
        if repair.weight is not None:
            tensors[write.name] = oriented(repair.weight, write)
        notes.append(
            {
                "layer": layer,
                "damping": repair.damping,
                "lost_before": repair.error_before,
                "lost_after": repair.error_after,
            }
        )
    return Refit(tensors, tuple(notes))


def top(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the highest scores, ascending; the first of equals wins."""
    order = torch.sort(scores.float(), descending=True, stable=True).indices
    return order[:count].sort().values
