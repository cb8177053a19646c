"""A model is on the frontier unless another is as small and loses as little."""

from math import inf

import pytest

from pruning.evaluation.frontier import on_frontier


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(10, 1.0)], [True]),
        ([(10, 2.0), (20, 1.0)], [True, True]),
        ([(10, 1.0), (20, 2.0)], [True, False]),
        ([(10, 1.0), (10, 2.0), (20, 1.0)], [True, False, False]),
        ([(10, 1.0), (10, 1.0)], [True, True]),
        ([(20, 2.0), (10, 1.0), (20, 2.0)], [False, True, False]),
        ([(10, inf), (20, 1.0), (30, inf)], [True, True, False]),
    ],
    ids=["none", "one", "a trade-off", "worse in both", "worse in one", "equal", "equal and worse", "ruined"],
)
def test_the_frontier_is_what_no_other_point_beats(points, expected):
    assert on_frontier(points) == expected


def test_the_frontier_does_not_depend_on_the_order():
    points = [(60, 3.08), (69, 1.94), (73, 2.52), (78, 1.37), (84, 1.55), (94, 1.09), (145, 1.0), (271, 1.0)]
    best = {point for point, efficient in zip(points, on_frontier(points), strict=True) if efficient}
    assert best == {(60, 3.08), (69, 1.94), (78, 1.37), (94, 1.09), (145, 1.0)}
    backward = points[::-1]
    assert {
        point for point, efficient in zip(backward, on_frontier(backward), strict=True) if efficient
    } == best
