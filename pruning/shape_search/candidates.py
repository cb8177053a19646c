"""The shapes that a search considers, each computed from the config alone."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import lcm

from pruning.architectures.families import CHANNEL, KEY_VALUE, LAYER, NEURON, QUERY, UNITS
from pruning.architectures.reasons import reason_against
from pruning.architectures.shape import Shape
from pruning.errors import RecipeError
from pruning.shape_search.budget import Budget
from pruning.steps import Channels, Heads, Layers, Neurons
from pruning.steps.neurons import can_repair, multiple_of_neurons
from pruning.steps.sizes import default_multiple

PROBED_SHARES = (0.1, 0.25, 0.45)
"""Shares of a kind of unit that are removed alone, to measure what removing it costs."""

LARGEST_SHARE = 0.5
"""No kind loses more than this share of its units, except neurons."""

SMALLEST_WIDTH = 0.1
"""The share of the neurons that every candidate keeps."""

CutStep = Layers | Heads | Channels | Neurons


@dataclass(frozen=True)
class PrunableUnit:
    """A kind of unit that the search may remove.

    Attributes:
        unit: Its name in `Shape`.
        title: Its name for people, in the plural.
        amounts: For the shape of a base, and what widths are a multiple of, the numbers of units that may be
            removed (of each layer, if `per_layer`).
        step: For the shape of a base and a number of units, the step that removes them.
        per_layer: Whether the units are counted within each layer.
    """

    unit: str
    title: str
    amounts: Callable[[Shape, int | None], Sequence[int]]
    step: Callable[[Shape, int], CutStep]
    per_layer: bool = False

    def named(self, count: int) -> str:
        """Return a number of units in words, such as `1 layer` or `384 neurons`."""
        return f"{count:,} {self.title if count != 1 else self.title.removesuffix('s')}"


def _multiples(shape: Shape, unit: str, share: float, step: int = 1) -> range:
    """Return the numbers of units up to a share of them, in steps."""
    return range(step, int(shape.count(unit) * share) + 1, step)


def _widths(
    shape: Shape, unit: str, share: float, levels: int, multiple_of: int | None, step: int = 1
) -> range:
    """Return the numbers of units up to a share of them that leave widths which deploy, as `nearest_size` does.

    Args:
        shape: The shape of the base.
        unit: The kind of unit.
        share: The largest share that is removed.
        levels: About how many widths to consider, from the whole to nothing.
        multiple_of: What the width is a multiple of; None for the default.
        step: What the width must be a multiple of.
    """
    size = shape.count(unit)
    multiple = default_multiple(size, step) if multiple_of is None else lcm(step, multiple_of)
    stride = multiple * max(1, size // (levels * multiple))
    return range(size - (size - 1) // multiple * multiple, int(size * share) + 1, stride)


PRUNABLE_UNITS = (
    PrunableUnit(
        LAYER,
        "layers",
        lambda shape, _: _multiples(shape, LAYER, LARGEST_SHARE),
        lambda _, count: Layers(count=count),
    ),
    PrunableUnit(
        KEY_VALUE,
        "key-value heads",
        lambda shape, _: _multiples(shape, KEY_VALUE, LARGEST_SHARE),
        lambda _, count: Heads(groups=count),
        per_layer=True,
    ),
    PrunableUnit(
        CHANNEL,
        "channels",
        lambda shape, multiple: _widths(shape, CHANNEL, LARGEST_SHARE, 32, multiple, shape.count(QUERY)),
        lambda shape, count: Channels(hidden_size=shape.count(CHANNEL) - count),
    ),
    PrunableUnit(
        NEURON,
        "neurons",
        lambda shape, multiple: _widths(
            shape, NEURON, 1 - SMALLEST_WIDTH, 96, multiple, multiple_of_neurons(shape)
        ),
        lambda shape, count: Neurons(intermediate_size=shape.count(NEURON) - count, repair=can_repair(shape)),
        per_layer=True,
    ),
)
"""In the order of a recipe: what changes most comes first, so that the rest is calibrated on its result."""


@dataclass(frozen=True)
class Candidate:
    """A shape that a search considers.

    Attributes:
        amounts: How many units of each kind are removed, in the order of `PRUNABLE_UNITS`.
        parameters: The parameters that remain.
    """

    amounts: tuple[int, ...]
    parameters: int

    @property
    def removed(self) -> list[tuple[PrunableUnit, int]]:
        """The kinds that lose units, and how many."""
        return [(kind, count) for kind, count in zip(PRUNABLE_UNITS, self.amounts, strict=True) if count]

    @property
    def title(self) -> str:
        """What is removed, in short: `5 layers, 384 neurons`."""
        return ", ".join(kind.named(count) for kind, count in self.removed) or "nothing"

    @property
    def description(self) -> str:
        """What is removed, as part of a sentence: `5 layers and 384 neurons per layer`."""
        parts = [kind.named(count) + " per layer" * kind.per_layer for kind, count in self.removed]
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) or "nothing"

    @property
    def single(self) -> str | None:
        """The title of the kind that loses units, if only one does."""
        return self.removed[0][0].title if len(self.removed) == 1 else None


STEP_NAMES = ("layers", "heads", "channels", "neurons")
"""The steps that remove the units of `PRUNABLE_UNITS`, in their order."""


def all_candidates(
    shape: Shape, steps: Collection[str] | None = None, multiple_of: int | None = None
) -> Iterator[Candidate]:
    """Yield every combination of amounts that gives a model which loads.

    Args:
        shape: The shape of the base.
        steps: Which of `STEP_NAMES` may be used; None for all.
        multiple_of: What widths are a multiple of; None for the default.

    Raises:
        RecipeError: There is no such step.
    """
    if unknown := set(steps or ()) - set(STEP_NAMES):
        raise RecipeError(f"A search has no step {min(unknown)!r}. Choose from {', '.join(STEP_NAMES)}.")

    def possible(kind: PrunableUnit) -> Sequence[int]:
        name = STEP_NAMES[PRUNABLE_UNITS.index(kind)]
        left_out = (steps is not None and name not in steps) or _is_unprunable(kind, shape)
        return () if left_out else kind.amounts(shape, multiple_of)

    *others, neurons = PRUNABLE_UNITS
    widths = possible(neurons)
    amounts = [[0, *possible(kind)] for kind in others]
    for combination in product(*amounts):
        reshaped = shape
        try:
            for kind, count in zip(others, combination, strict=True):
                if count:
                    reshaped = kind.step(shape, count).reshape(reshaped)
        except RecipeError:
            continue
        # The number of parameters is linear in the intermediate size.
        width, parameters = reshaped.count(NEURON), reshaped.parameters
        per_neuron = parameters - reshaped.resized(NEURON, width - 1).parameters
        for count in (0, *widths):
            if count or any(combination):
                yield Candidate((*combination, count), parameters - count * per_neuron)


def _is_unprunable(kind: PrunableUnit, shape: Shape) -> bool:
    """Return whether models of this type cannot lose units of this kind."""
    return any(
        reason_against(shape.anatomy, name) is not None for name, unit in UNITS.items() if unit == kind.unit
    )


def largest_within(
    candidates: Sequence[Candidate], budget: Budget, allows: Callable[[Candidate], bool] | None = None
) -> list[Candidate]:
    """Return, for each combination of the other kinds, the candidate within the budget with most neurons.

    Args:
        candidates: All candidates.
        budget: The budget.
        allows: Whether a candidate is within it; by default by its parameters alone.

    Raises:
        RecipeError: No candidate is within the budget.
    """
    if allows is None:
        most = budget.parameters

        def allows(candidate: Candidate) -> bool:
            return most is None or candidate.parameters <= most

    largest: dict[tuple[int, ...], Candidate] = {}
    for candidate in candidates:
        others = candidate.amounts[:-1]
        if (others not in largest or candidate.parameters > largest[others].parameters) and allows(candidate):
            largest[others] = candidate
    if not candidates:
        raise RecipeError("Nothing of this model can be cut by these steps. Allow other steps.")
    if not largest:
        smallest = min(candidate.parameters for candidate in candidates)
        raise RecipeError(
            f"No shape has {budget.describe()}: the smallest that is searched has {smallest:,} parameters. Choose a "
            "larger budget, or cut the vocabulary first."
        )
    return list(largest.values())


def probes(shape: Shape, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return, for each kind of unit, the candidates nearest to `PROBED_SHARES` that remove it alone."""
    chosen: dict[tuple[int, ...], Candidate] = {}
    for place, kind in enumerate(PRUNABLE_UNITS):
        alone = [candidate for candidate in candidates if candidate.single == kind.title]
        for share in PROBED_SHARES if alone else ():
            target = share * shape.count(kind.unit)
            nearest = min(alone, key=lambda candidate: abs(candidate.amounts[place] - target))
            chosen[nearest.amounts] = nearest
    return list(chosen.values())
