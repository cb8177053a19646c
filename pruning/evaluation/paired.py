"""What two models did on the same items, compared with intervals that hold for few items too."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95

_NUISANCE = 0.1
"""The share of the error that `paired_difference` spends on how many items two models differ in."""


@dataclass(frozen=True)
class Interval:
    """A difference, the other model's value less the base's, and the interval that covers the true one.

    Attributes:
        low: The lower end.
        difference: The difference on these items.
        high: The upper end.
        confidence: How often such an interval covers the true difference, at least.
    """

    low: float
    difference: float
    high: float
    confidence: float = CONFIDENCE

    @property
    def excludes_zero(self) -> bool:
        """Whether the difference is more than chance would explain."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Share:
    """A share of items, and the interval that covers the true one.

    Attributes:
        low: The lower end; 0 without items.
        share: The share of these items; None if there are none.
        high: The upper end; 1 without items.
        items: The number of items that it is a share of.
        confidence: How often such an interval covers the true share, at least.
    """

    low: float
    share: float | None
    high: float
    items: int
    confidence: float = CONFIDENCE


def paired_difference(
    base: Sequence[bool], other: Sequence[bool], confidence: float = CONFIDENCE
) -> Interval:
    """Compare how many of the same items two models got, with an exact interval.

    Only the items that one model got and the other did not tell them apart. The difference is d = π · (2p − 1):
    π is the share of such items, and p the share of them that the other model got. Each has an exact binomial
    interval (Clopper & Pearson, 1934), that of p given the number of such items, as in McNemar's exact test
    (1947). The bound of d is its extreme over both (Berger & Boos, 1994): a tenth of the error is spent on π, the
    rest on p. So the interval covers the true difference at least as often as it says, whatever π is; and it
    excludes zero exactly if McNemar's exact test rejects at 0.9 times the error.

    Args:
        base: For each item, whether the base got it.
        other: For each item in the same order, whether the other model got it.
        confidence: How often the interval is to cover the true difference, between 0 and 1.

    Returns:
        The difference in accuracy, other less base, from -1 to 1.

    Raises:
        ValueError: There is no item, the sequences differ in length, or the confidence is out of range.
    """
    _check(base, other, confidence)
    gained = sum(not before and after for before, after in zip(base, other, strict=True))
    lost = sum(before and not after for before, after in zip(base, other, strict=True))
    differing, items, error = gained + lost, len(base), 1 - confidence
    least, most = _binomial_interval(differing, items, error * _NUISANCE)
    worst, best = _binomial_interval(gained, differing, error * (1 - _NUISANCE))
    low = min(share * (2 * worst - 1) for share in (least, most))
    high = max(share * (2 * best - 1) for share in (least, most))
    return Interval(low, (gained - lost) / items, high, confidence)


