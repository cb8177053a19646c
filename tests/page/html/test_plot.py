"""A chart shows every series with a color of its own, on round ticks, and the same as a table."""

import math

import pytest

from page.html.plot import MARKS, Axis, Series, plot
from tests.page.html.samples import Page

X, Y = Axis("Parameters"), Axis("Perplexity", log=True)


def marks(page):
    return [name for name in page.values("class") if name.startswith(("mark series", "stroke series"))]


def test_every_series_has_its_marks_a_color_and_a_row_in_the_table():
    series = [
        Series("chosen", [(80, 40.0, "five layers")], large=True),
        Series("alone", [(90, 35.0), (70, 60.0)]),
        Series("predicted", [(60, 80.0), (100, 30.0)], line=True),
    ]
    page = Page(plot(series, X, Y, "Quality"))
    assert [marks(page).count(f"mark series-{number}") for number in (0, 1)] == [1, 3]  # With the key.
    assert "mark series-0 large" in page.values("class")
    assert len(page.values("points")) == 1
    for name in ("chosen", "alone", "predicted", "five layers", "Quality"):
        assert name in page.pieces
    assert page.values("scope").count("row") == 5


def test_marks_are_labeled_and_a_table_of_ones_own_takes_the_place_of_the_usual_one():
    labeled = Series("one", [(1, 2, "first"), (2, 3, "second")], labels=["q8_0", "<b>"])
    page = Page(plot([labeled], X, Y, "", "<table><tr><td>mine</td></tr></table>"))
    assert [piece for piece in page.pieces if piece in ("q8_0", "<b>", "mine")] == ["q8_0", "<b>", "mine"]
    assert page.values("class").count("name after") == 1  # The one on the right has its name before it.
    assert page.values("class").count("name before") == 1
    assert "details" not in page.tags


def test_a_series_without_points_keeps_the_colors_of_the_others():
    page = Page(plot([Series("one", [(1, 2)]), Series("none", ()), Series("two", [(2, 3)])], X, Y, ""))
    assert {*marks(page)} == {"mark series-0", "mark series-2"}
    assert "none" not in page.text
    assert plot([Series("none", ())], X, Y, "") == ""


def test_more_series_than_colors_begin_anew():
    page = Page(plot([Series(str(number), [(number, 2)]) for number in range(MARKS + 1)], X, Y, ""))
    assert marks(page).count("mark series-0") == 4


@pytest.mark.parametrize(
    "values", [(30.0, 31.0), (30.0, 30.0), (30.0, 1e9), (1.0, math.inf), (0.5, 8000.0), (38.7, 126.6)]
)
def test_a_logarithmic_axis_has_few_round_ticks_and_every_point_is_on_it(values):
    ends = Y.ends([min(value, 1e12) for value in values])
    ticks = Y.ticks(*ends)
    assert 1 <= len(ticks) <= 6
    assert all(ends[0] <= tick <= ends[1] for tick in ticks)
    assert all(len(f"{tick:g}".replace(".", "").strip("0")) <= 2 for tick in ticks if tick < 1e6)
    page = Page(plot([Series("a", [(1, value) for value in values])], X, Y, ""))
    places = [
        float(style.rpartition("bottom:")[2].strip("%"))
        for style in page.values("style")
        if "bottom" in style
    ]
    assert all(0 <= place <= 100 for place in places)


@pytest.mark.parametrize("values", [(0.0, 120.0), (110.2, 134.5), (5.0, 5.0), (0.0, 0.0)])
def test_a_linear_axis_has_few_round_ticks(values):
    ends = X.ends(values)
    assert ends[0] < ends[1]
    assert 2 <= len(X.ticks(*ends)) <= 7
