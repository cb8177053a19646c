"""The calibration pass over a plain forward pass of the same tokens."""

from dataclasses import replace

import torch

from benchmarks.common import ROUNDS, base, medians, table
from pruning import Calibration, Neurons
from pruning.architectures.shape import Shape
from pruning.calibration.calibrate import windows_of
from pruning.calibration.statistics import Statistics

TOKENS = 2048
WHOLE = 8192
"""Tokens of the default calibration, over which the inverses are spread."""


def main() -> None:
    model = base().model
    windows = windows_of(base(), Calibration(tokens=TOKENS))
    sites = Neurons(fraction=0.2).hooked_modules(Shape.of(model.config))
    made: list[Statistics] = []

    def calibrate() -> None:
        made[:] = [Statistics(model, sites, windows.fitting, windows.heldout)]

    def invert() -> None:
        for site in sites:
            replace(made[0].gram(site)).inverse  # noqa: B018

    def read() -> None:
        with torch.inference_mode():
            for window in windows.fitting + windows.heldout:
                model(input_ids=window[None], use_cache=False)

    calibrate()
    seconds = medians({"plain": read, "calibration": calibrate, "inverses": invert})
    plain, calibration, inverses = seconds.values()
    spread = calibration + inverses * windows.tokens / WHOLE
    table(
        f"Calibration on {windows.tokens:,} tokens (medians of {ROUNDS} turns). Inverting takes the same for "
        f"any text: its share of {WHOLE:,} tokens is counted",
        ["pass", "seconds", "tokens per second", "over plain"],
        [
            (name, f"{value:.2f}", f"{windows.tokens / value:,.0f}", f"{value / plain:.2f}")
            for name, value in (
                ("plain forward", plain),
                ("calibration", calibration),
                ("calibration and inverses for repair", spread),
            )
        ]
        + [("the inverses, all layers", f"{inverses:.2f}", "", "")],
    )
