"""A budget → the mix of cuts that loses least: thousands of shapes from the config, a few models measured.

Each kind of cut is tried alone at a few sizes. What it costs in loss, interpolated and added up, ranks
every shape that fits the budget; the best few are made and measured, beside the best of each kind alone.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from pruning.architectures.families import CHANNEL, KEY_VALUE, LAYER, NEURON, QUERY
from pruning.architectures.shape import Shape
from pruning.calibration.calibrate import windows_of
from pruning.errors import RecipeError
from pruning.loading.load import LoadedModel
from pruning.pipeline import prune
from pruning.progress import Progress, Reporter, silent
from pruning.recipe import Recipe
from pruning.steps import Channels, Heads, Layers, Neurons, Reconstruction
from pruning.steps.base import Step
from pruning.text.choice import Calibration
from pruning.text.likelihood import mean_loss, perplexity_of

PROBES = (0.1, 0.25, 0.45)
"""Shares of a kind's units that are cut on trial, to learn what it costs."""

DEEPEST = 0.5
"""No kind loses more than this share of its units; neurons may lose more."""

FINALISTS = 4

QUICK_TOKENS = 4096
"""At most so many calibration tokens are read for each model that a quick search tries."""

RECONSTRUCTED = 2
"""So many of the best models are reconstructed by least squares before the choice."""

SMALLEST_WIDTH = 0.1


@dataclass(frozen=True)
class Budget:
    """At most so many parameters."""

    parameters: int

    @classmethod
    def parse(cls, text: str, shape: Shape, bytes_each: int) -> "Budget":
        """`100M` or `100000000` parameters, `300MB` on disk, `30%` smaller.

        `bytes_each`: bytes of one stored parameter. Raises `RecipeError` for anything else, and for a
        budget that asks for nothing or for the impossible.
        """
        match = re.fullmatch(
            r"\s*([\d.,_]+)\s*(%|[kmg]?b|[kmg]|)\s*(smaller|parameters|on disk|)\s*", str(text), re.IGNORECASE
        )
        try:
            number = float(match[1].replace(",", "").replace("_", ""))
        except (TypeError, ValueError):
            raise RecipeError(
                f"The budget is {str(text)[:40]!r}. Write 100M for parameters, 300MB for the file, or 30% "
                "for so much smaller."
            ) from None
        unit, there = match[2].lower(), shape.parameters
        if unit == "%":
            parameters = there * (1 - number / 100)
        elif unit in ("kb", "mb", "gb"):
            parameters = number * {"k": 1e3, "m": 1e6, "g": 1e9}[unit[0]] / bytes_each
        else:
            parameters = number * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}[unit]
        if not 0 < parameters < there:
            raise RecipeError(
                f"The budget {text} comes to {max(parameters, 0):,.0f} parameters; the model has {there:,}. "
                "Choose a budget between nothing and that."
            )
        return cls(int(parameters))


@dataclass(frozen=True)
class PrunableUnit:
    """One kind of cut in the search: `amounts` are the numbers of units it may remove from a shape."""

    unit: str
    title: str
    amounts: Callable[[Shape], Sequence[int]]
    step: Callable[[Shape, int], Step]


def _every(shape: Shape, unit: str, share: float, multiple: int = 1) -> range:
    return range(multiple, int(shape.count(unit) * share) + 1, multiple)


