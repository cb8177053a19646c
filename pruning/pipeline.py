"""A recipe, carried out: find → check → load → prune → evaluate → save, each once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from pruning.architectures.shape import Shape
from pruning.calibration.calibrate import answers_digest, statistics_of, windows_of
from pruning.errors import RecipeError
from pruning.evaluation import perplexity
from pruning.evaluation.answers import evaluate_answers
from pruning.evaluation.base_quality import base_quality
from pruning.evaluation.skills import measure_skills
from pruning.evaluation.speed import speeds_by_round
from pruning.lazy import torch
from pruning.loading.given import AnyModel
from pruning.loading.load import LoadedModel
from pruning.loading.placement import AnyDtype
from pruning.loading.source import Token
from pruning.masked_base import check_against_masked_base
from pruning.progress import Progress, Reporter, bar, silent, with_bar
from pruning.pruned import Pruned, names_in_base, numbers_in_base
from pruning.recipe import Recipe
from pruning.report import Measured, Report, Sample
from pruning.request import Request, Steps
from pruning.steps.base import Step, StepContext
from pruning.surgery import with_own_memory
from pruning.text.chat import ChatFormat
from pruning.text.chat_learning import learn_chat_format
from pruning.text.choice import AnyCalibration
from pruning.text.generation import Sampling, generate, report_each_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE_TEXTS = ("Paris is the capital of", "The best way to learn is", "def add(a, b):")
"""What a model continues that cannot chat."""
SAMPLE_QUESTIONS = ("What is the capital of France?", "How do bees make honey?", "How much is 7 + 5?")
"""What a model is asked that can."""


@with_bar
def run(
    model: AnyModel | Recipe,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    steps: Steps | None = None,
    recipe: Recipe | None = None,
    calibration: AnyCalibration | None = None,
    seed: int | None = None,
    base: AnyModel | None = None,
    token: Token = None,
    dtype: AnyDtype | None = None,
    device: str | torch.device | None = None,
    evaluate: bool = True,
    metrics: Collection[str] = (),
    share_memory: bool = False,
    progress: Reporter = bar,
) -> Pruned:
    """Prune a model as `prune` does, and measure what it lost: perplexity, speed and samples.

    Args:
        model: The model, or a recipe.
        tokenizer: See `prune`, as for `steps`, `recipe`, `calibration`, `seed` and `base`.
        steps: What to do.
        recipe: What to do, instead of steps.
        calibration: The text that the model reads.
        seed: The seed of all that is random.
        base: The base of a recipe that is given first, if it is loaded already.
        token: The access token of the caller.
        dtype: See `prune`, as for `device`.
        device: Where the work is done.
        evaluate: Whether to measure both models.
        metrics: What else to measure: `answers`, `skills`.
        share_memory: See `prune`.
        progress: Is called with each stage; by default a bar on a terminal.

    Returns:
        The pruned model and its report.

    Raises:
        RecipeError: A step does not fit the base; the error knows which.
        ModelError: The base cannot be used.

    Example:
        >>> import pruning
        >>> steps = [pruning.Layers(count=1), pruning.Neurons(fraction=0.2)]
        >>> pruned = pruning.run(pruning.Recipe(base="smollm2-135m", steps=steps))
        >>> pruned.report.after.parameters < pruned.report.before.parameters
        True
        >>> type(pruned.model).__name__  # An ordinary transformers model, with fewer parameters.
        'LlamaForCausalLM'
    """
    check_metrics(metrics)
    request = Request.of(model, tokenizer, steps, recipe, calibration, seed, base, progress)
    recipe, loaded = request.open(token, progress, dtype=dtype, device=device)
    pruned = _carry_out(recipe, loaded, share_memory, progress)
    if evaluate:
        pruned = evaluate_pruned(pruned, loaded, progress=progress)
    return evaluate_on_panels(pruned, loaded, metrics, progress=progress)


@with_bar
def prune(
    model: AnyModel | Recipe,
    tokenizer: PreTrainedTokenizerBase | LoadedModel | None = None,
    *,
    steps: Steps | None = None,
    recipe: Recipe | None = None,
    calibration: AnyCalibration | None = None,
    seed: int | None = None,
    base: AnyModel | None = None,
    token: Token = None,
    dtype: AnyDtype | None = None,
    device: str | torch.device | None = None,
    share_memory: bool = False,
    progress: Reporter = bar,
) -> Pruned:
    """Prune a model, without measuring anything. The model is not changed, and training the result does not change it.

    A recipe may be given first, and its base second if it is loaded already: `prune(recipe, base)`, as in release
    0.1.0.

    Args:
        model: A catalog name, a Hub id, a folder, or a model that is loaded: by `load`, or by transformers.
        tokenizer: The tokenizer of a model that transformers loaded.
        steps: What to do: a step, or several.
        recipe: What to do, instead of steps. Its `base` is not looked up.
        calibration: The text that the model reads before it is cut; by default that of the recipe.
        seed: The seed of all that is random; by default that of the recipe, or 0.
        base: The base of a recipe that is given first.
        token: The access token of the caller.
        dtype: The precision in which the result is saved, such as `bfloat16`; by default that of the base's files. A
            CPU computes in float32 in any case, which is faster there.
        device: Where the work is done, such as `cpu` or `cuda`; by default where the model fits.
        share_memory: Whether the result shares the tensors that were not cut with the base. It is then made
            without a copy and not yet compared with its base (`check_pruned`), and must not be trained: that would
            change the base.
        progress: Is called with each stage; by default a bar on a terminal.

    Returns:
        The pruned model; its report holds no measurements.

    Raises:
        RecipeError: A step does not fit the base; the error knows which.
        ModelError: The base cannot be used.

    Example:
        >>> import pruning
        >>> base = pruning.load("smollm2-135m")
        >>> for fraction in (0.2, 0.4):  # The calibration text is read once.
        ...     pruned = pruning.prune(base, steps=pruning.Neurons(fraction=fraction))
    """
    request = Request.of(model, tokenizer, steps, recipe, calibration, seed, base, progress)
    recipe, loaded = request.open(token, progress, dtype=dtype, device=device)
    return _carry_out(recipe, loaded, share_memory, progress)


def _carry_out(recipe: Recipe, base: LoadedModel, share_memory: bool, progress: Reporter) -> Pruned:
    pruned = apply_steps(recipe, base, progress=progress)
    if share_memory:
        return pruned
    check_pruned(pruned, base, progress=progress)
    return replace(pruned, model=with_own_memory(pruned.model, base.model))


def check_pruned(pruned: Pruned, base: LoadedModel, *, progress: Reporter = silent) -> None:
    """Refuse a model that computes something else than its base with the removed units masked: `SavingError`."""
    check_against_masked_base(pruned.model, base.model, pruned.layers, pruned.units, pruned.changed, progress)


def apply_step(pruned: Pruned, base: LoadedModel, step: Step, *, progress: Reporter = silent) -> Pruned:
    """Carry out one more step on a pruned model, and add it to the recipe."""
    recipe = pruned.recipe.model_copy(update={"steps": (*pruned.recipe.steps, step)})
    recipe.check(Shape.of(base.model.config))
    size = replace(pruned.report.after, quality=None, tokens_per_second=None, speeds=())
    before = replace(pruned.report.before, tokens_per_second=None, speeds=())
    report = replace(pruned.report, before=before, after=size, samples=())
    return _apply(step, replace(pruned, recipe=recipe, report=report), base, progress)


def apply_steps(recipe: Recipe, base: LoadedModel, *, progress: Reporter = silent) -> Pruned:
    """Carry out the steps of a recipe that was checked against the base."""
    shape = Shape.of(base.model.config)
    size = Measured.of(shape, base.storage_dtype.itemsize)
    pruned = Pruned(
        base.model,
        base.tokenizer,
        recipe.pinned(base.source.revision),
        Report(size, size, base_notes=base.source.notes),
        base.source,
        shape,
        base.storage_dtype,
        tuple(range(shape.anatomy.layers)),
    )
    for step in recipe.steps:
        pruned = _apply(step, pruned, base, progress)
    return pruned


def _apply(step: Step, pruned: Pruned, base: LoadedModel, progress: Reporter) -> Pruned:
    """Return the model after one step, and its report with what the step notes."""
    recipe, shape, start = pruned.recipe, pruned.shape, time.perf_counter()
    context = StepContext(
        pruned.model,
        pruned.tokenizer,
        shape,
        base,
        seed=recipe.seed,
        progress=progress,
        layers=pruned.layers,
    )
    if modules := step.hooked_modules(shape):
        statistics = statistics_of(
            context.loaded,
            recipe.calibration,
            modules,
            recipe.seed,
            save_to_disk=pruned.model is base.model,
            progress=progress,
            author=base,
        )
        context = replace(context, statistics=statistics)
    if step.reads_text(shape):
        windows = windows_of(context.loaded, recipe.calibration, recipe.seed, progress, author=base)
        context = replace(context, windows=windows)
    if context.statistics is not None or context.windows is not None:
        recipe = recipe.with_answers(answers_digest(base, recipe.calibration))
    calibrated = time.perf_counter()
    result = step.apply(context)
    shape, report = Shape.of_model(result.model), pruned.report
    seconds = {
        **report.seconds,
        "calibrate": report.seconds.get("calibrate", 0) + calibrated - start,
        "cut": report.seconds.get("cut", 0) + time.perf_counter() - calibrated,
    }
    layers = pruned.layers if result.layers is None else tuple(pruned.layers[n] for n in result.layers)
    if len(layers) < Shape.of(base.model.config).anatomy.layers:
        recipe = recipe.model_copy(update={"kept_layers": layers})
    after = Measured.of(shape, base.storage_dtype.itemsize)
    report = replace(report, after=after, notes=(*report.notes, result.notes), seconds=seconds)
    return replace(
        pruned,
        model=result.model,
        tokenizer=result.tokenizer,
        recipe=recipe,
        report=report,
        shape=shape,
        layers=layers,
        units=numbers_in_base(pruned.units, result.kept, result.layers),
        changed=pruned.changed | names_in_base(result.changed, shape.anatomy.family.layers, pruned.layers),
    )


def evaluate_pruned(
    pruned: Pruned, base: LoadedModel, *, tokens: int | None = None, progress: Reporter = silent
) -> Pruned:
    """Fill in the report of a pruned model: quality, speed and samples, of the base and of itself.

    Args:
        pruned: The pruned model.
        base: The base that it was made from.
        tokens: Measure the quality alone, on this many tokens in total; None for everything.
        progress: Is called with each window and each token.

    Returns:
        The same model with a fuller report.

    Raises:
        RecipeError: The tokenizer has a token that one of the models has no embedding for.

    Example:
        >>> import pruning
        >>> base = pruning.load("smollm2-135m")
        >>> recipe = pruning.Recipe(base="smollm2-135m", steps=[pruning.Neurons(fraction=0.2)])
        >>> pruned = pruning.evaluate_pruned(pruning.prune(recipe, base), base, tokens=500)
        >>> perplexity = pruned.report.after.quality.overall.value
    """
    if tokens is not None:
        before = base_quality(base, tokens=tokens, progress=progress)
        after = perplexity.evaluate(pruned, tokens=tokens, progress=progress)
        return with_quality(pruned, before, after)
    *_, measured = iter_evaluate_pruned(pruned, base, progress=progress)
    return measured


def evaluate_quality(pruned: Pruned, base: LoadedModel, *, progress: Reporter = silent) -> Pruned:
    """Fill in the quality of a pruned model and its base in the report, and leave speed and samples open."""
    for measured in iter_evaluate_pruned(pruned, base, progress=progress):
        pruned = measured
        if pruned.report.after.has_full_quality:
            break
    return pruned


def iter_evaluate_pruned(
    pruned: Pruned, base: LoadedModel, *, progress: Reporter = silent
) -> Iterator[Pruned]:
    """Yield a pruned model with a fuller report each time: the quality genre by genre, then speed and samples."""
    start = time.perf_counter()
    model, tokenizer = pruned.model, pruned.tokenizer
    if not pruned.report.after.has_full_quality:
        before = base_quality(base, progress=progress)
        pruned = with_quality(pruned, before, None)
        yield pruned
        genres: dict[str, perplexity.Perplexity] = {}
        for genre, result in perplexity.iter_evaluate(pruned, progress=progress):
            genres[genre] = result
            pruned = with_quality(pruned, before, perplexity.summarize(genres))
            yield pruned
    speeds = speeds_by_round((base.model, model), tokenizer, progress=progress)
    sampling, reporter = Sampling(max_new_tokens=24), report_each_token(progress, Progress("Writing samples"))
    can_chat = isinstance(learn_chat_format(tokenizer), ChatFormat)
    samples = tuple(
        Sample(
            prompt,
            generate(base, prompt, sampling, chat=can_chat, stopped=reporter),
            generate(pruned, prompt, sampling, chat=can_chat, stopped=reporter),
            is_question=can_chat,
        )
        for prompt in (SAMPLE_QUESTIONS if can_chat else SAMPLE_TEXTS)
    )
    report = replace(
        pruned.report,
        before=replace(pruned.report.before, tokens_per_second=median(speeds[0]), speeds=speeds[0]),
        after=replace(pruned.report.after, tokens_per_second=median(speeds[1]), speeds=speeds[1]),
        samples=samples,
        seconds={**pruned.report.seconds, "evaluate": time.perf_counter() - start},
    )
    yield replace(pruned, report=report)


PANELS: Mapping[str, Callable[..., Any]] = {"answers": evaluate_answers, "skills": measure_skills}
"""The metrics that ask both models a bundled panel of questions, and what measures them."""


def check_metrics(metrics: Collection[str]) -> None:
    """Refuse the name of a metric that is not one of `PANELS`: `RecipeError`."""
    for name in metrics:
        if name not in PANELS:
            raise RecipeError(f"There is no metric {name!r}. Choose from {', '.join(PANELS)}.")


def evaluate_on_panels(
    pruned: Pruned, base: LoadedModel, metrics: Collection[str], *, progress: Reporter = silent
) -> Pruned:
    """Fill in what a pruned model and its base do on bundled panels, in the report.

    Args:
        pruned: The pruned model.
        base: The base that it was made from.
        metrics: Names from `PANELS`: `answers` asks both the bundled questions, `skills` scores the bundled items.
        progress: Is called with each batch and each token.

    Returns:
        The same model with a fuller report.

    Raises:
        RecipeError: There is no such metric, or one of the models has no embedding for a token.
        ModelError: The tokenizer failed on a text.
    """
    check_metrics(metrics)
    before, after = (
        {name: PANELS[name](model, progress=progress) for name in metrics} for model in (base, pruned)
    )
    report = pruned.report
    report = replace(report, before=replace(report.before, **before), after=replace(report.after, **after))
    return replace(pruned, report=report)


def with_quality(
    pruned: Pruned, before: perplexity.Quality | None, after: perplexity.Quality | None
) -> Pruned:
    """Return the same model with the quality of its base and of itself in the report."""
    report = replace(
        pruned.report,
        before=replace(pruned.report.before, quality=before),
        after=replace(pruned.report.after, quality=after),
    )
    return replace(pruned, report=report)
