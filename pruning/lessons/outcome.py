"""Which answer to a prediction the metrics of a run show, if they show one."""

from collections.abc import Callable

from pruning.lessons.metrics import Metrics

Outcome = Callable[[Metrics], int | None]
"""Returns the position of the answer that metrics show, counted from 0; None if they show none of them."""


def within(metric: str, *ranges: tuple[float, float]) -> Outcome:
    """Return an outcome that is the answer in whose range a metric lies.

    Args:
        metric: The name of the metric.
        ranges: For each answer the lower end, included, and the upper end, excluded.
    """

    def find(metrics: Metrics) -> int | None:
        value = _number(metrics, metric)
        return next((place for place, (low, high) in enumerate(ranges) if low <= value < high), None)

    return find


def largest(*names: str) -> Outcome:
    """Return an outcome that is the answer whose metric is the largest; none if all are 0.

    Args:
        names: The name of a metric for each answer.
    """

    def find(metrics: Metrics) -> int | None:
        values = [_number(metrics, name) for name in names]
        return values.index(max(values)) if max(values) > 0 else None

    return find


def smallest(*names: str) -> Outcome:
    """Return an outcome that is the answer whose metric is the smallest.

    Args:
        names: The name of a metric for each answer.
    """

    def find(metrics: Metrics) -> int | None:
        values = [_number(metrics, name) for name in names]
        return values.index(min(values))

    return find


def _number(metrics: Metrics, name: str) -> float:
    value = metrics[name]
    if isinstance(value, str):
        raise TypeError(f"The metric {name} is a text, so it cannot be compared.")
    return value
