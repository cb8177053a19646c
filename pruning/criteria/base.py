"""What every criterion is: a score for each neuron of one layer, and the words that explain it."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pruning.calibration.statistics import InputMoments
from pruning.errors import PruningError, RecipeError
from pruning.lazy import torch


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


Score = Callable[[MLP, InputMoments | None, "torch.Generator"], "torch.Tensor"]
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
        digest: If it is not a part of Secateur, twelve hexadecimal digits of its source code.
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
    digest: str = ""

    @property
    def key(self) -> str:
        """The name in recipes; that of a user's own criterion carries its digest, because the file may change."""
        return f"{self.name}@{self.digest}" if self.digest else self.name

    def scores(
        self, mlp: MLP, moments: InputMoments | None, generator: torch.Generator, place: str
    ) -> torch.Tensor:
        """Return the scores of one layer, checked.

        Args:
            mlp: Its matrices; a user's own criterion is given copies.
            moments: The moments of its activations, if the criterion needs them.
            generator: A generator of random numbers, seeded for the layer.
            place: What an error calls the layer.

        Raises:
            RecipeError: They are not finite; or, of a user's own criterion, it failed or gave something else.
        """
        if not self.digest:
            scores = self.score(mlp, moments, generator)
        else:
            mlp = MLP(tuple(each.clone() for each in mlp.input_weights), mlp.output_weight.clone())
            if moments is not None:
                moments = InputMoments(moments.square.clone(), moments.sequence.clone())
            scores = self._own_scores(mlp, moments, generator, place)
        if not torch.isfinite(scores).all():
            if self.digest:
                raise RecipeError(
                    f"The scores of {place} by {self.name} are not finite. Correct the criterion."
                )
            raise RecipeError(
                f"The scores of {place} are not finite: the weights or the calibration "
                "text are damaged. Load the model again or choose another text."
            )
        return scores

    def _own_scores(
        self, mlp: MLP, moments: InputMoments | None, generator: torch.Generator, place: str
    ) -> torch.Tensor:
        try:
            with torch.no_grad():
                scores: object = self.score(mlp, moments, generator)
        except PruningError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0][:300]
            raise RecipeError(
                f"The criterion {self.name} failed in {place}: {type(error).__name__}: {reason}"
            ) from error
        neurons = mlp.output_weight.shape[1]
        expected = (len(mlp.input_weights), neurons) if self.gated_only else (neurons,)
        if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != expected:
            found = (
                f"the shape {[*scores.shape]}" if isinstance(scores, torch.Tensor) else type(scores).__name__
            )
            raise RecipeError(
                f"The criterion {self.name} gave {found} in {place}; one score for each neuron is needed, "
                f"{[*expected]}."
            )
        return scores.detach()


def _gate(mlp: MLP) -> torch.Tensor:
    if len(mlp.input_weights) < 2:
        raise RecipeError(
            "The criterion needs a gate, and this model's MLP has none. Choose another criterion."
        )
    return mlp.input_weights[0]


INPUTS: Mapping[str, Callable[[MLP, Any, torch.Generator], object]] = {
    "mlp": lambda mlp, moments, generator: mlp,  # noqa: ARG005
    "gate": lambda mlp, moments, generator: _gate(mlp),  # noqa: ARG005
    "up": lambda mlp, moments, generator: mlp.input_weights[-1],  # noqa: ARG005
    "down": lambda mlp, moments, generator: mlp.output_weight,  # noqa: ARG005
    "moments": lambda mlp, moments, generator: moments,  # noqa: ARG005
    "square": lambda mlp, moments, generator: moments.square,  # noqa: ARG005
    "sequence": lambda mlp, moments, generator: moments.sequence,  # noqa: ARG005
    "generator": lambda mlp, moments, generator: generator,  # noqa: ARG005
}
"""What a criterion may name as parameters."""

OF_ACTIVATIONS = frozenset({"moments", "square", "sequence"})
"""Those of them that need a pass over calibration text."""

