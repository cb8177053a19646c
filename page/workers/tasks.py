"""What a job can do: each task is a small value that can be pickled, and performs itself on a workbench."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

from page.workers.messages import (
    Evaluation,
    FoundModel,
    ImportanceMap,
    LayerInfluences,
    NextTokens,
    Partial,
    Progress,
    Prompt,
    PrunedSummary,
    TaskEvent,
    Texts,
    TrainingUpdate,
)
from page.workers.workbench import Visitor, Workbench
from pruning import Calibration, Distillation, Recipe, Report, Sampling
from pruning.architectures.shape import Shape
from pruning.distillation.progress import TrainingProgress
from pruning.errors import Cancelled
from pruning.evaluation.inspection import TokenLoss, losses_by_token, next_tokens
from pruning.loading.load import find
from pruning.pipeline import Pruned
from pruning.progress import TrainingPulse
from pruning.shape_search.search import SearchResult
from pruning.text.chat import PlainText
from pruning.text.chat_learning import learn_chat_format
from pruning.text.generation import CausalLM, generate, prepare_prompt, stream_together

SAMPLE_TOKENS = 24
"""The most tokens of a sample while a model is trained."""


Kind = Literal["interactive", "long", "look_up"]
INTERACTIVE: Kind = "interactive"
LONG: Kind = "long"
LOOK_UP: Kind = "look_up"


class Control(Protocol):
    """What a running task may ask about its job."""

    @property
    def stopped(self) -> bool:
        """Whether the job was stopped."""

    @property
    def finish_requested(self) -> bool:
        """Whether the task should end soon, with what it has."""


@dataclass(frozen=True)
class TaskContext:
    """What a task works with.

    Attributes:
        workbench: The models.
        visitor: Who asks.
        emit: Takes events; it raises `Cancelled` once the job is stopped.
        control: The state of the job.
    """

    workbench: Workbench
    visitor: Visitor
    emit: Callable[[TaskEvent], None]
    control: Control

    def check(self) -> None:
        """Raise `Cancelled` if the job was stopped."""
        if self.control.stopped:
            raise Cancelled("Stopped.")

    def summarize(self, pruned: Pruned) -> PrunedSummary:
        """Return a pruned model without its weights."""
        base = self.workbench.load(pruned.recipe.base, self.visitor, pruned.recipe.revision, self.emit)
        return PrunedSummary.of(pruned, Shape.of(base.model.config))


class Task(ABC):
    """One piece of work of a job.

    Attributes:
        kind: Which workers perform it.
        requeues: Whether the job lets all that wait go first before this task starts.
    """

    kind: ClassVar[Kind] = INTERACTIVE
    requeues: ClassVar[bool] = False

    @abstractmethod
    def perform(self, context: TaskContext) -> object:
        """Do the work, emit events, and return the result, which is yielded as `Done`."""


@dataclass(frozen=True)
class FindTask(Task):
    """Find a model, and read its config but no weights."""

    kind = LOOK_UP
    name: str

    def perform(self, context: TaskContext) -> FoundModel:
        """Return its shape, and where it comes from."""
        source = find(self.name, access=context.visitor.access, progress=context.emit)
        return FoundModel(Shape.of(source.config), source)


@dataclass(frozen=True)
class LoadTask(Task):
    """Load a base, so that later tasks need not wait for it."""

    name: str

    def perform(self, context: TaskContext) -> None:
        """Load it, and learn its chat format."""
        base = context.workbench.load(self.name, context.visitor, progress=context.emit)
        learn_chat_format(base.tokenizer)


@dataclass(frozen=True)
class WarmUpTask(Task):
    """Do ahead what the first visitors of a recipe and a prompt would wait for."""

    recipe: Recipe
    prompt: Prompt
    sampling: Sampling

    def perform(self, context: TaskContext) -> None:
        """Load the base, calibrate, measure it, prune it, and keep the base's answer for everyone."""
        context.workbench.warm_up(self.recipe, context.visitor, context.emit)
        everyone = replace(context, visitor=replace(context.visitor, owner=""))
        CompareTask(self.recipe, self.prompt, self.sampling).perform(everyone)


