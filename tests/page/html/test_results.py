"""Tables of results show what is measured, and an ellipsis for what is not measured yet."""

import statistics

import pytest

from page.html import results
from pruning import Neurons, Recipe, Vocabulary, Weights
from pruning.text.passages import GENRES
from tests.page.html.samples import Page, quality, report

RECIPE = Recipe(base="tiny", steps=[Neurons(fraction=0.2)])
FEWER_TOKENS = Recipe(base="tiny", steps=[Vocabulary(fraction=0.2)])


def rows(html):
    """The cells of a table's body, row by row."""
    body = html.split("<tbody>")[1].split("</tbody>")[0]
    return [Page(f"{row}</tr>").pieces for row in body.split("</tr>")[:-1]]


def without_hint(row):
    return [row[0], *row[2:]]


def test_sizes_are_known_before_anything_is_measured():
    parameters, disk, perplexity = rows(results.measures(report(), RECIPE))
    assert without_hint(parameters) == ["Parameters", "1,000", "750", "−25.0%"]
    assert without_hint(disk) == ["Weights on disk", "4 MB", "3 MB", "−25.0%"]
    assert without_hint(perplexity) == ["Perplexity", "…", "…"]
    for row in (parameters, disk, perplexity):
        assert row[1].endswith(".")  # What it is, for every reader and not in a title alone.


def test_perplexity_is_compared_as_a_ratio():
    row = rows(results.measures(report(quality(20.0), quality(50.0)), RECIPE))[2]
    detail = "held-out passages; 5,000 tokens in windows of 512"
    assert without_hint(row) == ["Perplexity", detail, "20.0", "50.0", "× 2.50"]


def test_perplexity_of_the_pruned_model_waits_for_every_genre():
    partial = quality(50.0, genres=list(GENRES)[:2])
    row = rows(results.measures(report(quality(20.0), partial), RECIPE))[2]
    assert row[3:] == ["20.0", "…"]


def test_a_ruined_model_has_a_readable_perplexity():
    row = rows(results.measures(report(quality(20.0), quality(3e9)), RECIPE))[2]
    assert row[3:] == ["20.0", "3.0 billion", "× 150 million"]


def test_bits_per_byte_replace_perplexity_once_the_vocabulary_changes():
    assert results.changes_vocabulary(FEWER_TOKENS)
    assert not results.changes_vocabulary(RECIPE)
    row = rows(results.measures(report(quality(20.0, 1.0), quality(50.0, 1.25)), FEWER_TOKENS))[2]
    assert without_hint(row) == ["Bits per byte", "held-out passages", "1.000", "1.250", "+0.250"]


def test_bits_per_byte_that_were_not_measured_stay_open():
    row = rows(results.measures(report(quality(20.0, None), quality(50.0, None)), FEWER_TOKENS))[2]
    assert without_hint(row) == ["Bits per byte", "…", "…"]
    row = rows(results.measures(report(quality(20.0), quality(50.0, None)), FEWER_TOKENS))[2]
    assert row[3:] == ["1.000", "…"]


@pytest.mark.parametrize(
    ("original", "pruned", "change"),
    [
        ((20.0, 18.0, 22.0), (25.0, 21.6, 26.4), "× 1.20 (1.20 to 1.25)"),
        ((20.0, 18.0, 22.0), (25.0, 17.0, 26.4), "no clear difference"),
        ((20.0, 18.0, 22.0), (15.0, 13.5, 17.6), "× 0.75 (0.75 to 0.80)"),
    ],
)
def test_speed_is_compared_round_by_round_with_its_range(original, pruned, change):
    measured = report(speeds=(original, pruned))
    row = rows(results.measures(measured, RECIPE))[3]
    assert row[-3:] == [f"{statistics.median(original):.1f}", f"{statistics.median(pruned):.1f}", change]


def test_speed_is_compared_once_both_models_are_timed():
    assert rows(results.measures(report(speeds=((20.0,), ())), RECIPE))[3][2:] == ["…", "…"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (19.0, "Better on this text"),
        (20.2, "About as good as the original"),
        (21.0, "Slightly worse"),
        (26.0, "Noticeably worse"),
        (39.0, "Much worse"),
        (50.0, "Badly damaged"),
    ],
)
def test_the_verdict_follows_the_measured_ratio(value, words):
    page = Page(results.verdict(report(quality(20.0), quality(value)), RECIPE))
    assert page.text.startswith(f"{words}, and 25.0% smaller: it hesitates between {value:.0f} equally")


def test_there_is_no_verdict_before_the_measures_and_none_beside_the_warning_of_ruin():
    assert results.verdict(report(quality(20.0)), RECIPE) == ""
    assert results.verdict(report(quality(20.0), quality(50.0, genres=list(GENRES)[:2])), RECIPE) == ""
    assert results.verdict(report(quality(20.0), quality(90.0)), RECIPE) == ""
    assert 'class="warning"' in results.measures(report(quality(20.0), quality(90.0)), RECIPE)


def test_the_verdict_on_another_vocabulary_compares_the_loss():
    page = Page(results.verdict(report(quality(20.0, 1.0), quality(50.0, 1.25)), FEWER_TOKENS))
    assert "its loss on held-out text is +25% of the original's" in page.text


def test_a_step_with_a_warning_shows_it_below_the_table():
    recipe = Recipe(base="tiny", steps=[Weights(fraction=0.5)])
    (warning,) = [step.warning for step in recipe.steps]
    assert warning in Page(results.measures(report(), recipe)).text
    assert "warning" not in Page(results.measures(report(), RECIPE)).values("class")


def test_the_columns_are_the_original_and_the_pruned_model():
    page = Page(results.measures_table([]))
    assert page.pieces == ["measure", "original", "pruned", "change"]
    assert page.values("scope") == ["col"] * 4


def test_genres_show_both_models():
    page = Page(results.genres(report(quality(20.0), quality(30.0)), RECIPE))
    assert page.text.startswith("Perplexity by kind of text, lower is better original pruned")
    assert [title for title in GENRES.values() if title in page.pieces] == list(GENRES.values())
    assert page.values("class").count("plot") == len(GENRES) + 1  # The last one holds the ticks.
    page = Page(results.genres(report(quality(20.0, 1.0), quality(30.0, 1.5)), FEWER_TOKENS))
    assert page.text.startswith("Bits per byte by kind of text")
    assert "1.000 → " in page.pieces


def test_a_lesson_compares_each_model_with_the_original():
    measured = report(quality(20.0), quality(50.0))
    table = results.lesson_table(
        [
            results.LessonRow("Original model", measured, False, " and home"),
            results.LessonRow("Smaller", measured, True, " and and"),
        ],
        "Once",
        {"encyclopedia": "Encyclopedia"},
    )
    original, original_output, pruned, pruned_output = rows(table)
    assert original == ["Original model", "1,000", "20.0", "20.0"]
    assert pruned == ["Smaller", "750", "50.0", "(× 2.50)", "50.0"]
    assert original_output == ["Once", " and home"]
    assert pruned_output == ["Once", " and and"]
    assert Page(table).values("colspan") == ["4", "4"]


@pytest.mark.parametrize("measured", [report(), report(quality(20.0))])
def test_a_lesson_shows_evaluated_models_only(measured):
    with pytest.raises(ValueError, match="'Smaller' has not been evaluated"):
        results.lesson_table([results.LessonRow("Smaller", measured, True, "")], "Once", GENRES)
