"""Three jobs side by side with OptiPFair 0.4.2: loss, and seconds from the call to the model in hand.

Both are given the same token windows of WikiText-2 and a model that is loaded. Ours is called with its defaults, but
for `multiple_of`: both remove the same number of neurons. They take turns, and the least time of each counts: what else
a machine does only adds to it.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import PreTrainedModel

import pruning
from benchmarks.common import base, table, wikitext
from benchmarks.optipfair_baseline import prune_with_optipfair, remove_layers_with_optipfair
from pruning.calibration.cache import clear
from pruning.calibration.calibrate import windows_of
from pruning.steps import AnyStep


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the numbers of tokens to calibrate on and to measure on."""
    parser.add_argument(
        "--calibration", type=int, default=8192, help="tokens that both read; 8192 by default"
    )
    parser.add_argument(
        "--tokens", type=int, default=2048, help="held-out tokens to measure on; 2048 by default"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each does each job; 3 by default")


def main(calibration: int, tokens: int, rounds: int) -> None:
    """Run the jobs with both libraries, and print a table."""
    text, heldout = wikitext()
    windows = windows_of(base(), pruning.Calibration.custom(text, tokens=calibration))
    everything = [*windows.fitting, *windows.heldout]
    jobs: dict[str, tuple[Callable[[], PreTrainedModel], AnyStep]] = {
        "20% of the neurons, data-driven": (
            partial(prune_with_optipfair, base().model, 0.2, everything),
            pruning.Neurons(fraction=0.2, multiple_of=1),
        ),
        "20% of the neurons, from weights": (
            partial(prune_with_optipfair, base().model, 0.2),
            pruning.Neurons(fraction=0.2, multiple_of=1, criterion="peak_to_peak"),
        ),
        "3 layers": (
            partial(remove_layers_with_optipfair, base().model, 3, everything),
            pruning.Layers(count=3),
        ),
    }
    rows = []
    models: dict[str, PreTrainedModel] = {}
    for name, (theirs, step) in jobs.items():
        makers = {"OptiPFair 0.4.2": theirs, "ours": partial(_ours, step, everything)}
        seconds: dict[str, list[float]] = {library: [] for library in makers}
        for _ in range(rounds):
            for library, make in makers.items():
                clear()
                start = time.perf_counter()
                models[library] = make()
                seconds[library].append(time.perf_counter() - start)
        for library, model in models.items():
            value = pruning.perplexity(model, base().tokenizer, heldout, tokens=tokens).value
            rows.append((name, library, f"{value:.2f}", f"{min(seconds[library]):.1f}"))
            print("·", *rows[-1], "of", [round(one, 1) for one in seconds[library]], flush=True)
    table(
        f"Three jobs on {calibration:,} tokens, measured on {tokens:,} held-out ones",
        ["job", "by", "perplexity", "seconds to the model"],
        rows,
    )


def _ours(step: AnyStep, calibration: list[torch.Tensor]) -> PreTrainedModel:
    return pruning.prune(base(), steps=step, calibration=calibration).model
