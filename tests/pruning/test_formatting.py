"""Numbers are formatted so that people can read them, at every size."""

import pytest

from pruning.formatting import format_number, format_ranges


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (36.74, "36.7"),
        (999.94, "999.9"),
        (2151.21, "2,151"),
        (78_912.4, "78,912"),
        (11.2e9, "11.2 billion"),
        (2.9e8, "290 million"),
        (999.9e12, "1,000 trillion"),
        (9.99e17, "999 quadrillion"),
        (1e18, "off the scale"),
        (3e20, "off the scale"),
        (float("inf"), "off the scale"),
        (float("nan"), "off the scale"),
    ],
)
def test_numbers_are_readable_at_every_size(value, text):
    assert format_number(value) == text


def test_small_numbers_have_the_requested_digits():
    assert format_number(1.234, 2) == "1.23"


@pytest.mark.parametrize(
    ("numbers", "text"), [((), ""), ((3,), "3"), ((3, 2, 1), "1-3"), ((0, 1, 2, 7, 9, 10), "0-2, 7, 9-10")]
)
def test_runs_of_numbers_are_ranges(numbers, text):
    assert format_ranges(numbers) == text
