"""Results as plain values, and back: what belongs to the machine of the moment is left out.

A result is kept without its recipe and its base, which whoever asks for it brings along.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, cast

from pydantic import TypeAdapter

from page.workers.abilities import AbilitiesTask
from page.workers.lesson import LessonTask
from page.workers.messages import (
    Evaluation,
    FoundModel,
    ImportanceMap,
    LayerInfluences,
    LessonModel,
    LessonResult,
    PrunedSummary,
    Texts,
)
from page.workers.tasks import CompareTask, EvaluateTask, PruneTask, Task
from pruning import Recipe, Report
from pruning.architectures.shape import Shape
from pruning.evaluation.abilities import Abilities

TEXTS = TypeAdapter(Texts)
REPORT = TypeAdapter(Report)
MODELS = TypeAdapter(tuple[LessonModel, ...])
ABILITIES = TypeAdapter(Abilities)
METRICS = TypeAdapter(dict[str, float | str])
IMPORTANCE, INFLUENCES = TypeAdapter(ImportanceMap), TypeAdapter(LayerInfluences)
DIGITS = 4
"""Of shares that are only drawn."""


def encode(task: Task, result: object) -> object:
    """Return the result of a task as plain values.

    Raises:
        TypeError: Results of this kind are not kept.
    """
    match result:
        case PrunedSummary(report=report, prompt=prompt, plain_reason=reason) as summary:
            chat = None if prompt is None else prompt.chat
            return {
                "report": _plain_report(report),
                **_recorded(summary.recipe),
                "chat": chat,
                "reason": reason,
            }
        case Texts():
            return asdict(result)
        case Evaluation(recipe, report):
            return {"report": _plain_report(replace(report, notes=())), **_recorded(recipe)}
        case Abilities():
            return asdict(result)
        case LessonResult():
            return {
                "models": [
                    {**vars(model), "report": _plain_report(replace(model.report, notes=()))}
                    for model in result.models
                ],
                "metrics": dict(result.metrics),
                "recipe": None if result.recipe is None else result.recipe.to_dict(),
                "chart": _plain_chart(result.chart),
            }
    raise TypeError(f"The result of {type(task).__name__} is not kept.")


def decode(task: Task, plain: object, revision: str | None, found: FoundModel | None = None) -> object:
    """Return the result of a task from plain values.

    Args:
        task: The task, which has the recipe and the prompt.
        plain: What `encode` returned.
        revision: The revision of the base.
        found: The base, which a cut and a lesson show too.

    Raises:
        ValueError: They are anything else.
        KeyError: The same.
        TypeError: The same.
    """
    values = cast("Mapping[str, Any]", plain)
    match task:
        case PruneTask(recipe, prompt):
            pinned = _as_made(recipe, revision, values)
            if prompt is not None:
                prompt = replace(prompt, chat=_boolean(values["chat"]))
            assert found is not None
            after = pinned.check(found.shape)
            if pinned.kept_layers is not None:
                after = Shape.of(after.config_of(pinned.kept_layers))
            return PrunedSummary(
                pinned,
                REPORT.validate_python(values["report"]),
                found.shape,
                after,
                found.source,
                prompt,
                str(values["reason"]),
            )
        case CompareTask():
            return TEXTS.validate_python(values)
        case EvaluateTask(recipe):
            return Evaluation(_as_made(recipe, revision, values), REPORT.validate_python(values["report"]))
        case AbilitiesTask():
            return ABILITIES.validate_python(values)
        case LessonTask():
            assert found is not None
            made = values["recipe"]
            return LessonResult(
                MODELS.validate_python(values["models"]),
                METRICS.validate_python(values["metrics"]),
                found.shape,
                found.source,
                None if made is None else Recipe.parse(json.dumps(made)),
                _chart(values["chart"]),
            )
    raise TypeError(f"The result of {type(task).__name__} is not kept.")


def _plain_report(report: Report) -> dict[str, Any]:
    """Return a report without durations, speed and samples."""
    kept = replace(
        report,
        before=replace(report.before, tokens_per_second=None),
        after=replace(report.after, tokens_per_second=None),
        samples=(),
        seconds={},
    )
    return kept.to_dict()


def _recorded(recipe: Recipe) -> dict[str, Any]:
    """Return what a run recorded in a recipe, beside the revision."""
    layers = recipe.kept_layers
    return {"layers": layers and list(layers), "answers": recipe.calibration.answers}


def _as_made(recipe: Recipe, revision: str | None, values: Mapping[str, Any]) -> Recipe:
    """Return a recipe with what a run recorded in it: the revision, the layers kept, and the answers read."""
    pinned = recipe.without_custom_text().pinned(recipe.revision or revision)
    layers, answers = values["layers"], values.get("answers")
    if not layers and answers is None:
        return pinned
    plain = pinned.to_dict()
    if layers:
        plain["kept_layers"] = layers
    if answers is not None:
        plain["calibration"]["answers"] = answers
    return Recipe.parse(json.dumps(plain))


def _plain_chart(chart: ImportanceMap | LayerInfluences | None) -> dict[str, Any] | None:
    match chart:
        case ImportanceMap(rows, shared, fraction, criteria):
            return {
                "rows": [[round(value, DIGITS) for value in row] for row in rows],
                "shared": list(shared),
                "fraction": fraction,
                "criteria": list(criteria),
            }
        case LayerInfluences(values):
            return {"values": list(values)}
    return None


def _chart(plain: Mapping[str, Any] | None) -> ImportanceMap | LayerInfluences | None:
    if plain is None:
        return None
    return IMPORTANCE.validate_python(plain) if "rows" in plain else INFLUENCES.validate_python(plain)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("whether a prompt is a question is true or false")
    return value
