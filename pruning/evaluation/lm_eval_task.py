"""The panel of skills as a task of EleutherAI's lm-evaluation-harness."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pruning.evaluation.skills import SKILLS, Item, panel
from pruning.files import replacing

TASK = "secateur_skills"
"""The name of the group; those of the tasks in it are followed by the skill."""

METRIC = "acc_bytes"
"""The harness's accuracy by the log-likelihood per byte of UTF-8; it is only computed if a task asks for it."""

_VERSION = 1
"""Raised when an item or the way it is scored changes."""


def write_lm_eval_task(folder: str | Path, items: Sequence[Item] | None = None) -> Path:
    """Write the panel as files that lm-evaluation-harness loads, one task for each skill and a group of them.

    `lm_eval --include_path FOLDER --tasks secateur_skills` then gives the accuracies of `measure_skills`, except that
    the harness keeps the items that a tokenizer cannot write. The files name each other by their full
    paths: write them again instead of moving them.

    Args:
        folder: Where to write; created if missing. Files of the same names are replaced.
        items: The items; by default the panel's reported ones.

    Returns:
        The folder.
    """
    folder = Path(folder).resolve()
    items = panel("reported") if items is None else items
    skills = [skill for skill in SKILLS if any(item.skill == skill for item in items)]
    for skill in skills:
        data = folder / f"{skill}.jsonl"
        asked = [item for item in items if item.skill == skill]
        lines = [json.dumps(_document(number, item), ensure_ascii=False) for number, item in enumerate(asked)]
        _write(data, "\n".join(lines) + "\n")
        _write(folder / f"{skill}.yaml", _dump(_task(skill, data)))
    group = {
        "group": TASK,
        "group_alias": "Skills",
        "task": [f"{TASK}_{skill}" for skill in skills],
        "aggregate_metric_list": [{"metric": METRIC, "aggregation": "mean", "weight_by_size": True}],
        "metadata": {"version": _VERSION},
    }
    _write(folder / f"{TASK}.yaml", _dump(group))
    return folder


def _document(number: int, item: Item) -> dict[str, Any]:
    """Return an item with its completions in turn, so that the right one is not always first."""
    choices = list(item.wrong)
    right = number % (len(choices) + 1)
    choices.insert(right, item.right)
    return {"context": item.context, "choices": choices, "right": right}


def _task(skill: str, data: Path) -> dict[str, Any]:
    return {
        "task": f"{TASK}_{skill}",
        "task_alias": SKILLS[skill],
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "target_delimiter": "",  # The completions bring their own space.
        "num_fewshot": 0,
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": _VERSION},
    }


def _dump(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _write(target: Path, text: str) -> None:
    with replacing(target) as file:
        file.write_text(text, encoding="utf-8")