def paired_mean_difference(
    base: Sequence[float], other: Sequence[float], confidence: float = CONFIDENCE
) -> Interval:
    """Compare the means of two models' scores on the same items, with Student's interval for paired values.

    The interval is mean ± t · s / √n, of the differences of the items (Student, 1908).

    Args:
        base: For each item, the base's score.
        other: For each item in the same order, the other model's score.
        confidence: How often the interval is to cover the true difference, between 0 and 1.

    Returns:
        The difference of the means, other less base; unbounded if there is only one item.

    Raises:
        ValueError: There is no item, the sequences differ in length, or the confidence is out of range.
    """
    _check(base, other, confidence)
    differences = [after - before for before, after in zip(base, other, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return Interval(-math.inf, mean, math.inf, confidence)
    width = statistics.stdev(differences, mean) / math.sqrt(len(differences))
    width *= student_quantile((1 + confidence) / 2, len(differences) - 1)
    return Interval(mean - width, mean, mean + width, confidence)


def share_kept(base: Sequence[bool], other: Sequence[bool], confidence: float = CONFIDENCE) -> Share:
    """Return which share of the items that the base got the other model got too, with an exact interval.

    Args:
        base: For each item, whether the base got it.
        other: For each item in the same order, whether the other model got it.
        confidence: How often the interval is to cover the true share, between 0 and 1.

    Returns:
        The share with its interval (Clopper & Pearson, 1934), from 0 to 1.

    Raises:
        ValueError: There is no item, the sequences differ in length, or the confidence is out of range.
    """
    _check(base, other, confidence)
    kept = [after for before, after in zip(base, other, strict=True) if before]
    return share_of(sum(kept), len(kept), confidence)


def share_of(count: int, items: int, confidence: float = CONFIDENCE) -> Share:
    """Return a share of items with its exact binomial interval (Clopper & Pearson, 1934).

    Args:
        count: How many of the items.
        items: How many items there are; there may be none.
        confidence: How often the interval is to cover the true share, between 0 and 1.
    """
    low, high = _binomial_interval(count, items, 1 - confidence)
    return Share(low, count / items if items else None, high, items, confidence)


def describe_accuracy(interval: Interval) -> str:
    """Say in one sentence how the accuracy differs, in percentage points; within the interval of zero, not."""
    return _describe("accuracy", interval, 100, ".1f", " points")


def describe_margin(interval: Interval) -> str:
    """Say in one sentence how the mean margin differs, in nats per byte; within the interval of zero, not."""
    return _describe("margin", interval, 1, ".3f", " nats per byte")


def _describe(what: str, interval: Interval, scale: float, form: str, unit: str) -> str:
    low, difference, high = (
        _signed(value * scale, form) for value in (interval.low, interval.difference, interval.high)
    )
    covered = f"{interval.confidence:.0%} interval {low} to {high}"
    if not interval.excludes_zero:
        return f"No difference in {what} beyond chance: {difference}{unit}, {covered}."
    direction = "lower" if interval.difference < 0 else "higher"
    return f"The {what} is {direction}: {difference}{unit}, {covered}."


def _signed(value: float, form: str) -> str:
    text = format(abs(value), form)
    if not float(text):
        return text
    return ("−" if value < 0 else "+") + text


def _check(base: Sequence[object], other: Sequence[object], confidence: float) -> None:
    if len(base) != len(other):
        raise ValueError(f"{len(base)} items of one model and {len(other)} of the other cannot be paired.")
    if not base:
        raise ValueError("There is no item to compare.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence:g}; it must be between 0 and 1.")


def _binomial_interval(count: int, items: int, error: float) -> tuple[float, float]:
    """Return the interval of Clopper & Pearson for a share: quantiles of two beta distributions."""
    low = _solve(lambda p: beta_cdf(p, count, items - count + 1), error / 2) if count else 0.0
    high = _solve(lambda p: beta_cdf(p, count + 1, items - count), 1 - error / 2) if count < items else 1.0
    return low, high


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution for a probability above one half."""
    # With x = ν / (ν + t²), the two tails beyond ±t hold I_x(ν/2, 1/2).
    tails = 2 * (1 - probability)
    x = _solve(lambda x: beta_cdf(x, freedom / 2, 0.5), tails)
    return math.sqrt(freedom * (1 - x) / x)


def _solve(increasing: Callable[[float], float], value: float) -> float:
    """Return where a function that increases from 0 to 1 takes a value, by bisection."""
    low, high = 0.0, 1.0
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if increasing(middle) < value:
            low = middle
        else:
            high = middle
    return high


def beta_cdf(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b), by its continued fraction.

    Source: Abramowitz & Stegun (1964), 26.5.8, evaluated as in Lentz (1976).
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # Where the fraction converges slowly; the symmetric one converges fast.
        return 1 - beta_cdf(1 - x, b, a)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    numerator, denominator = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    fraction = denominator
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            denominator = 1 / ((1 + term * denominator) or tiny)
            numerator = (1 + term / numerator) or tiny
            fraction *= (step := denominator * numerator)
        if abs(step - 1) < 1e-15:
            break
    return math.exp(logarithm) / a * fraction
