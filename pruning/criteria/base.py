"""What every criterion is: a score for each neuron of one layer, and the words that explain it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pruning.calibration.statistics import SiteMoments


@dataclass(frozen=True)
class MLP:
    """The matrices of one layer's MLP, oriented alike in every family.

    `reads`: the matrices that read the residual stream, each `[neurons, channels]`; gate first and
    up second where the MLP is gated. `write`: the matrix that writes back, `[channels, neurons]`.
    """

    reads: tuple[torch.Tensor, ...]
    write: torch.Tensor


Score = Callable[[MLP, SiteMoments | None, torch.Generator], torch.Tensor]
"""Scores `[neurons]`, higher is kept; or `[len(reads), neurons]` to rank each matrix apart."""


@dataclass(frozen=True)
class Criterion:
    """A way to rank neurons. `statistics`: whether it needs a pass over calibration text."""

    name: str
    title: str
    formula: str
    source: str
    url: str
    score: Score
    statistics: bool = False
    gated_only: bool = False
    warning: str = ""
