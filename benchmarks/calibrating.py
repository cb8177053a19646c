"""The calibration pass over a plain forward pass of the same tokens."""

import statistics
import time

import torch

from benchmarks.common import base, table
from pruning import Calibration, Neurons
from pruning.calibration import windows_of
from pruning.shape import Shape
from pruning.statistics import Statistics

ROUNDS = 5
TOKENS = 2048


def main() -> None:
    model = base()
    windows = windows_of(model, Calibration(tokens=TOKENS))
    sites = Neurons(fraction=0.2).sites(Shape.of(model.model.config))
    passes, plain = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        Statistics(model.model, sites, windows.fitting, windows.heldout)
        passes.append(time.perf_counter() - start)
        start = time.perf_counter()
        with torch.inference_mode():
            for window in windows.fitting + windows.heldout:
                model.model(input_ids=window[None], use_cache=False)
        plain.append(time.perf_counter() - start)
    calibrated, forward = statistics.median(passes), statistics.median(plain)
    table(
        f"Calibration on {windows.tokens} tokens (medians of five, alternating)",
        ["pass", "tokens per second", "ratio"],
        [
            ("plain forward", f"{windows.tokens / forward:.0f}", "1"),
            ("calibration", f"{windows.tokens / calibrated:.0f}", f"{calibrated / forward:.2f}"),
        ],
    )