def _neuron_amounts(shape: Shape) -> range:
    return _every(shape, NEURON, 1 - SMALLEST_WIDTH, max(1, shape.count(NEURON) // 96))


PRUNABLE_UNITS = (
    PrunableUnit(
        LAYER,
        "layers",
        lambda shape: _every(shape, LAYER, DEEPEST),
        lambda shape, n: Layers(count=n),
    ),
    PrunableUnit(
        KEY_VALUE,
        "heads",
        lambda shape: _every(shape, KEY_VALUE, DEEPEST),
        lambda shape, n: Heads(groups=n),
    ),
    PrunableUnit(
        CHANNEL,
        "channels",
        lambda shape: _every(shape, CHANNEL, DEEPEST, max(1, shape.count(CHANNEL) // 32)),
        lambda shape, n: Channels(hidden_size=shape.count(CHANNEL) - n),
    ),
    PrunableUnit(
        NEURON,
        "neurons",
        _neuron_amounts,
        lambda shape, n: Neurons(intermediate_size=shape.count(NEURON) - n),
    ),
)
"""In the order of a recipe: what changes most comes first, so that the rest is calibrated on its result."""


@dataclass(frozen=True)
class Candidate:
    """How many units of each kind go, in the order of `PRUNABLE_UNITS`."""

    amounts: tuple[int, ...]
    parameters: int

    @property
    def title(self) -> str:
        parts = [f"{n:,} {kind.title}" for n, kind in zip(self.amounts, PRUNABLE_UNITS, strict=True) if n]
        return ", ".join(parts) or "nothing"

    @property
    def single(self) -> str | None:
        """The kind, where only one is cut."""
        cut = [kind.title for n, kind in zip(self.amounts, PRUNABLE_UNITS, strict=True) if n]
        return cut[0] if len(cut) == 1 else None


@dataclass(frozen=True)
class Trial:
    """One model that was made and measured. `loss`: nats per token on held-out calibration text."""

    mix: Candidate
    recipe: Recipe
    loss: float

    @property
    def title(self) -> str:
        kinds = {step.step for step in self.recipe.steps}
        return f"{self.mix.title}{', reconstructed' if 'reconstruction' in kinds else ''}"

    @property
    def perplexity(self) -> float:
        return perplexity_of(self.loss)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    `points`: every model measured, by size. `curve`: for falling numbers of parameters, the least
    perplexity that the measured costs predict. `dense`: the base's loss.
    """

    chosen: Trial
    points: tuple[Trial, ...]
    curve: tuple[tuple[int, float], ...]
    dense: float
    shapes_considered: int

    def to_dict(self) -> dict:
        """Plain values: the recipe that was chosen, every point, and the curve."""
        return {
            "recipe": self.chosen.recipe.to_dict(),
            "parameters": self.chosen.mix.parameters,
            "perplexity": self.chosen.perplexity,
            "perplexity_dense": perplexity_of(self.dense),
            "points": [
                {
                    "cut": point.title,
                    "parameters": point.mix.parameters,
                    "perplexity": point.perplexity,
                    "recipe": point.recipe.to_dict(),
                }
                for point in self.points
            ],
            "curve": [{"parameters": size, "perplexity": value} for size, value in self.curve],
            "previewed": self.shapes_considered,
        }


def search(
    base: LoadedModel,
    budget: Budget,
    calibration: Calibration | None = None,
    seed: int = 0,
    progress: Reporter = silent,
    thorough: bool = True,
) -> SearchResult:
    """The mix of cuts within a budget that loses least on held-out calibration text.

    `thorough`: whether layers are chosen by what each is missed, the best models reconstructed, and all of
    the calibration text read for each, which takes several times as long. Raises `RecipeError` where no
    shape fits the budget.
    """
    *_, found = iter_search(base, budget, calibration, seed, progress, thorough)
    return found


def iter_search(
    base: LoadedModel,
    budget: Budget,
    calibration: Calibration | None = None,
    seed: int = 0,
    progress: Reporter = silent,
    thorough: bool = True,
) -> Iterator[Trial | SearchResult]:
    """`search`, telling every point as soon as it is measured, and last what was found."""
    calibration = calibration or Calibration()
    shape = Shape.of(base.model.config)
    mixes = list(_mixes(shape))
    fitting = _largest_fitting(mixes, budget)
    if not fitting:
        least = min(mix.parameters for mix in mixes)
        raise RecipeError(
            f"No shape fits {budget.parameters:,} parameters: the smallest that is tried has {least:,}. "
            "Choose a larger budget, or cut the vocabulary first."
        )
    tried = calibration
    if not thorough:
        tried = calibration.model_copy(update={"tokens": min(calibration.tokens, QUICK_TOKENS)})
    windows = windows_of(base, tried, seed, progress).heldout
    dense = mean_loss(base.model, windows)
    measured: dict[str, Trial] = {}

    def measure(mix: Candidate, recipe: Recipe, stage: str, done: int, total: int) -> Iterator[Trial]:
        if recipe.digest in measured:
            return
        where = Progress(f"{stage} ({mix.title})", done, total)
        progress(where)
        # Steps tell where they are only so that the search can be stopped.
        trial = recipe.model_copy(update={"calibration": tried})
        model = prune(trial, base, lambda _: progress(where)).model
        measured[recipe.digest] = Trial(mix, recipe, mean_loss(model, windows))
        yield measured[recipe.digest]

    def recipe_of(mix: Candidate) -> Recipe:
        steps = [kind.step(shape, n) for kind, n in zip(PRUNABLE_UNITS, mix.amounts, strict=True) if n]
        if thorough:
            steps = [
                step.model_copy(update={"method": "perplexity"}) if isinstance(step, Layers) else step
                for step in steps
            ]
        return Recipe(base=base.source.name, calibration=calibration, steps=steps, seed=seed)

    probes = _probes(shape, mixes)
    for done, mix in enumerate(probes):
        yield from measure(mix, recipe_of(mix), "Trying one cut alone", done, len(probes))
    costs = _costs(dense, measured.values())
    finalists = _finalists(fitting, costs)
    for done, mix in enumerate(finalists):
        yield from measure(mix, recipe_of(mix), "Trying what promises most", done, len(finalists))
    within = [point for point in measured.values() if point.mix.parameters <= budget.parameters]
    best = sorted(within, key=lambda point: point.loss)
    whole = [point for point in best if thorough and _reconstructed(point.recipe)][:RECONSTRUCTED]
    for done, point in enumerate(whole):
        recipe = _reconstructed(point.recipe)
        for refitted in measure(point.mix, recipe, "Reconstructing the best", done, len(whole)):
            best.append(refitted)
            yield refitted
    chosen = min(best, key=lambda point: point.loss)
    points = tuple(sorted(measured.values(), key=lambda point: -point.mix.parameters))
    yield SearchResult(chosen, points, tuple(_curve(mixes, costs, dense)), dense, len(mixes))


def _mixes(shape: Shape) -> Iterator[Candidate]:
    """Every combination of amounts that makes a shape which loads."""
    *others, neurons = PRUNABLE_UNITS
    amounts = [[0, *(() if _fixed(kind, shape) else kind.amounts(shape))] for kind in others]
    for combination in product(*amounts):
        after = shape
        try:
            for kind, n in zip(others, combination, strict=True):
                if n:
                    after = kind.step(shape, n).reshape(after)
        except RecipeError:
            continue
        # The number of parameters is linear in the intermediate size.
        width, parameters = after.count(NEURON), after.parameters
        each = parameters - after.resized(NEURON, width - 1).parameters
        for n in (0, *neurons.amounts(shape)):
            if n or any(combination):
                yield Candidate((*combination, n), parameters - n * each)


def _reconstructed(recipe: Recipe) -> Recipe | None:
    """The same cuts, what writes from heads and neurons refitted at the end instead of one by one; None
    where the dense model's residual stream is no goal, since channels are gone."""
    if any(isinstance(step, Channels) for step in recipe.steps):
        return None
    steps = [
        step.model_copy(update={"repair": False}) if isinstance(step, Heads | Neurons) else step
        for step in recipe.steps
    ]
    return recipe.model_copy(update={"steps": (*steps, Reconstruction(epochs=0))})


def _fixed(kind: PrunableUnit, shape: Shape) -> bool:
    """Whether the family cannot lose units of this kind."""
    return (QUERY if kind.unit == KEY_VALUE else kind.unit) in shape.anatomy.family.unprunable


def _largest_fitting(mixes: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """Of the shapes within the budget, for each choice of the other kinds the one with most neurons."""
    best: dict[tuple[int, ...], Candidate] = {}
    for mix in mixes:
        others = mix.amounts[:-1]
        if mix.parameters <= budget.parameters and (
            others not in best or mix.parameters > best[others].parameters
        ):
            best[others] = mix
    return list(best.values())


def _probes(shape: Shape, mixes: Sequence[Candidate]) -> list[Candidate]:
    """For each kind, the amounts nearest to the shares of `PROBES`."""
    probes = {}
    for place, kind in enumerate(PRUNABLE_UNITS):
        alone = [mix for mix in mixes if mix.single == kind.title]
        for share in PROBES if alone else ():
            wanted = share * shape.count(kind.unit)
            mix = min(alone, key=lambda mix: abs(mix.amounts[place] - wanted))
            probes[mix.amounts] = mix
    return list(probes.values())


Costs = Sequence[Sequence[tuple[int, float]]]


def _costs(dense: float, points) -> Costs:
    """For each kind, how much the loss grows with the units removed: measured points, from (0, 0) on."""
    costs = []
    for place, kind in enumerate(PRUNABLE_UNITS):
        alone = [point for point in points if point.mix.single == kind.title]
        costs.append([(0, 0.0), *sorted((point.mix.amounts[place], point.loss - dense) for point in alone)])
    return costs


def _cost(curve: Sequence[tuple[int, float]], amount: int) -> float:
    """Between measured points, a straight line; beyond the last, on along the last one."""
    if amount == 0 or len(curve) < 2:
        return 0.0 if amount == 0 else math.inf
    (x0, y0), (x1, y1) = next((pair for pair in pairwise(curve) if amount <= pair[1][0]), curve[-2:])
    return y0 + (y1 - y0) * (amount - x0) / (x1 - x0)


def _predicted(mix: Candidate, costs: Costs) -> float:
    return sum(_cost(curve, n) for curve, n in zip(costs, mix.amounts, strict=True))


def _finalists(fitting: Sequence[Candidate], costs: Costs) -> list[Candidate]:
    """The best predicted, width alone among them (Minitron: width before depth), and the best of each
    kind alone."""
    ranked = sorted(fitting, key=lambda mix: _predicted(mix, costs))
    chosen = {mix.amounts: mix for mix in ranked[:FINALISTS]}
    depth = next(place for place, kind in enumerate(PRUNABLE_UNITS) if kind.unit == LAYER)
    width_alone = [mix for mix in ranked if not mix.amounts[depth]]
    alone = [[mix for mix in ranked if mix.single == kind.title] for kind in PRUNABLE_UNITS]
    for group in (width_alone, *alone):
        chosen |= {mix.amounts: mix for mix in group[:1]}
    return list(chosen.values())


def _curve(mixes: Sequence[Candidate], costs: Costs, dense: float) -> Iterator[tuple[int, float]]:
    """The least predicted perplexity at each size, from large to small."""
    best: dict[int, float] = {}
    step = max(mix.parameters for mix in mixes) / 60
    for mix in mixes:
        place = int(mix.parameters / step)
        best[place] = min(best.get(place, math.inf), _predicted(mix, costs))
    for place in sorted(best, reverse=True):
        if best[place] < math.inf:
            yield int(place * step), perplexity_of(dense + best[place])
