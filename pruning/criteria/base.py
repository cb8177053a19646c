"""What every criterion is: a score for each neuron of one layer, and the words that explain it."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pruning.calibration.statistics import InputMoments


@dataclass(frozen=True)
class MLP:
    """The matrices of one layer's MLP, oriented alike in every family.

    Attributes:
        input_weights: The matrices that read the residual stream, each `[neurons, channels]`; in a gated MLP
            the gate first and up second.
        output_weight: The matrix that writes to the residual stream, `[channels, neurons]`.
    """

    input_weights: tuple[torch.Tensor, ...]
    output_weight: torch.Tensor


Score = Callable[[MLP, InputMoments | None, torch.Generator], torch.Tensor]
"""Scores the neurons of one layer: `[neurons]`, of which the highest are kept, or `[matrices, neurons]` of a
`gated_only` criterion, to rank each input matrix separately."""


@dataclass(frozen=True)
class Criterion:
    """A way to rank neurons.

    Attributes:
        name: The name in recipes, and of the file.
        title: The name on the page.
        formula: The score of neuron j.
        source: Where the formula comes from.
        url: A link to the source; empty if there is none.
        score: The function itself.
        needs_calibration: Whether it needs a pass over calibration text.
        gated_only: Whether it scores gate and up separately, which an MLP without a gate does not allow.
        warning: What to know before choosing it; empty if there is nothing.
        published_name: Its name in release 0.1.0, if that was another one.
    """

    name: str
    title: str
    formula: str
    source: str
    url: str
    score: Score
    needs_calibration: bool = False
    gated_only: bool = False
    warning: str = ""
    published_name: str = ""


def criterion(
    *,
    title: str,
    formula: str,
    source: str,
    url: str = "",
    gated_only: bool = False,
    warning: str = "",
    published_name: str = "",
) -> Callable[[Callable[..., torch.Tensor]], Criterion]:
    """Make a criterion of a function, whose name is the criterion's.

    The function names the inputs that it uses, any of `mlp: MLP`, `moments: InputMoments` (of the output
    projection's inputs on calibration text) and `generator: torch.Generator` (seeded for the layer); naming
    `moments` makes it a criterion that `needs_calibration`. It returns scores, as `Score` describes.

    Args:
        title: See `Criterion`, as for the others.
        formula: The score of neuron j.
        source: Where the formula comes from.
        url: A link to the source.
        gated_only: Whether it scores gate and up separately.
        warning: What to know before choosing it.
        published_name: Its name in release 0.1.0, if that was another one.
    """

    def decorate(function: Callable[..., torch.Tensor]) -> Criterion:
        used = inspect.signature(function).parameters.keys()

        def score(mlp: MLP, moments: InputMoments | None, generator: torch.Generator) -> torch.Tensor:
            inputs = {"mlp": mlp, "moments": moments, "generator": generator}
            return function(**{name: inputs[name] for name in used})

        return Criterion(
            name=function.__name__,
            title=title,
            formula=formula,
            source=source,
            url=url,
            score=score,
            needs_calibration="moments" in used,
            gated_only=gated_only,
            warning=warning,
            published_name=published_name,
        )

    return decorate