@dataclass(frozen=True)
class PruneTask(Task):
    """Prune a model. A `prompt` that both models are given later is checked before the result is shown."""

    recipe: Recipe
    prompt: Prompt | None = None

    def perform(self, context: TaskContext) -> PrunedSummary:
        """Return the pruned model's summary."""
        base, pruned = context.workbench.load_pair(self.recipe, context.visitor, context.emit)
        summary = context.summarize(pruned)
        if self.prompt is not None:
            prompt, reason = as_read(self.prompt, (base, pruned))
            summary = replace(summary, prompt=prompt, plain_reason=reason)
        return summary


def as_read(prompt: Prompt, models: Sequence[CausalLM]) -> tuple[Prompt, str]:
    """Return a prompt as all of some models read it, and why as a text to continue, if it might be a question.

    Raises:
        RecipeError: One of them cannot read it, or not as is asked.
    """
    read = [
        prepare_prompt(model.tokenizer, prompt.text, chat=prompt.chat, system=prompt.system)
        for model in models
    ]
    if all(each.is_chat for each in read):
        return replace(prompt, chat=True), ""
    formats = [learn_chat_format(model.tokenizer) for model in models] if prompt.chat is None else []
    reasons = [learned.reason for learned in formats if isinstance(learned, PlainText)]
    return replace(prompt, chat=False), next(iter(reasons), "")


@dataclass(frozen=True)
class CompareTask(Task):
    """Let the original and the pruned model answer a question or continue a text; if distilled, before that too."""

    recipe: Recipe
    prompt: Prompt
    sampling: Sampling

    def perform(self, context: TaskContext) -> Texts:
        """Emit the texts as they grow, and return them."""
        base, pruned = context.workbench.load_pair(self.recipe, context.visitor, context.emit)
        models: list[CausalLM] = [pruned]
        if (undistilled := _undistilled(self.recipe)) is not None:
            models.append(context.workbench.prune(undistilled, context.visitor, context.emit))
        prompt, _ = as_read(self.prompt, (base, pruned))
        asked = (base.source.name, base.source.revision, prompt, self.sampling)
        known, owner = context.workbench.base_texts, context.visitor.owner
        before = known.find(owner, asked)
        texts = Texts(before or "", "")

        def stopped() -> bool:
            return context.control.stopped

        growing = stream_together(
            models if before is not None else [base, *models],
            prompt.text,
            self.sampling,
            chat=prompt.chat,
            system=prompt.system,
            stopped=stopped,
        )
        for written in growing:
            texts = Texts(*written) if before is None else Texts(before, *written)
            context.emit(Partial(texts, replaces=True))
        if base.source.revision is not None and not stopped():
            known.keep(owner, asked, texts.before)
        return texts


def _undistilled(recipe: Recipe) -> Recipe | None:
    """Return the recipe without a distillation at its end; None if there is none, or nothing else."""
    *others, last = recipe.steps
    if not others or not isinstance(last, Distillation):
        return None
    return recipe.model_copy(update={"steps": tuple(others)})


@dataclass(frozen=True)
class EvaluateTask(Task):
    """Measure a pruned model and its base. This takes longest, so other visitors get their texts first.

    Attributes:
        recipe: The recipe of the model.
        speed: Whether the report is completed by speed and samples, which only model cards and programs need.
    """

    requeues = True
    recipe: Recipe
    speed: bool = False

    def perform(self, context: TaskContext) -> Evaluation:
        """Emit the report as it fills, and return it."""
        pruned = evaluated(self.recipe, context, self.speed)
        return Evaluation(pruned.recipe, pruned.report)


def evaluated(
    recipe: Recipe, context: TaskContext, speed: bool = True, known: Report | None = None
) -> Pruned:
    """Return the model of a recipe with all its measurements, each emitted as soon as it is known."""
    work = context.workbench.iter_evaluate(recipe, context.visitor, context.emit, speed=speed, known=known)
    for pruned in work:
        context.emit(Partial(Evaluation(pruned.recipe, pruned.report), replaces=True))
    return pruned


