"""The interface of a step, and what a step is given to work on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pruning.architectures.families import LAYER
from pruning.architectures.matrices import as_channels_first
from pruning.architectures.placement import parameter
from pruning.architectures.reasons import reason_against
from pruning.architectures.shape import Shape
from pruning.calibration.residual_streams import ResidualStreams
from pruning.calibration.statistics import InputGram, SavedStatistics, Statistics
from pruning.cost.cost import Cost
from pruning.cost.plan import Plan
from pruning.errors import RecipeError
from pruning.lazy import torch
from pruning.loading.load import LoadedModel
from pruning.progress import Progress, Reporter, silent
from pruning.repair.projection import repair_projections
from pruning.schema import Frozen
from pruning.steps.settings import Setting
from pruning.surgery import KeptIndices, cut
from pruning.text.tokens import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class StepContext:
    """The model that a step works on, as the steps before it left it.

    Attributes:
        model: The model; a step never changes it.
        tokenizer: Its tokenizer.
        shape: Its shape.
        base: The unpruned model that the recipe began with.
        statistics: What the step's `hooked_modules` were given on calibration text; None if it has none.
        windows: The calibration text as tokens, for a step that `reads_text`.
        layers: The base's number of each layer of `model`; None if that is not known.
        seed: The seed of the recipe.
        progress: Called as the work goes on.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shape: Shape
    base: LoadedModel
    statistics: Statistics | SavedStatistics | None = None
    windows: Windows | None = None
    layers: tuple[int, ...] | None = None
    seed: int = 0
    progress: Reporter = silent

    @property
    def loaded(self) -> LoadedModel:
        """The model and its tokenizer together, with the provenance of the base."""
        return LoadedModel(self.model, self.tokenizer, self.base.source, self.base.storage_dtype)

    @property
    def required_statistics(self) -> Statistics | SavedStatistics:
        """The statistics, for a step that asked for them."""
        assert self.statistics is not None, "a step has statistics if it names hooked modules"
        return self.statistics

    @cached_property
    def streams(self) -> ResidualStreams:
        """The residual streams of the model on the calibration text, kept for as long as the step works."""
        return ResidualStreams(
            self.model, self.shape.anatomy, self.required_windows, self.progress, keep=True
        )

    @property
    def required_windows(self) -> Windows:
        """The calibration text, for a step that asked for it."""
        assert self.windows is not None, "a step has the text if it says that it needs it"
        return self.windows


@dataclass(frozen=True)
class StepResult:
    """What a step made.

    Attributes:
        model: The new model, which shares with the former one each tensor that did not change.
        tokenizer: Its tokenizer.
        notes: For the report: frozen dataclasses, such as one for each projection.
        layers: Which of the former model's layers remain, ascending from 0 on; None if all do.
        kept: Which of the former model's other units remain.
        changed: The former model's names of the tensors whose values were changed, not only cut.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    notes: tuple[object, ...] = ()
    layers: tuple[int, ...] | None = None
    kept: KeptIndices = field(default_factory=dict)
    changed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ProjectionNote:
    """The repair of one layer's output projection.

    Attributes:
        layer: The layer's number, from 0 on.
        damping: λ of the ridge regression; None if the weights were best left as they were.
        lost_before: The share of the output's energy on held-out text that is lost without repair.
        lost_after: The same with it.
    """

    layer: int
    damping: float | None
    lost_before: float
    lost_after: float


@dataclass(frozen=True)
class Refit:
    """What repair made: new tensors by parameter name, and notes for the report."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[object, ...] = ()


