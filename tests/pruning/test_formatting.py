import pytest

from pruning.formatting import format_number


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (36.74, "36.7"),
        (999.94, "999.9"),
        (2151.21, "2,151"),
        (78_912.4, "78,912"),
        (11.2e9, "11.2 billion"),
        (2.9e8, "290 million"),
        (999.9e12, "1,000 trillion"),
        (3e20, "beyond counting"),
        (float("inf"), "beyond counting"),
        (float("nan"), "beyond counting"),
    ],
)
def test_figures_are_readable_at_every_size(value, words):
    assert format_number(value) == words


def test_small_figures_have_the_digits_asked_for():
    assert format_number(1.234, 2) == "1.23"
