"""Size and loss in fewer bits: a chart with every point by its type, and which of them nothing beats."""

from page.html.rounding import FROM_4_BITS, draw_rounded
from page.workers.messages import RoundedModels
from pruning.sharing.gguf.rounded import LeftOut, RoundedPoint
from tests.page.html.samples import Page

POINTS = (
    RoundedPoint(False, "f16", 271_000_000, 1.0),
    RoundedPoint(False, "q8_0", 145_000_000, 1.0004),
    RoundedPoint(True, "f16", 241_000_000, 1.41),
    RoundedPoint(True, "q4_0", 69_000_000, 1.94),
)


def rows(points):
    """The rows of the table, each as a list of texts."""
    body = draw_rounded(RoundedModels(points, (), False)).partition("<tbody>")[2].partition("</tbody>")[0]
    return [Page(f"<table><tr>{row}</table>").pieces for row in body.split("<tr>")[1:]]


def test_the_table_names_the_frontier_from_the_smallest_model_to_the_largest():
    assert rows(POINTS) == [
        ["Pruned, q4_0", "69", "1.94", "yes"],
        ["Original, q8_0", "145", "1.00", "yes"],
        ["Pruned, f16", "241", "1.41", "no"],
        ["Original, f16", "271", "1.00", "no"],
    ]


def test_every_point_bears_its_type_in_the_color_of_its_model():
    page = Page(draw_rounded(RoundedModels(POINTS, (), False)))
    assert [piece for piece in page.pieces if piece in ("f16", "q8_0", "q4_0")] == [
        "f16",
        "q4_0",
        "f16",
        "q8_0",
    ]
    assert [page.values("class").count(f"mark series-{number}") for number in (0, 1)] == [
        3,
        3,
    ]  # With the key.
    assert {"Original", "Pruned"} <= set(page.pieces)


def test_the_original_has_its_color_before_the_pruned_model_is_measured():
    page = Page(draw_rounded(RoundedModels(POINTS[:2], (), False)))
    assert "mark series-1" in page.values("class")
    assert "mark series-0" not in page.values("class")


def test_only_weights_that_had_4_bits_come_with_the_caution():
    drawn = {flag: Page(draw_rounded(RoundedModels(POINTS, (), flag))).text for flag in (True, False)}
    assert FROM_4_BITS in drawn[True]
    assert FROM_4_BITS not in drawn[False]


def test_what_is_left_out_is_said_without_a_chart_too():
    left_out = LeftOut(True, ("q8_0", "q4_0"), "It needs rows in multiples of 32.")
    shown = Page(draw_rounded(RoundedModels((), (left_out,), True)))
    assert shown.pieces == ["Left out: the pruned model in q8_0, q4_0. It needs rows in multiples of 32."]
