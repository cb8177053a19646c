"""Charts show their values as positions and as text."""

import pytest

from page.html import charts
from page.html.charts import GenreRow
from pruning.evaluation.inspection import NextToken, TokenLoss
from tests.page.html.samples import Page


def lefts(page):
    return [
        float(style.split("left:")[1].split("%")[0]) for style in page.values("style") if "left:" in style
    ]


def test_a_genre_shows_both_values_on_one_logarithmic_scale_with_its_ticks():
    page = Page(charts.genre_plot([GenreRow("Code", 20.0, 40.0), GenreRow("Stories", 10.0, None)]))
    line, original, pruned, other, *ticks = lefts(page)
    assert line == original < pruned <= 100
    assert pruned - original == pytest.approx(original - other, abs=0.02)  # Each is twice the other.
    assert "20.0 → " in page.pieces
    assert "40.0" in page.pieces
    assert len(ticks) >= 3
    assert "15" in page.pieces


def test_bits_per_byte_have_a_linear_scale():
    page = Page(charts.genre_plot([GenreRow("Code", 1.0, 1.5), GenreRow("Stories", 0.5, None)], log=False))
    _, original, pruned, other, *_ = lefts(page)
    assert pruned - original == pytest.approx(original - other, abs=0.02)


def test_a_genre_that_is_not_measured_yet_is_an_ellipsis():
    page = Page(charts.genre_plot([GenreRow("Code", None, None)]))
    assert page.pieces[-1] == "…"
    assert lefts(page) == []


def test_a_ruined_model_does_not_press_the_others_together():
    page = Page(charts.genre_plot([GenreRow("Code", 20.0, 1e9), GenreRow("Stories", 80.0, None)]))
    _, original, pruned, other, *ticks = lefts(page)
    assert pruned > 99
    assert other - original > 5
    assert len(ticks) <= 6
    assert "1.0 billion" in page.pieces


def test_a_value_beyond_the_scale_stays_on_it():
    page = Page(charts.genre_plot([GenreRow("Code", 20.0, float("inf"))]))
    assert max(lefts(page)) <= 100
    assert "off the scale" in page.pieces


def test_small_values_have_three_digits():
    page = Page(charts.genre_plot([GenreRow("Code", 0.91234, 1.5)], "Bits per byte"))
    assert "0.912 → " in page.pieces
    assert "1.500" in page.pieces


def test_tokens_that_only_one_model_predicts_are_underlined():
    page = Page(
        charts.next_token_chart(
            [NextToken(" the", 0.5), NextToken("\n", 0.25)], [NextToken(" the", 0.4), NextToken("", 0.1)]
        )
    )
    assert page.values("class").count("unshared") == 2
    assert [piece for piece in page.pieces if piece in ("␣the", "↵", "(nothing)")] == [
        *("␣the", "↵"),
        *("␣the", "(nothing)"),
    ]
    assert page.values("style") == ["width:50.00%", "width:25.00%", "width:40.00%", "width:10.00%"]
    assert "25.0%" in page.pieces


def test_the_mean_loss_leaves_out_the_first_token():
    rows = [TokenLoss("A", (None, None)), TokenLoss(" b", (1.0, 4.0)), TokenLoss(" c", (2.0, 3.0))]
    page = Page(charts.token_loss_chart(rows))
    assert "Original: 1.50 nats per token (average surprise)" in page.pieces
    assert "Pruned: 3.50 nats per token (average surprise)" in page.pieces
    assert page.values("style")[:3] == ["--loss:0.00", "--loss:0.10", "--loss:0.20"]
    assert page.values("title")[:2] == ["the first token: nothing comes before it", "1.00 nats"]


def test_the_tokens_that_lost_most_come_first_and_are_five():
    rows = [TokenLoss("A", (None, None)), *(TokenLoss(f"t{i}", (1.0, 1.0 + i)) for i in range(8))]
    chart = charts.token_loss_chart(rows)
    table, whole = chart.split("<tbody>")[1:]
    assert Page(f"<div>{whole[: whole.index('</tbody>')]}</div>").tags.count("tr") == 8
    assert [
        piece for piece in Page(f"<div>{table[: table.index('</tbody>')]}</div>").pieces if "t" in piece
    ] == [f"t{i}" for i in (7, 6, 5, 4, 3)]


def test_losses_of_a_text_without_predictions_have_no_mean():
    page = Page(charts.token_loss_chart([TokenLoss("A", (None, None))]))
    assert "Original: … nats per token (average surprise)" in page.pieces


def test_the_line_falls_where_the_cut_does():
    page = Page(charts.importance_map([[1.0, 0.5, 0.0], [1.0, 0.1, 0.0]], [0.9, 0.25], 0.2, "One", "Another"))
    assert page.values("style").count("--cut:80.0%") == 2
    assert page.values("style").count("--share:1.000") == 2
    assert "90%" in page.pieces
    assert "25%" in page.pieces
    assert page.text.startswith("One. Each row is a layer")
    assert "The 20% right of the line are removed." in page.text
    assert "that Another keeps as well" in page.text


def test_a_layer_without_its_share_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        charts.importance_map([[1.0], [1.0]], [0.5], 0.2, "One", "Another")


def test_the_layers_of_least_influence_are_named_in_order():
    page = Page(charts.influence_chart([0.9, 0.1, 0.5, 0.2, 0.3]))
    assert page.pieces[0] == "Layers 1, 3 and 4 change their input the least."
    assert "0.900" in page.pieces


def test_the_longest_bar_is_the_largest_influence():
    page = Page(charts.influence_chart([0.2, 0.4]))
    assert page.values("style") == ["width:50.0%", "width:100.0%"]
    assert "0.400" in page.pieces
