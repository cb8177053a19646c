"""The metrics of a lesson's models, by the names that its text and its claims use."""

from collections.abc import Mapping, Sequence
from math import log

from pruning.architectures.families import NEURON
from pruning.architectures.shape import Shape
from pruning.formatting import format_number
from pruning.pipeline import Pruned
from pruning.report import Report

Metrics = Mapping[str, float | str]
"""Metrics by name. Some are texts, such as the name of the model that was pruned."""


def metrics_of_shape(shape: Shape) -> dict[str, float | str]:
    """Return what follows from a shape alone.

    Returns:
        `parameters_before`, and the share of each component, from 0 to 1, such as `mlp_share`.
    """
    total = shape.parameters
    metrics: dict[str, float | str] = {"parameters_before": total}
    metrics |= {f"{name}_share": size / total for name, size in shape.components.items()}
    return metrics


def metrics_of_runs(runs: Sequence[tuple[str, Pruned]]) -> dict[str, float | str]:
    """Return the metrics of the models that a lesson has made so far.

    Args:
        runs: The name of each run and its model, evaluated.

    Returns:
        `base`, the perplexity of the base; for each run `NAME_perplexity`, `NAME_ratio` to the base,
        `NAME_smaller` (share of the parameters removed), `NAME_bytes`, `NAME_width_after` (neurons in each
        layer) and one perplexity for each genre, such as `NAME_code`. Runs named after genres have
        `NAME_advantage`: how many times lower their perplexity on that genre is than the other run's.
        Runs named `plain` and `repaired` have `repaired_gain`, the ratio between their perplexities, and
        `repaired_gap_closed`, the share of the rise that repair undoes. `code_lean` compares the rise on code with
        that on stories; `nine_growth` the rise of the run `nine` with that of `three`, and `nine_loss_growth` the
        same for the loss.

    Raises:
        ValueError: A model has not been evaluated.
    """
    metrics: dict[str, float] = {}
    for name, pruned in runs:
        report = pruned.report
        before, after = report.before.quality, report.after.quality
        if before is None or after is None:
            raise ValueError(f"The model of the run {name} has not been evaluated.")
        metrics["base"] = before.overall.value
        metrics |= {
            f"{name}_base": before.overall.value,
            f"{name}_perplexity": after.overall.value,
            f"{name}_ratio": after.overall.value / before.overall.value,
            f"{name}_smaller": 1 - report.after.parameters / report.before.parameters,
            f"{name}_bytes": report.after.bytes,
            f"{name}_file_share": report.after.bytes / report.before.bytes,
            f"{name}_width_after": pruned.shape.count(NEURON),
        }
        metrics |= {f"{name}_{genre}": result.value for genre, result in after.genres.items()}
        metrics |= {
            f"{name}_{genre}_ratio": result.value / before.genres[genre].value
            for genre, result in after.genres.items()
            if genre in before.genres
        }
        metrics |= {f"{name}_removed_{step}": count for step, count in removed_by_step(pruned).items()}
    names = [name for name, _ in runs]
    for name in names:
        for other in names:
            if name != other and f"{other}_{name}" in metrics:
                metrics[f"{name}_advantage"] = metrics[f"{other}_{name}"] / metrics[f"{name}_{name}"]
    if {"plain", "repaired"} <= set(names):
        metrics["repaired_gain"] = metrics["plain_ratio"] / metrics["repaired_ratio"]
        metrics["repaired_gap_closed"] = _divide(
            metrics["plain_ratio"] - metrics["repaired_ratio"], metrics["plain_ratio"] - 1
        )
    if {"peak_to_peak", "activation"} <= set(names):
        metrics["activation_gain"] = metrics["peak_to_peak_ratio"] / metrics["activation_ratio"]
    if {"code_code_ratio", "code_story_ratio"} <= metrics.keys():
        metrics["code_lean"] = metrics["code_code_ratio"] / metrics["code_story_ratio"]
    if {"three", "nine"} <= set(names):
        metrics["nine_growth"] = _divide(metrics["nine_ratio"] - 1, metrics["three_ratio"] - 1)
        metrics["nine_loss_growth"] = _divide(log(metrics["nine_ratio"]), log(metrics["three_ratio"]))
        metrics |= {f"{name}_rise_share": metrics[f"{name}_ratio"] - 1 for name in ("three", "nine")}
    return dict(metrics)


def metrics_of_types(reports: Mapping[str, Report]) -> dict[str, float | str]:
    """Return the metrics of the original model with its weights in other types.

    Args:
        reports: The report of each type by its name, such as `q8_0`.

    Returns:
        `base_bytes`, and for each type `NAME_ratio`, the perplexity over that of the original weights, and
        `NAME_bytes`.

    Raises:
        ValueError: A model has not been evaluated.
    """
    metrics: dict[str, float | str] = {}
    for name, report in reports.items():
        before, after = report.before.quality, report.after.quality
        if before is None or after is None:
            raise ValueError(f"The model in {name} has not been evaluated.")
        metrics["base_bytes"] = report.before.bytes
        metrics |= {
            f"{name}_ratio": after.overall.value / before.overall.value,
            f"{name}_bytes": report.after.bytes,
        }
    return metrics


def _divide(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def removed_by_step(pruned: Pruned) -> dict[str, int]:
    """Return how many parameters the layers, heads and neurons of a recipe remove, each after the step before it."""
    removed = dict.fromkeys(("layers", "heads", "neurons"), 0)
    shape = Shape.of(pruned.source.config)
    for step in pruned.recipe.steps:
        after = step.reshape(shape)
        if step.step in removed:
            removed[step.step] += shape.parameters - after.parameters
        shape = after
    return removed


def format_metrics(metrics: Metrics) -> dict[str, str]:
    """Format metrics as a lesson's text shows them."""
    return {name: _format_metric(name, value) for name, value in metrics.items()}


def _format_metric(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    if name.endswith("_rise_share"):
        return f"{100 * value:.0f}%"
    if name.endswith(("_share", "_smaller")):
        return f"{100 * value:.1f}%"
    if name.endswith("_bytes"):
        return f"{value / 1e6:,.0f} MB"
    if isinstance(value, int):
        return f"{value:,}"
    return format_number(value, 2 if name.endswith(("_ratio", "_advantage", "_gain", "_lean")) else 1)
