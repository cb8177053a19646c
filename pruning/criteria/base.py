"""What every criterion is: a score for each neuron of one layer, and the words that explain it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pruning.calibration.statistics import InputMoments


@dataclass(frozen=True)
class MLP:
    """The matrices of one layer's MLP, oriented alike in every family.

    `input_weights`: the matrices that read the residual stream, each `[neurons, channels]`; gate first and
    up second where the MLP is gated. `output_weight`: the matrix that writes back, `[channels, neurons]`.
    """

    input_weights: tuple[torch.Tensor, ...]
    output_weight: torch.Tensor


Score = Callable[[MLP, InputMoments | None, torch.Generator], torch.Tensor]
"""Scores `[neurons]`, higher is kept; or `[len(reads), neurons]` to rank each matrix apart."""


@dataclass(frozen=True)
class Criterion:
    """A way to rank neurons. `needs_calibration`: whether it needs a pass over calibration text."""

    name: str
    title: str
    formula: str
    source: str
    url: str
    score: Score
    needs_calibration: bool = False
    gated_only: bool = False
    warning: str = ""
