"""Time of the calibration pass, over a plain forward pass of the same tokens."""

from dataclasses import replace

import torch

from benchmarks.common import ROUNDS, base, medians, table
from pruning import Calibration, Neurons
from pruning.architectures.shape import Shape
from pruning.calibration.calibrate import windows_of
from pruning.calibration.statistics import Statistics

TOKENS = 2048
DEFAULT_TOKENS = 8192
"""Tokens of the default calibration, over which the time of the inverses is spread."""


def main() -> None:
    """Time a forward pass, a calibration pass and the inverses that repair needs, and print a table."""
    model = base().model
    windows = windows_of(base(), Calibration(tokens=TOKENS))
    projections = Neurons(fraction=0.2).hooked_modules(Shape.of(model.config))
    latest: list[Statistics] = []

    def calibrate() -> None:
        latest[:] = [Statistics(model, projections, windows.fitting, windows.heldout)]

    def invert() -> None:
        for projection in projections:
            # The inverse is a cached property: a copy computes it again.
            replace(latest[0].gram(projection)).inverse  # noqa: B018

    def forward() -> None:
        with torch.inference_mode():
            for window in windows.fitting + windows.heldout:
                model(input_ids=window[None], use_cache=False)

    calibrate()
    seconds = medians({"plain": forward, "calibration": calibrate, "inverses": invert})
    plain, calibration, inverses = seconds.values()
    with_repair = calibration + inverses * windows.tokens / DEFAULT_TOKENS
    table(
        f"Calibration on {windows.tokens:,} tokens (medians of {ROUNDS} turns). Inverting takes the same "
        f"time for any text: its share of {DEFAULT_TOKENS:,} tokens is counted",
        ["pass", "seconds", "tokens per second", "over plain"],
        [
            (name, f"{value:.2f}", f"{windows.tokens / value:,.0f}", f"{value / plain:.2f}")
            for name, value in (
                ("plain forward", plain),
                ("calibration", calibration),
                ("calibration and inverses for repair", with_repair),
            )
        ]
        + [("the inverses, all layers", f"{inverses:.2f}", "", "")],
    )
