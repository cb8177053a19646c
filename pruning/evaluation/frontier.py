"""Which of several models are on the frontier of size and loss."""

from collections.abc import Sequence


def on_frontier(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return for each point whether it is on the frontier: no other is as small and loses as little.

    Args:
        points: The size and the loss of each model. Smaller is better in both.

    Returns:
        One value for each point, in the same order. Equal points are on the frontier together, or none of them is.

    Example:
        >>> from pruning.evaluation.frontier import on_frontier
        >>> on_frontier([(60, 3.1), (78, 1.4), (94, 1.5)])
        [True, True, False]
    """
    return [
        not any(other[0] <= point[0] and other[1] <= point[1] and other != point for other in points)
        for point in points
    ]