@dataclass(frozen=True)
class SearchTask(Task):
    """Search a base for the best combination of cuts within a budget."""

    kind = LONG
    model: str
    budget: str
    calibration: Calibration
    seed: int

    def perform(self, context: TaskContext) -> SearchResult:
        """Emit each trial, and return the result."""
        result: SearchResult | None = None
        found = context.workbench.iter_search(
            self.model, self.budget, self.calibration, self.seed, context.visitor, context.emit
        )
        for item in found:
            if isinstance(item, SearchResult):
                result = item
            else:
                context.emit(Partial(item))
        assert result is not None, "a search ends with its result"
        return result


@dataclass(frozen=True)
class DistillTask(Task):
    """Distill a pruned model from its base; `prompt` is given to it at each evaluation."""

    kind = LONG
    recipe: Recipe
    step: Distillation
    prompt: Prompt
    sampling: Sampling

    def perform(self, context: TaskContext) -> PrunedSummary:
        """Emit an update after every step, and return the distilled model's summary."""
        bench, visitor = context.workbench, context.visitor
        base, pruned = bench.load_pair(self.recipe, visitor, context.emit)
        prompt, _ = as_read(self.prompt, (base, pruned))
        sampling = replace(self.sampling, max_new_tokens=min(SAMPLE_TOKENS, self.sampling.max_new_tokens))

        def report(progress: Progress) -> None:
            if isinstance(progress, TrainingPulse):
                context.check()
                return
            if not isinstance(progress, TrainingProgress):
                context.emit(progress)
                return
            if context.control.finish_requested:
                progress.stop()
            sample = None
            if progress.evaluated:
                student = replace(base, model=progress.model)
                sample = generate(student, prompt.text, sampling, chat=prompt.chat, system=prompt.system)
            context.emit(Partial(TrainingUpdate(progress.detached(), sample)))

        return context.summarize(bench.distill(self.recipe, self.step, visitor, report))


@dataclass(frozen=True)
class NextTokensTask(Task):
    """Find the likeliest next tokens of both models."""

    recipe: Recipe
    prompt: str

    def perform(self, context: TaskContext) -> NextTokens:
        """Return the tokens with their probabilities."""
        base, pruned = context.workbench.load_pair(self.recipe, context.visitor, context.emit)
        return NextTokens(
            next_tokens(base, self.prompt, progress=context.emit),
            next_tokens(pruned, self.prompt, progress=context.emit),
        )


@dataclass(frozen=True)
class TokenLossTask(Task):
    """Measure what each token of a text costs both models."""

    recipe: Recipe
    text: str

    def perform(self, context: TaskContext) -> list[TokenLoss]:
        """Return the losses, token by token."""
        pair = context.workbench.load_pair(self.recipe, context.visitor, context.emit)
        return losses_by_token(pair, self.text, progress=context.emit)


@dataclass(frozen=True)
class ImportanceTask(Task):
    """Score the neurons of a base under two criteria."""

    model: str
    criteria: tuple[str, str]
    fraction: float
    calibration: Calibration
    seed: int

    def perform(self, context: TaskContext) -> ImportanceMap:
        """Return the scores of the first criterion and what the second agrees on."""
        rows, shared = context.workbench.compare_importance(
            self.model,
            self.criteria,
            self.fraction,
            self.calibration,
            self.seed,
            context.visitor,
            context.emit,
        )
        return ImportanceMap(rows, shared, self.fraction, self.criteria)


@dataclass(frozen=True)
class InfluenceTask(Task):
    """Measure the block influence of every layer of a base."""

    model: str
    calibration: Calibration
    seed: int

    def perform(self, context: TaskContext) -> LayerInfluences:
        """Return the influences."""
        return LayerInfluences(
            context.workbench.layer_influences(
                self.model, self.calibration, self.seed, context.visitor, context.emit
            )
        )


@dataclass(frozen=True)
class SweepTask(Task):
    """Measure quality against size for several criteria."""

    kind = LONG
    model: str
    criteria: tuple[str, ...]
    calibration: Calibration
    seed: int

    def perform(self, context: TaskContext) -> None:
        """Emit each point."""
        points = context.workbench.iter_sweep(
            self.model, self.criteria, self.calibration, self.seed, context.visitor, context.emit
        )
        for point in points:
            context.emit(Partial(point))
