"""Measure a model: on bundled or given text, by named or given metrics, alone or beside its base."""

from collections.abc import Callable, Sequence
from typing import Any, overload

from transformers import PreTrainedTokenizerBase

from pruning.calibration.calibrate import windows_of
from pruning.errors import PruningError, RecipeError
from pruning.evaluation import perplexity
from pruning.evaluation.against import Measures, to_dict
from pruning.evaluation.answers import evaluate_answers
from pruning.evaluation.perplexity import Perplexity, Quality
from pruning.evaluation.skills import measure_skills
from pruning.loading.given import AnyModel, CausalLM, open_model, with_tokenizer
from pruning.progress import Reporter, bar, with_bar
from pruning.text.choice import AnyCalibration, Calibration
from pruning.text.likelihood import mean_loss, perplexity_of

METRICS = ("perplexity", "answers", "skills")

Metric = str | Callable[[CausalLM], float]
"""One of `METRICS`, or a function of the model (with `.model` and `.tokenizer`) that returns a number."""


@overload
def evaluate(
    model: AnyModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    on: None = None,
    metrics: None = None,
    against: None = None,
    tokens: int | None = None,
    progress: Reporter = bar,
) -> Quality: ...


@overload
def evaluate(
    model: AnyModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    on: AnyCalibration | None = None,
    metrics: Sequence[Metric] | Metric | None = None,
    against: AnyModel | None = None,
    tokens: int | None = None,
    progress: Reporter = bar,
) -> dict[str, Any]: ...


@with_bar
def evaluate(
    model: AnyModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    on: AnyCalibration | None = None,
    metrics: Sequence[Metric] | Metric | None = None,
    against: AnyModel | None = None,
    tokens: int | None = None,
    progress: Reporter = bar,
) -> Quality | dict[str, Any]:
    """Measure a model: perplexity on five genres of held-out text, or what is asked for.

    Args:
        model: The model: a name, a folder, one that is loaded, or one that was pruned.
        tokenizer: The tokenizer of a model that transformers loaded.
        on: The text for the perplexity, of any kind that `Calibration.of` reads, instead of the bundled passages.
        metrics: `perplexity`, `answers` and `skills`, and functions of the model that return a number; perplexity by
            default.
        against: The base, whose measures then stand beside the model's.
        tokens: How many tokens to read in all. Of the bundled passages, None reads the same characters for every
            vocabulary.
        progress: Is called before every window; by default a bar on a terminal.

    Returns:
        The quality over all genres and for each of them; or, if a text, metrics or a base is given, plain values as
        `secateur evaluate --json` prints them, and those of each function under its name.

    Raises:
        ModelError: The model cannot be used.
        RecipeError: There is no such metric, a function fails, or the text cannot be read.

    Example:
        >>> import pruning
        >>> base = pruning.load("smollm2-135m")
        >>> quality = pruning.evaluate(base, tokens=500)
        >>> list(quality.genres)
        ['encyclopedia', 'story', 'code', 'dialogue', 'documentation']
        >>> def layers(model):
        ...     return model.model.config.num_hidden_layers
        >>> pruned = pruning.prune(base, steps=pruning.Layers(count=1))
        >>> pruning.evaluate(pruned, metrics=[layers], against=base)["layers"]["difference"]
        -1.0
    """
    if on is None and metrics is None and against is None:
        return perplexity.evaluate(
            with_tokenizer(model, tokenizer, progress=progress), tokens=tokens, progress=progress
        )
    wanted = _wanted(metrics)
    measured = _measure(model, tokenizer, on, wanted, tokens, progress)
    if against is None:
        return to_dict(measured[0]) | measured[1]
    before = _measure(against, tokenizer if _is_bare(against) else None, on, wanted, tokens, progress)
    compared = {
        name: {"value": value, "base": before[1][name], "difference": value - before[1][name]}
        for name, value in measured[1].items()
    }
    return to_dict(measured[0], before[0]) | compared


def _is_bare(model: object) -> bool:
    """Return whether a model was given without its tokenizer."""
    return hasattr(model, "state_dict")


def _wanted(metrics: Sequence[Metric] | Metric | None) -> list[Metric]:
    listed: list[Metric] = ["perplexity"] if metrics is None else []
    if metrics is not None:
        listed = [metrics] if isinstance(metrics, str) or callable(metrics) else [*metrics]
    for each in listed:
        if not callable(each) and each not in METRICS:
            raise RecipeError(
                f"There is no metric {str(each)[:40]!r}. Choose {', '.join(METRICS)}, or give a function of the model."
            )
    return listed


def _measure(
    model: AnyModel,
    tokenizer: PreTrainedTokenizerBase | None,
    on: AnyCalibration | None,
    metrics: Sequence[Metric],
    tokens: int | None,
    progress: Reporter,
) -> tuple[Measures, dict[str, float]]:
    given = with_tokenizer(model, tokenizer, progress=progress)
    measured, genres = None, {}
    if "perplexity" in metrics:
        if on is None:
            quality = perplexity.evaluate(given, tokens=tokens, progress=progress)
            measured, genres = quality.overall, quality.genres
        else:
            measured = _perplexity_on(given, on, tokens, progress)
    answers = evaluate_answers(given, progress=progress) if "answers" in metrics else None
    skills = measure_skills(given, progress=progress) if "skills" in metrics else None
    values = {_name(each): _value(each, given) for each in metrics if callable(each)}
    return Measures(measured, genres, answers, skills), values


def _perplexity_on(given: CausalLM, on: AnyCalibration, tokens: int | None, progress: Reporter) -> Perplexity:
    text = Calibration.of(on, progress=progress, **({} if tokens is None else {"tokens": tokens}))
    windows = windows_of(open_model(given, progress=progress), text, progress=progress)
    pieces = [*windows.fitting, *windows.heldout]
    value = perplexity_of(mean_loss(given.model, pieces, progress))
    return Perplexity(value, windows.tokens, max(map(len, pieces)), text.text)


def _name(metric: Metric) -> str:
    return getattr(metric, "__name__", type(metric).__name__)


def _value(metric: Callable[[CausalLM], float], model: CausalLM) -> float:
    try:
        return float(metric(model))
    except PruningError:
        raise
    except Exception as error:  # Whatever is in a caller's function is not a fault of this library.
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"The metric {_name(metric)} failed: {type(error).__name__}: {reason}. Correct the function."
        ) from error
