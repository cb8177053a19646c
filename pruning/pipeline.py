"""A recipe, carried out: load → calibrate → rank → cut → repair → evaluate."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning import catalog
from pruning.architectures.shape import Shape
from pruning.calibration.cache import CacheKey, cached
from pruning.calibration.calibrate import statistics_of, windows_of
from pruning.errors import RecipeError
from pruning.evaluation import perplexity as evaluation
from pruning.evaluation import speed
from pruning.evaluation.perplexity import Quality
from pruning.files import cache_folder, replacing
from pruning.loading import load as loading
from pruning.loading.load import LoadedModel
from pruning.loading.source import Source, Token
from pruning.progress import Progress, Reporter, silent
from pruning.recipe import Recipe
from pruning.steps.base import Step, StepContext
from pruning.text.generation import Sampling, complete, report_each_token
from pruning.text.passages import GENRES

SAMPLE_PROMPTS = ("Paris is the capital of", "The best way to learn is", "def add(a, b):")


@dataclass(frozen=True)
class Preview:
    """The shapes before and after a recipe, from the config alone."""

    recipe: Recipe
    before: Shape
    after: Shape

    def to_dict(self) -> dict:
        return {
            "parameters": _compared(self.before.components, self.after.components),
            "config": self.after.config.to_dict(),
            "recipe": self.recipe.to_dict(),
        }


@dataclass(frozen=True)
class Report:
    """What was done and what was measured. `bytes`: size on disk; `seconds`: by stage."""

    parameters_before: int
    parameters_after: int
    components_before: dict[str, int]
    components_after: dict[str, int]
    bytes_before: int
    bytes_after: int
    notes: tuple[tuple[dict, ...], ...] = ()
    quality_before: Quality | None = None
    quality_after: Quality | None = None
    speed_before: float | None = None
    speed_after: float | None = None
    samples: tuple[tuple[str, str, str], ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def judged(self) -> bool:
        """Whether the quality after is known for every genre."""
        return self.quality_after is not None and len(self.quality_after.genres) == len(GENRES)

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Pruned:
    """A pruned model: an ordinary transformers model, and how it came about."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe
    report: Report
    source: Source
    shape: Shape
    storage_dtype: object

    def to_dict(self) -> dict:
        """Plain values: parameters, config, recipe and report."""
        report = self.report
        return {
            "parameters": _compared(report.components_before, report.components_after),
            "config": self.model.config.to_dict(),
            "recipe": self.recipe.to_dict(),
            "report": report.to_dict(),
        }

    def save(self, folder: str | Path, progress: Reporter = silent) -> Path:
        """Write everything that plain transformers loads, a model card and the recipe."""
        from pruning.saving.save import save

        return save(self, Path(folder), progress)


def _compared(before: dict[str, int], after: dict[str, int]) -> dict:
    return {
        "before": sum(before.values()),
        "after": sum(after.values()),
        "components": {name: {"before": before[name], "after": after[name]} for name in before},
    }


def preview(recipe: Recipe, *, token: Token = None, own_machine: bool = True) -> Preview:
    """The shape that a recipe leads to. Reads the base's config and allocates no weights."""
    config, _ = loading.read_config(
        recipe.base, revision=recipe.revision, token=token, own_machine=own_machine
    )
    before = Shape.of(config)
    return Preview(recipe, before, reshape(recipe, before))


def reshape(recipe: Recipe, shape: Shape) -> Shape:
    """Every step of a recipe, on the shape alone. Raises `RecipeError` with the place of the step."""
    before = None
    for number, step in enumerate(recipe.steps):
        place = ("steps", number)
        if before is not None and before.must_be_last:
            raise RecipeError(
                f"Nothing can follow the step {before.step}: {before.must_be_last}. Put it last.", place
            )
        try:
            shape = step.reshape(shape)
        except RecipeError as error:
            raise RecipeError(str(error), place) from None
        before = step
    return shape


def run(
    recipe: Recipe,
    *,
    base: LoadedModel | None = None,
    token: Token = None,
    evaluate: bool = True,
    progress: Reporter = silent,
) -> Pruned:
    """Carry out a recipe. The base model is not changed, and tensors that are not cut are shared.

    `base` saves loading it again; `evaluate` measures perplexity and speed of both models.
    """
    if base is None:
        preview(recipe, token=token)
        base = loading.load(recipe.base, revision=recipe.revision, token=token, progress=progress)
    pruned = prune(recipe, base, progress)
    return measure(pruned, base, progress) if evaluate else pruned


def prune(recipe: Recipe, base: LoadedModel, progress: Reporter = silent) -> Pruned:
    """Carry out the steps of a recipe on a loaded base, without measuring anything."""
    shape = Shape.of(base.model.config)
    reshape(recipe, shape)
    before = shape.components
    size = evaluation.size_on_disk(sum(before.values()), base.storage_dtype)
    report = Report(sum(before.values()), sum(before.values()), before, before, size, size)
    pinned = recipe.pinned(base.source.revision)
    pruned = Pruned(base.model, base.tokenizer, pinned, report, base.source, shape, base.storage_dtype)
    for step in recipe.steps:
        pruned = _carried_out(step, pruned, base, progress)
    return pruned


