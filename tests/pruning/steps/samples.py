"""One sample for each step, from which the tests of all steps are made. A new step needs one row."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from pruning import (
    Channels,
    Distillation,
    Experts,
    Heads,
    Layers,
    Neurons,
    Reconstruction,
    Vocabulary,
    Weights,
)
from pruning.steps import STEPS
from pruning.steps.base import Step


@dataclass(frozen=True)
class Sample:
    """Settings of a step that suit every small model of `tests.helpers.models`.

    Attributes:
        alone: Settings that are tested alone.
        together: Settings for pairs and triples with other steps; the first of `alone` if empty.
        random: Settings for a small model of three layers, for random sequences; None to leave the step out.
        in_matrix: Whether the step is tested with every family and every other step; otherwise its own tests
            cover it.
    """

    alone: Sequence[Step]
    together: Sequence[Step] = ()
    random: st.SearchStrategy | None = None
    in_matrix: bool = True


SAMPLES: dict[str, Sample] = {
    "layers": Sample(
        alone=(Layers(count=1, method="last"), Layers(count=1, protect=False)),
        together=(Layers(count=1, method="last"), Layers(layers=(0,)), Layers(count=1, method="first")),
        random=st.builds(
            Layers, layers=st.sampled_from([(0,), (1,), (2,), (0, 2), (1, 2)]), repair=st.booleans()
        ),
    ),
    "experts": Sample(
        alone=(Experts(fraction=0.5), Experts(num_experts=2, criterion="random")), in_matrix=False
    ),
    "heads": Sample(
        alone=(
            Heads(groups=1),
            Heads(queries=1, criterion="minitron"),
            Heads(num_key_value_heads=1, queries=1),
        ),
        together=(Heads(groups=1), Heads(queries=1), Heads(num_key_value_heads=1, repair=False)),
        random=st.sampled_from([Heads(groups=1), Heads(queries=1), Heads(groups=1, queries=1, repair=False)]),
    ),
    "neurons": Sample(
        alone=(Neurons(fraction=0.3),),
        together=(
            Neurons(fraction=0.3),
            Neurons(fraction=0.3, criterion="l2"),
            Neurons(intermediate_size=32),
        ),
        random=st.builds(
            Neurons,
            fraction=st.floats(0.05, 0.9),
            criterion=st.sampled_from(["activation", "peak_to_peak", "random"]),
        ),
    ),
    "reconstruction": Sample(alone=(Reconstruction(epochs=1),), in_matrix=False),
    "channels": Sample(
        alone=(Channels(fraction=0.3),),
        together=(
            Channels(fraction=0.3),
            Channels(fraction=0.3, repair=False),
            Channels(hidden_size=24, criterion="minitron"),
        ),
        random=st.builds(
            Channels,
            fraction=st.floats(0.15, 0.9),
            criterion=st.sampled_from(["minitron", "energy"]),
            repair=st.booleans(),
        ),
    ),
    "vocabulary": Sample(alone=(Vocabulary(fraction=0.1),)),
    "distillation": Sample(alone=(Distillation(steps=1),), in_matrix=False),
    "weights": Sample(
        alone=(Weights(fraction=0.5),),
        together=(Weights(fraction=0.5), Weights(fraction=0.3, criterion="magnitude")),
        random=st.builds(
            Weights, fraction=st.floats(0.3, 0.95), criterion=st.sampled_from(["wanda", "magnitude"])
        ),
    ),
}

FURTHER = (
    (Channels(fraction=0.3), Weights(pattern="4:8", criterion="magnitude")),
    (Neurons(intermediate_size=32), Heads(groups=1), Weights(pattern="2:4")),
)
"""Combinations that only some sizes allow."""


def combinations() -> dict[str, list[Step]]:
    """Every step of the matrix alone, every pair, and triples that hold every pair; numbered by name."""
    names = [name for name in STEPS if SAMPLES[name].in_matrix]
    pairs = [
        pair
        for pair in itertools.combinations(names, 2)
        if not all(STEPS[name].must_be_last for name in pair)
    ]
    groups = [*pairs, *_triples(names, pairs)]
    sequences: list[list[Step]] = [
        *([step] for name in names for step in SAMPLES[name].alone),
        *(_sequence(group, number) for number, group in enumerate(groups)),
        *map(list, FURTHER),
    ]
    return {
        f"{number:02} {' + '.join(step.step for step in steps)}": steps
        for number, steps in enumerate(sequences)
    }


def _triples(names: Sequence[str], pairs: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Choose triples until every pair is in one, each time the triple with the most pairs that are left."""
    left = set(pairs)

    def gain(triple: tuple[str, ...]) -> int:
        return len(left.intersection(itertools.combinations(triple, 2)))

    triples = [
        triple
        for triple in itertools.combinations(names, 3)
        if sum(bool(STEPS[name].must_be_last) for name in triple) <= 1
    ]
    while left and triples:
        best = max(triples, key=gain)
        if not gain(best):
            return
        left.difference_update(itertools.combinations(best, 2))
        yield best


def _sequence(names: Sequence[str], number: int) -> list[Step]:
    """Turn names into steps: settings and order vary with the number; what must be last is last."""
    order = names if number % 2 == 0 else names[::-1]
    ordered = sorted(order, key=lambda name: bool(STEPS[name].must_be_last))
    options = [SAMPLES[name].together or SAMPLES[name].alone[:1] for name in ordered]
    return [steps[number % len(steps)] for steps in options]
