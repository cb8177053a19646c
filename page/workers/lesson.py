"""The task of a lesson of the course: prune and measure its models, and collect the figures for its text."""

from dataclasses import dataclass, replace

from page.workers.messages import (
    ImportanceMap,
    LayerInfluences,
    LessonModel,
    LessonResult,
    Partial,
    Progress,
)
from page.workers.tasks import (
    INTERACTIVE,
    LONG,
    ImportanceTask,
    InfluenceTask,
    Kind,
    SearchTask,
    Task,
    TaskContext,
)
from pruning import Calibration, LoadedModel, ModelError, Pruned, Recipe, Report, Sampling, catalog
from pruning.architectures.families import NEURON
from pruning.architectures.shape import Shape
from pruning.evaluation.perplexity import evaluate
from pruning.lessons import (
    BY_KEY,
    Lesson,
    LessonRun,
    metrics_of_runs,
    metrics_of_shape,
    metrics_of_types,
)
from pruning.sharing.gguf import GGUF_TYPES
from pruning.sharing.gguf.quantize import round_weights
from pruning.text.choice import DEFAULT_CALIBRATION
from pruning.text.generation import generate

PROMPT = "The old man walked to the"
"""A text to continue, so that models with a chat format and models without one can be compared."""
SAMPLING = Sampling(24)
SEARCH_TOKENS = 1024
EVALUATION_TOKENS = 1000
"""Few enough that a lesson does not take long."""
IMPORTANCE_CRITERIA = ("activation", "peak_to_peak")


@dataclass(frozen=True)
class LessonTask(Task):
    """Run a lesson."""

    key: str

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """A search takes minutes."""
        return LONG if BY_KEY[self.key].budget else INTERACTIVE

    def perform(self, context: TaskContext) -> LessonResult:
        """Emit the models as they are measured, and return them with their metrics."""
        lesson = BY_KEY[self.key]
        default = context.workbench.load(catalog.DEFAULT_MODEL, context.visitor, progress=context.emit)
        shape, source = Shape.of(default.model.config), default.source
        metrics: dict[str, float | str] = {**metrics_of_shape(shape)}
        runs: list[tuple[LessonRun | None, Recipe]] = [(run, run.recipe()) for run in lesson.runs]
        if lesson.budget:
            chosen, found = _search(lesson.budget, context)
            runs, metrics = [(None, chosen)], metrics | found
        measured: list[tuple[str, Pruned]] = []
        models: list[LessonModel] = []
        recipe = None
        for run, planned in runs:
            name, title = (run.name, run.title) if run else ("chosen", str(metrics["chosen"]))
            recipe, pruned = _prune(run, planned, context)
            recipe = recipe.model_copy(update={"kept_layers": pruned.recipe.kept_layers})
            base = context.workbench.load(recipe.base, context.visitor)
            measured.append((name, pruned))
            metrics |= metrics_of_runs(measured)
            metrics[f"{name}_model"] = base.source.name
            metrics[f"{name}_width_before"] = Shape.of(base.model.config).count(NEURON)
            if not models:
                models.append(_model("Original model", pruned.report, base))
            models.append(_model(title, pruned.report, pruned))
            context.emit(Partial(tuple(models), replaces=True))
        reports: dict[str, Report] = {}
        for type in lesson.types:
            rounded = _rounded(type, default, models[0].report, context)
            reports[type] = rounded.report
            models.append(rounded)
            context.emit(Partial(tuple(models), replaces=True))
        metrics |= metrics_of_types(reports)
        return LessonResult(tuple(models), metrics, shape, source, recipe, _chart(lesson, context))


def _model(title: str, report: Report, model: LoadedModel | Pruned) -> LessonModel:
    text = generate(model, PROMPT, SAMPLING, chat=False)
    return LessonModel(title, report, isinstance(model, Pruned), text)


def _rounded(type: str, base: LoadedModel, report: Report, context: TaskContext) -> LessonModel:
    """Measure a base with its weights as a GGUF file of a type holds them."""
    bits = GGUF_TYPES[type].bits
    context.emit(Progress(f"Rounding the weights to {type}"))
    rounded = replace(base, model=round_weights(base.model, type))
    quality = evaluate(rounded, tokens=EVALUATION_TOKENS, progress=context.emit)
    size = GGUF_TYPES[type].weight_bytes(report.before.parameters)
    after = replace(report.before, bytes=size, quality=quality)
    text = generate(rounded, PROMPT, SAMPLING, chat=False)
    title = f"Nothing removed, {bits:g} bits for each weight ({type})"
    return LessonModel(title, Report(report.before, after), True, text)


def _search(budget: str, context: TaskContext) -> tuple[Recipe, dict[str, float | str]]:
    """Return the recipe that a search chooses, and the metrics of the search."""
    task = SearchTask(catalog.DEFAULT_MODEL, budget, Calibration(tokens=SEARCH_TOKENS), 0)
    found = task.perform(context)
    return found.chosen.recipe, {
        "previewed": found.shapes_considered,
        "measured": len(found.trials),
        "chosen": found.chosen.candidate.title,
    }


def _prune(run: LessonRun | None, recipe: Recipe, context: TaskContext) -> tuple[Recipe, Pruned]:
    """Prune and measure the base that a run prefers, or else the default model, as its recipe says."""
    bench, visitor = context.workbench, context.visitor
    if run is not None and run.base is not None:
        try:
            preferred = run.recipe(run.base)
            return preferred, bench.evaluate(preferred, visitor, EVALUATION_TOKENS, context.emit)
        except ModelError:
            context.emit(Progress(f"{run.base} is not available; using the default model"))
    return recipe, bench.evaluate(recipe, visitor, EVALUATION_TOKENS, context.emit)


def _chart(lesson: Lesson, context: TaskContext) -> ImportanceMap | LayerInfluences | None:
    """Return what a lesson draws beside its results."""
    if lesson.chart == "importance":
        task = ImportanceTask(catalog.DEFAULT_MODEL, IMPORTANCE_CRITERIA, 0.2, DEFAULT_CALIBRATION, 0)
        return task.perform(context)
    if lesson.chart == "influence":
        return InfluenceTask(catalog.DEFAULT_MODEL, DEFAULT_CALIBRATION, 0).perform(context)
    return None
