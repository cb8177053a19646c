"""Intervals of paired comparisons: known values, and how often they cover the truth."""

import math
import random
from functools import lru_cache
from itertools import product

import pytest

from pruning.evaluation.paired import (
    Interval,
    beta_cdf,
    describe_accuracy,
    describe_margin,
    paired_difference,
    paired_mean_difference,
    share_kept,
    share_of,
    student_quantile,
)


def outcomes(both, lost, gained, neither):
    """The answers of two models, from the four counts of a paired table."""
    base = [True] * (both + lost) + [False] * (gained + neither)
    other = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return base, other


@lru_cache
def difference(items, lost, gained):
    return paired_difference(*outcomes(0, lost, gained, items - lost - gained))


def sign_test(lost, gained):
    """The two-sided p value of McNemar's exact test, by adding up binomials."""
    tosses, least = lost + gained, min(lost, gained)
    return min(1, 2 * sum(math.comb(tosses, k) for k in range(least + 1)) / 2**tosses)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2, 5), (7, 1), (30, 4), (250, 251)])
@pytest.mark.parametrize("x", [0.0, 0.01, 0.3, 0.5, 0.77, 0.999, 1.0])
def test_the_beta_function_is_the_tail_of_the_binomial(a, b, x):
    n = a + b - 1
    tail = sum(math.comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(a, n + 1))
    assert beta_cdf(x, a, b) == pytest.approx(tail, abs=1e-10)


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [
        (0.975, 1, 12.7062),
        (0.975, 4, 2.7764),
        (0.975, 30, 2.0423),
        (0.995, 10, 3.1693),
        (0.975, 5000, 1.9604),
    ],
)
def test_students_quantiles_are_those_of_the_tables(probability, freedom, expected):
    assert student_quantile(probability, freedom) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("count", "items", "low", "high"),
    [(0, 10, 0, 0.3085), (10, 10, 0.6915, 1), (5, 10, 0.1871, 0.8129), (81, 263, 0.2527, 0.3676)],
)
def test_a_share_has_the_interval_of_clopper_and_pearson(count, items, low, high):
    share = share_of(count, items)
    assert (share.low, share.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert share.share == count / items


def test_the_share_kept_counts_only_what_the_base_got():
    share = share_kept(*outcomes(both=45, lost=5, gained=20, neither=30))
    assert share == share_of(45, 50)
    assert (share.share, share.items) == (0.9, 50)


def test_the_share_kept_of_nothing_is_unknown():
    share = share_kept(*outcomes(both=0, lost=0, gained=2, neither=3))
    assert (share.low, share.share, share.high, share.items) == (0, None, 1, 0)


def test_the_difference_is_that_of_the_accuracies():
    interval = paired_difference(*outcomes(both=40, lost=30, gained=5, neither=25))
    assert interval.difference == pytest.approx(0.45 - 0.70)
    assert interval.low < interval.difference < interval.high < 0


def test_a_difference_excludes_zero_exactly_if_mcnemars_exact_test_rejects():
    for lost, gained in product(range(25), repeat=2):
        assert difference(60, lost, gained).excludes_zero == (sign_test(lost, gained) < 0.045)


def test_two_models_change_sides():
    for lost, gained in product(range(12), repeat=2):
        one, other = difference(30, lost, gained), difference(30, gained, lost)
        assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))


def test_models_that_answer_alike_may_still_differ_a_little():
    interval = paired_difference(*outcomes(both=60, lost=0, gained=0, neither=40))
    assert interval.difference == 0
    assert interval.low == -interval.high
    assert 0.03 < interval.high < 0.07


@pytest.mark.parametrize("items", [20, 100])
@pytest.mark.parametrize(
    ("lost", "gained"), [(0, 0), (0.1, 0.0), (0.02, 0.01), (0.1, 0.1), (0.25, 0.05), (0.5, 0.4), (0.9, 0.02)]
)
def test_the_difference_covers_the_truth_at_least_as_often_as_it_says(items, lost, gained):
    draw, trials, covered = random.Random(7), 600, 0
    for _ in range(trials):
        kinds = draw.choices("lgs", (lost, gained, 1 - lost - gained), k=items)
        interval = difference(items, kinds.count("l"), kinds.count("g"))
        covered += interval.low - 1e-12 <= gained - lost <= interval.high + 1e-12
    assert covered / trials > 0.95 - 0.02


def test_exactness_costs_less_than_twice_the_width():
    interval = difference(400, 60, 20)
    normal = 1.96 * math.sqrt((60 + 20) / 400**2 - (40 / 400) ** 2 / 400)
    assert 2 * normal < interval.high - interval.low < 1.7 * 2 * normal


def test_the_mean_difference_is_students():
    interval = paired_mean_difference([1.0, 2.0, 3.0, 4.0, 5.0], [1.5, 2.0, 4.0, 4.5, 7.0])
    deviation = math.sqrt(sum((d - 0.8) ** 2 for d in (0.5, 0.0, 1.0, 0.5, 2.0)) / 4)
    assert interval.difference == pytest.approx(0.8)
    assert interval.high - 0.8 == pytest.approx(2.7764 * deviation / math.sqrt(5), rel=1e-4)
    assert interval.low == pytest.approx(1.6 - interval.high)


def test_the_mean_difference_covers_the_truth_as_often_as_it_says():
    draw, trials, covered = random.Random(3), 2000, 0
    for _ in range(trials):
        base = [draw.gauss(0, 1) for _ in range(12)]
        interval = paired_mean_difference(base, [value + draw.gauss(0.3, 0.5) for value in base])
        covered += interval.low <= 0.3 <= interval.high
    assert covered / trials == pytest.approx(0.95, abs=0.02)


def test_one_item_says_nothing_about_a_mean():
    interval = paired_mean_difference([1.0], [2.0])
    assert (interval.low, interval.difference, interval.high) == (-math.inf, 1, math.inf)


def test_more_confidence_needs_a_wider_interval():
    base, other = outcomes(both=40, lost=30, gained=5, neither=25)
    wide, narrow = paired_difference(base, other, 0.99), paired_difference(base, other, 0.8)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert (wide.confidence, narrow.confidence) == (0.99, 0.8)


@pytest.mark.parametrize(
    ("base", "other", "confidence", "message"),
    [
        ([True], [], 0.95, "cannot be paired"),
        ([], [], 0.95, "no item"),
        ([True], [True], 1.0, "confidence is 1"),
    ],
)
@pytest.mark.parametrize("compare", [paired_difference, paired_mean_difference, share_kept])
def test_what_cannot_be_compared_is_refused(compare, base, other, confidence, message):
    with pytest.raises(ValueError, match=message):
        compare(base, other, confidence)


def test_a_difference_within_its_interval_of_zero_is_said_to_be_none():
    assert describe_accuracy(Interval(-0.031, -0.008, 0.016)) == (
        "No difference in accuracy beyond chance: −0.8 points, 95% interval −3.1 to +1.6."
    )
    assert describe_accuracy(Interval(-0.11, -0.08, -0.05)) == (
        "The accuracy is lower: −8.0 points, 95% interval −11.0 to −5.0."
    )
    assert describe_margin(Interval(0.01, 0.02, 0.03)) == (
        "The margin is higher: +0.020 nats per byte, 95% interval +0.010 to +0.030."
    )
    assert describe_margin(Interval(-0.01, 0.0, 0.01)) == (
        "No difference in margin beyond chance: 0.000 nats per byte, 95% interval −0.010 to +0.010."
    )
