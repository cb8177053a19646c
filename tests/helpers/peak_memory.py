"""Print the peak of private memory that pieces of work take, each as one line of JSON; runs as a process of its own.

Arguments: a folder or a catalog name, and pieces of work as JSON: the name of one, and its arguments by name.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

import pruning
from pruning import Budget, Calibration, LoadedModel, Recipe, Sampling
from pruning.calibration import cache
from pruning.evaluation.inspection import losses_by_token, neuron_scores, next_tokens
from pruning.memory import private_memory, release_memory
from pruning.pipeline import evaluate_pruned
from pruning.shape_search.search import search
from pruning.shape_search.sweep import iter_sweep
from pruning.text.generation import stream_together

SEARCHED = Calibration(tokens=2048)


def _search(base: LoadedModel, parameters: int) -> None:
    search(base, Budget(parameters), calibration=SEARCHED, thorough=False)


def _run(base: LoadedModel, recipe: str) -> None:
    asked = Recipe.parse(recipe)
    evaluate_pruned(pruning.prune(asked, base), base)


def _save(base: LoadedModel, recipe: str) -> None:
    pruned = pruning.prune(Recipe.parse(recipe), base)
    with tempfile.TemporaryDirectory() as folder:
        pruned.save(f"{folder}/saved")


def _generate(base: LoadedModel, prompt: str, new_tokens: int) -> None:
    for _ in stream_together((base, base), prompt, Sampling(max_new_tokens=new_tokens)):
        pass


WORK: Mapping[str, Callable[..., object]] = {
    "prune": lambda base, recipe: pruning.prune(Recipe.parse(recipe), base),
    "run": _run,
    "save": _save,
    "search": _search,
    "sweep": lambda base, criteria: list(iter_sweep(base, criteria, calibration=SEARCHED)),
    "generate": _generate,
    "next tokens": lambda base, prompt: next_tokens(base, prompt),
    "token losses": lambda base, text: losses_by_token([base, base], text),
    "importance": lambda base: neuron_scores(base, "activation", SEARCHED),
}


class Peak:
    """The most private memory since it was last reset, sampled by a thread."""

    def __init__(self) -> None:
        self.most = 0
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self.most = max(self.most, private_memory(os.getpid()))
            time.sleep(0.002)


def _measure(base: LoadedModel, peak: Peak, work: str, values: Mapping[str, Any]) -> int:
    cache.clear()
    release_memory()
    before = peak.most = private_memory(os.getpid())
    WORK[work](base, **values)
    return peak.most - before


def main() -> None:
    torch.set_num_threads(1)
    base, peak = pruning.load(sys.argv[1]), Peak()
    base.model(torch.zeros(1, 8, dtype=torch.long))
    for text in sys.argv[2:]:
        values = json.loads(text)
        print(json.dumps({"bytes": _measure(base, peak, values.pop("work"), values)}), flush=True)


if __name__ == "__main__":
    main()
