"""The interface of a step, and what a step is given to work on."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.architectures.families import LAYER
from pruning.architectures.placement import parameter
from pruning.architectures.shape import Shape
from pruning.calibration.statistics import SavedStatistics, Statistics
from pruning.loading.load import LoadedModel
from pruning.progress import Progress, Reporter, silent
from pruning.repair.projection import repair_projection
from pruning.schema import Frozen
from pruning.steps.settings import Setting
from pruning.surgery import KeptIndices, as_channels_first, cut
from pruning.text.choice import TextChoice
from pruning.text.tokens import Windows


@dataclass(frozen=True)
class StepContext:
    """The model that a step works on, as the steps before it left it.

    `statistics` and the `windows` of the calibration text are there for a step that asked for them.
    `base` is the dense model that the recipe began with.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shape: Shape
    base: LoadedModel
    statistics: Statistics | SavedStatistics | None = None
    windows: Windows | None = None
    seed: int = 0
    progress: Reporter = silent
    layers: tuple[int, ...] | None = None

    @property
    def loaded(self) -> LoadedModel:
        """The model and its tokenizer together, with the provenance of the base."""
        return LoadedModel(self.model, self.tokenizer, self.base.source, self.base.storage_dtype)


@dataclass(frozen=True)
class StepResult:
    """What a step made. `notes`: plain values for the report, such as a line on each projection."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    notes: tuple[dict, ...] = ()
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Refit:
    """What repair made: new tensors by parameter name, and a line on each projection for the report."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[dict, ...] = ()


class Step(Frozen, ABC):
    """One entry of a recipe. The shape that results follows from the config alone; the rest needs the
    model.

    `title` and `hint` introduce the step on the page and in the shell; `settings` are what a person can set.
    `must_be_last`: why nothing may be cut after it, if so. `changes_vocabulary`: whether the model reads
    other tokens afterwards, so that only bits per byte compare, and perplexities do not. `warning`: what
    must be said of a model that the step made.
    """

    title: ClassVar[str]
    hint: ClassVar[str]
    settings: ClassVar[tuple[Setting, ...]] = ()
    must_be_last: ClassVar[str] = ""
    warning: ClassVar[str] = ""
    changes_vocabulary: ClassVar[bool] = False

    @classmethod
    def for_model(cls, model: str, **values) -> Self:
        """The step as somebody asked for it, who may have left open what only a model's files can say."""
        return cls(**values)

    def hooked_modules(self, shape: Shape) -> tuple[str, ...]:
        """The projections whose inputs the step must have seen; empty for none."""
        return ()

    @property
    def needs_calibration_text(self) -> bool:
        """Whether the step runs the model on the calibration text itself."""
        return False

    @abstractmethod
    def reshape(self, shape: Shape) -> Shape:
        """The shape after the step. Raises `RecipeError` where it is impossible."""

    @abstractmethod
    def apply(self, context: StepContext) -> StepResult:
        """Carry the step out. The subject's model is not changed."""

    @abstractmethod
    def describe(self) -> str:
        """The step in one line, for people."""

    def without_paths(self) -> Self:
        """The step as others may see it: a folder goes by its name."""
        return self

    def to_python(self) -> str:
        """The expression that makes this step."""
        inner = ", ".join(
            f"{name}={value.to_python() if isinstance(value, TextChoice) else repr(value)}"
            for name, value in self
            if name != "step" and value is not None
        )
        return f"pruning.{type(self).__name__}({inner})"


class Cut(Step):
    """A step that takes units away: it ranks them, keeps the best, and may refit what writes back."""

    @abstractmethod
    def rank(self, context: StepContext) -> KeptIndices:
        """Which units stay in each layer."""

    def refit(self, context: StepContext, kept: KeptIndices) -> Refit:
        """New values for what writes back into the residual stream; empty for none."""
        return Refit()

    def apply(self, context: StepContext) -> StepResult:
        kept = self.rank(context)
        refit = self.refit(context, kept)
        context.progress(Progress("Cutting"))
        # What is seen is what is saved: repaired weights are rounded to the stored precision.
        tensors = {name: value.to(context.base.storage_dtype) for name, value in refit.tensors.items()}
        model = cut(context.model, self.reshape(context.shape), kept, tensors)
        layers = tuple(kept[LAYER][0].tolist()) if LAYER in kept else None
        return StepResult(model, context.tokenizer, refit.notes, layers)


def refit_writes(context: StepContext, kind: str, kept: Sequence[torch.Tensor]) -> Refit:
    """Refit, in every layer, the projection that neurons or heads write through.

    `kept`: for each layer, which inputs of the projection stay.
    """
    anatomy = context.shape.anatomy
    tensors, notes = {}, []
    for layer, indices in enumerate(kept):
        context.progress(Progress("Repairing, layers", layer, anatomy.layers))
        module = anatomy.output_projection(layer, kind)
        write = anatomy.tensor(f"{module}.weight")
        matrix = as_channels_first(parameter(context.model, write.name), write)
        repair = repair_projection(context.statistics.gram(module, context.progress), matrix, indices)
        if repair.weight is not None:
            tensors[write.name] = as_channels_first(repair.weight, write)
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