def apply_step(pruned: Pruned, base: LoadedModel, step: Step, progress: Reporter = silent) -> Pruned:
    """One more step on a pruned model; its recipe says so."""
    recipe = pruned.recipe.model_copy(update={"steps": (*pruned.recipe.steps, step)})
    reshape(recipe, Shape.of(base.model.config))
    report = replace(pruned.report, quality_after=None, speed_before=None, speed_after=None, samples=())
    return _carried_out(step, replace(pruned, recipe=recipe, report=report), base, progress)


def _carried_out(step: Step, pruned: Pruned, base: LoadedModel, progress: Reporter) -> Pruned:
    """The model after one more step, and its report with what the step notes."""
    recipe, shape, start = pruned.recipe, pruned.shape, time.perf_counter()
    context = StepContext(pruned.model, pruned.tokenizer, shape, base, seed=recipe.seed, progress=progress)
    if sites := step.hooked_modules(shape):
        keep = pruned.model is base.model
        statistics = statistics_of(
            context.loaded, recipe.calibration, sites, recipe.seed, save_to_disk=keep, progress=progress
        )
        context = replace(context, statistics=statistics)
    if step.needs_calibration_text:
        windows = windows_of(context.loaded, recipe.calibration, recipe.seed, progress)
        context = replace(context, windows=windows)
    calibrated = time.perf_counter()
    outcome = step.apply(context)
    shape, report = Shape.of(outcome.model.config), pruned.report
    seconds = report.seconds | {
        "calibrate": report.seconds.get("calibrate", 0) + calibrated - start,
        "cut": report.seconds.get("cut", 0) + time.perf_counter() - calibrated,
    }
    after = shape.components
    report = replace(
        report,
        parameters_after=sum(after.values()),
        components_after=after,
        bytes_after=evaluation.size_on_disk(sum(after.values()), base.storage_dtype),
        notes=(*report.notes, outcome.notes),
        seconds=seconds,
    )
    return replace(pruned, model=outcome.model, tokenizer=outcome.tokenizer, shape=shape, report=report)


def measure(pruned: Pruned, base: LoadedModel, progress: Reporter = silent) -> Pruned:
    """The same model with its report filled in: quality, speed and samples, before and after."""
    *_, measured = measuring(pruned, base, progress)
    return measured


def measuring(pruned: Pruned, base: LoadedModel, progress: Reporter = silent) -> Iterator[Pruned]:
    """The model again and again, its report fuller each time; the quality after, genre by genre."""
    start = time.perf_counter()
    model, tokenizer = pruned.model, pruned.tokenizer

    def filled(**values) -> Pruned:
        return replace(pruned, report=replace(pruned.report, **values))

    pruned = filled(quality_before=base_quality(base, progress))
    yield pruned
    genres = {}
    for genre, result in evaluation.by_genre(model, tokenizer, progress):
        genres[genre] = result
        pruned = filled(quality_after=evaluation.summarize(genres))
        yield pruned
    speed_before, speed_after = speed.tokens_per_second((base.model, model), tokenizer, progress=progress)
    sampling, heard = Sampling(max_new_tokens=24), report_each_token(progress, Progress("Writing samples"))
    pruned = filled(
        speed_before=speed_before,
        speed_after=speed_after,
        samples=tuple(
            (
                prompt,
                complete(base.model, base.tokenizer, prompt, sampling, heard),
                complete(model, tokenizer, prompt, sampling, heard),
            )
            for prompt in SAMPLE_PROMPTS
        ),
    )
    seconds = pruned.report.seconds | {"evaluate": time.perf_counter() - start}
    yield filled(seconds=seconds)


def judge(pruned: Pruned, base: LoadedModel, tokens: int, progress: Reporter = silent) -> Pruned:
    """The same model with its quality, before and after, measured in short: on so many tokens in all."""
    before = base_quality(base, progress, tokens)
    after = evaluation.quality(pruned.model, pruned.tokenizer, progress, tokens)
    return replace(pruned, report=replace(pruned.report, quality_before=before, quality_after=after))


@dataclass(frozen=True, kw_only=True)
class QualityKey(CacheKey[Quality]):
    """The number of tokens that the quality was measured on; None for the whole text."""

    tokens: int | None


def base_quality(base: LoadedModel, progress: Reporter = silent, tokens: int | None = None) -> Quality:
    """The quality of a base model, measured once; that of the default model is kept on disk.

    `tokens`: how many in all, where that is not to be all there are.
    """

    def make() -> Quality:
        if tokens is None and base.source.name == catalog.DEFAULT_MODEL:
            return _kept_quality(base, progress)
        return evaluation.quality(base.model, base.tokenizer, progress, tokens)

    return cached(base.model, QualityKey(text_sha256=None, tokens=tokens), make)


def _kept_quality(base: LoadedModel, progress: Reporter) -> Quality:
    file = cache_folder() / "quality" / f"{evaluation.digest(base.source.revision)}.json"
    try:
        return Quality.from_dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, KeyError):
        quality = evaluation.quality(base.model, base.tokenizer, progress)
    with suppress(OSError), replacing(file) as temporary:
        temporary.write_text(json.dumps(quality.to_dict()))
    return quality