class Step(Frozen, ABC):
    """One entry of a recipe. The resulting shape follows from the config; the rest needs the model.

    Attributes:
        title: The name of the step on the page and in the shell.
        hint: What the step works on, in one line.
        settings: What the user can set.
        must_be_last: The reason why no step can follow this one; empty if one can.
        warning: What must be said of a model that the step made.
        changes_vocabulary: Whether the model's tokens are others afterwards, so that bits per byte compare
            with the base's and perplexities do not.
    """

    title: ClassVar[str]
    hint: ClassVar[str]
    settings: ClassVar[tuple[Setting, ...]] = ()
    must_be_last: ClassVar[str] = ""
    warning: ClassVar[str] = ""
    changes_vocabulary: ClassVar[bool] = False
    _implied: ClassVar[frozenset[str]] = frozenset({"step"})

    step: str

    @classmethod
    def __pydantic_init_subclass__(cls, **_arguments: object) -> None:
        cls.settings = tuple(
            replace(setting, info=setting.info or cls.model_fields[setting.field].description or "")
            for setting in cls.settings
        )

    @classmethod
    def for_model(cls, model: str, **values: Any) -> Self:
        """Make the step as the shell's user asked for it.

        Args:
            model: The base that it is for, by name, Hub id or folder.
            **values: The fields that were given; what is left open follows from the model's files.
        """
        del model
        return cls(**values)

    def hooked_modules(self, shape: Shape) -> tuple[str, ...]:
        """Return the names of the projections whose inputs the step needs statistics of; empty for none."""
        del shape
        return ()

    def reads_text(self, shape: Shape) -> bool:
        """Return whether the step runs the model on the calibration text itself."""
        del shape
        return False

    @abstractmethod
    def reshape(self, shape: Shape) -> Shape:
        """Return the shape after the step.

        Raises:
            RecipeError: If the step is impossible on a model of this shape.
        """

    @abstractmethod
    def cost(self, plan: Plan) -> Cost:
        """Estimate what `apply` takes, from shapes alone; a page refuses what is too much before it begins.

        What the model is made to read first, for `hooked_modules`, is counted by `pruning.estimate`. The result
        holds the tensors that the new model does not share with the one before.
        """

    @abstractmethod
    def apply(self, context: StepContext) -> StepResult:
        """Carry the step out; the context's model is not changed.

        Raises:
            RecipeError: If that turns out to be impossible.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return what the step removes or does, as a few words."""

    @property
    def gentler(self) -> str | None:
        """What to set instead so that the same cut loses less, as a sentence; None if nothing is known."""
        return None

    def without_paths(self) -> Self:
        """Return the step as others may see it: with names instead of the paths of folders."""
        return self


class Cut(Step):
    """A step that removes units: it ranks them, keeps the best, and may refit the projection after them."""

    @abstractmethod
    def rank(self, context: StepContext) -> KeptIndices:
        """Return the units to keep in each layer."""

    def refit(self, context: StepContext, kept: KeptIndices) -> Refit:
        """Return new values for what remains; empty for none."""
        del context, kept
        return Refit()

    def apply(self, context: StepContext) -> StepResult:
        """Rank, refit and cut."""
        kept = self.rank(context)
        refit = self.refit(context, kept)
        context.progress(Progress("Cutting"))
        # What is seen is what is saved: repaired weights are rounded to the stored precision.
        tensors = {name: value.to(context.base.storage_dtype) for name, value in refit.tensors.items()}
        model = cut(context.model, self.reshape(context.shape), kept, tensors, context.progress)
        layers = tuple(kept[LAYER][0].tolist()) if LAYER in kept else None
        return StepResult(model, context.tokenizer, refit.notes, layers, kept, frozenset(tensors))


def refit_output_projections(context: StepContext, kind: str, kept: Sequence[torch.Tensor]) -> Refit:
    """Refit, in every layer, the projection through which neurons or heads write.

    Args:
        context: The model and its statistics at these projections.
        kind: The units, `NEURON` or `QUERY`.
        kept: For each layer, the indices of the inputs of the projection that remain.
    """
    anatomy = context.shape.anatomy
    modules = [anatomy.output_projection(layer, kind) for layer in range(anatomy.layers)]
    specs = [anatomy.tensor(f"{module}.weight") for module in modules]

    def problems() -> Iterator[tuple[InputGram, torch.Tensor, torch.Tensor]]:
        for layer, (module, spec, indices) in enumerate(zip(modules, specs, kept, strict=True)):
            context.progress(Progress("Repairing, layers", layer, anatomy.layers))
            gram = context.required_statistics.gram(module, context.progress)
            yield gram, as_channels_first(parameter(context.model, spec.name), spec), indices

    tensors, notes = {}, []
    for layer, (spec, repair) in enumerate(zip(specs, repair_projections(problems()), strict=True)):
        if repair.weight is not None:
            tensors[spec.name] = as_channels_first(repair.weight, spec)
        notes.append(ProjectionNote(layer, repair.damping, repair.error_before, repair.error_after))
    return Refit(tensors, tuple(notes))


def check_prunable(shape: Shape, unit: str) -> None:
    """Refuse a cut of units that models of this type cannot lose.

    Args:
        shape: The model.
        unit: One of `pruning.architectures.prove.UNITS`.

    Raises:
        RecipeError: They cannot be removed. The message says why.
    """
    if reason := reason_against(shape.anatomy, unit):
        title = shape.anatomy.family.title
        raise RecipeError(f"The {unit} of {title} cannot be cut: {reason}. Cut something else.")


def most(shape: Shape, unit: str, number: int) -> int:
    """Return the end of a slider: a number, or 0 if these units cannot be removed."""
    return 0 if reason_against(shape.anatomy, unit) else number


def top(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the indices of the highest scores, ascending and on the CPU; the first of equals wins.

    Args:
        scores: One for each unit, `[units]`.
        count: How many indices to return.
    """
    order = torch.sort(scores.float(), descending=True, stable=True).indices
    return order[:count].sort().values.cpu()
