"""Run tasks of lm-evaluation-harness, if it is installed and can download their data."""

import importlib.util
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from pruning.errors import ModelError
from pruning.loading.files import first_line
from pruning.progress import Progress, Reporter, silent
from pruning.text.prompt import CausalLM

NEEDED = ("lm_eval", "datasets", "sacrebleu", "dill")
"""The packages without which no task can be loaded."""


def check_installed() -> None:
    """Check that lm-evaluation-harness and what it needs to load a task are installed.

    Raises:
        ModelError: Something is missing; the message names it.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"Tasks need lm-evaluation-harness; {', '.join(missing)} is not installed. "
            "Install it with: pip install lm-eval"
        )


def evaluate_tasks(
    model: CausalLM, tasks: Sequence[str], *, limit: int | None = None, progress: Reporter = silent
) -> dict[str, Any]:
    """Evaluate a model on tasks of lm-evaluation-harness.

    Args:
        model: The model and its tokenizer.
        tasks: The names of the tasks.
        limit: The most items of a task; None for all.
        progress: Called before the tasks are loaded.

    Returns:
        For each task, its measures as the harness names them.

    Raises:
        ModelError: A task does not exist, or its data cannot be downloaded.
    """
    check_installed()
    progress(Progress(f"Loading {', '.join(tasks)}"))
    names = [task.strip() for task in tasks if task.strip()]
    # An optional package, which takes seconds to import: its models only if the tasks exist.
    lm_eval, loaders = (import_module(f"lm_eval{part}") for part in ("", ".tasks"))
    try:
        manager = loaders.TaskManager()
        if unknown := [name for name in names if name not in manager.all_tasks]:
            raise ModelError(f"lm-evaluation-harness has no task {unknown[0]!r}. Check its spelling.")
        models = import_module("lm_eval.models.huggingface")
        measured = lm_eval.simple_evaluate(
            models.HFLM(pretrained=model.model, tokenizer=model.tokenizer),
            tasks=names,
            task_manager=manager,
            limit=limit,
        )
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"The tasks {', '.join(names)} could not be evaluated: {first_line(error).rstrip('.')}. "
            "Their data come from the Hugging Face Hub: check that it can be reached."
        ) from error
    return {name: dict(values) for name, values in (measured or {})["results"].items()}