BUILT_IN: set[str] = set()
"""The names of the criteria that are part of Secateur."""

OWN: dict[str, Criterion] = {}
"""The criteria that the user of this process has defined, by name and by key. None is ever read from a recipe."""


def criterion(
    name: str | None = None,
    *,
    source: str,
    title: str = "",
    formula: str = "",
    url: str = "",
    gated_only: bool = False,
    warning: str = "",
    published_name: str = "",
) -> Callable[[Callable[..., torch.Tensor]], Criterion]:
    """Make a criterion of a function that scores the neurons of one layer, of which the highest are kept.

    The function names what it reads as parameters, any of these:

    - `gate`, `up`: the matrices that read the residual stream, each `[neurons, channels]`; without a gate, only `up`;
    - `down`: the matrix that writes to the residual stream, `[channels, neurons]`;
    - `square`: E[a²] of each neuron's activation a on the calibration text, `[neurons]`;
    - `sequence`: the L2 norm over windows of the mean over tokens of |a|, `[neurons]`;
    - `mlp`, `moments`: all matrices, and all moments, in one value;
    - `generator`: a `torch.Generator`, seeded for the layer.

    It returns one score for each neuron, `[neurons]`. Pass the criterion, or its name, to `Neurons`. A recipe holds the
    name and a digest of the function's source; to run the recipe, define the criterion first.

    Args:
        name: The name in recipes; by default that of the function.
        source: Where the formula comes from.
        title: What it measures, in a few words; by default the name.
        formula: The score of neuron j.
        url: A link to the source.
        gated_only: Whether it scores gate and up separately, `[2, neurons]`.
        warning: What to know before choosing it.
        published_name: Its name in release 0.1.0, if that was another one.

    Returns:
        A decorator that turns the function into a `Criterion`.

    Raises:
        TypeError: The function names another parameter.
        RecipeError: The name is one of Secateur's own criteria.

    Example:
        >>> import pruning
        >>> @pruning.criterion("output_norm", source="The second factor of Wanda alone")
        ... def output_norm(down):
        ...     return down.norm(dim=0)
        >>> pruned = pruning.prune("smollm2-135m", steps=pruning.Neurons(fraction=0.2, criterion=output_norm))
    """

    def decorate(function: Callable[..., torch.Tensor]) -> Criterion:
        used = inspect.signature(function).parameters.keys()
        if unknown := sorted(used - INPUTS.keys()):
            raise TypeError(
                f"{function.__name__} names {unknown[0]!r}; a criterion may name {', '.join(INPUTS)}"
            )

        def score(mlp: MLP, moments: InputMoments | None, generator: torch.Generator) -> torch.Tensor:
            return function(**{each: INPUTS[each](mlp, moments, generator) for each in used})

        made = Criterion(
            name=name or function.__name__,
            title=title or name or function.__name__,
            formula=formula,
            source=source,
            url=url,
            score=score,
            needs_calibration=bool(used & OF_ACTIVATIONS),
            gated_only=gated_only,
            warning=warning,
            published_name=published_name,
        )
        if function.__module__.startswith(__name__.rpartition(".")[0] + "."):
            BUILT_IN.add(made.name)
            return made
        return _register(replace(made, digest=_digest(function)))

    return decorate


def _digest(function: Callable[..., Any]) -> str:
    """Return a digest of a function's source, or of its bytecode if the source is missing: 12 hexadecimal digits."""
    try:
        code = inspect.getsource(function).encode()
    except (OSError, TypeError):
        code = function.__code__.co_code + repr(function.__code__.co_consts).encode()
    return hashlib.sha256(code).hexdigest()[:12]


def _register(made: Criterion) -> Criterion:
    if not made.name.isidentifier():
        raise RecipeError(
            f"{made.name[:60]!r} is not the name of a criterion: letters, digits and _ make one."
        )
    if made.name in BUILT_IN:
        raise RecipeError(f"Secateur has a criterion {made.name} itself. Choose another name.")
    OWN[made.name] = OWN[made.key] = made
    return made
