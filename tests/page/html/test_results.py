"""Tables of results show what is measured, and an ellipsis for what is not measured yet."""

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


def test_sizes_are_known_before_anything_is_measured():
    parameters, disk, perplexity = rows(results.measures(report(), RECIPE))
    assert parameters == ["Parameters", "1,000", "750", "−25.0%"]
    assert disk == ["Weights on disk", "4 MB", "3 MB", "−25.0%"]
    assert perplexity == ["Perplexity", "…", "…"]


def test_perplexity_is_compared_as_a_ratio():
    row = rows(results.measures(report(quality(20.0), quality(50.0)), RECIPE))[2]
    detail = "held-out passages; 5,000 tokens in windows of 512"
    assert row == ["Perplexity", detail, "20.0", "50.0", "× 2.50"]


def test_perplexity_of_the_pruned_model_waits_for_every_genre():
    partial = quality(50.0, genres=list(GENRES)[:2])
    row = rows(results.measures(report(quality(20.0), partial), RECIPE))[2]
    assert row[2:] == ["20.0", "…"]


def test_a_ruined_model_has_a_readable_perplexity():
    row = rows(results.measures(report(quality(20.0), quality(3e9)), RECIPE))[2]
    assert row[2:] == ["20.0", "3.0 billion", "× 150 million"]


def test_bits_per_byte_replace_perplexity_once_the_vocabulary_changes():
    assert results.changes_vocabulary(FEWER_TOKENS)
    assert not results.changes_vocabulary(RECIPE)
    row = rows(results.measures(report(quality(20.0, 1.0), quality(50.0, 1.25)), FEWER_TOKENS))[2]
    assert row == ["Bits per byte", "held-out passages", "1.000", "1.250", "+0.250"]


def test_bits_per_byte_that_were_not_measured_stay_open():
    row = rows(results.measures(report(quality(20.0, None), quality(50.0, None)), FEWER_TOKENS))[2]
    assert row == ["Bits per byte", "…", "…"]
    row = rows(results.measures(report(quality(20.0), quality(50.0, None)), FEWER_TOKENS))[2]
    assert row[2:] == ["1.000", "…"]


def test_speed_is_compared_once_both_models_are_timed():
    row = rows(results.measures(report(speeds=(20.0, 25.0)), RECIPE))[3]
    assert row[2:] == ["20.0", "25.0", "+25.0%"]
    row = rows(results.measures(report(speeds=(20.0, None)), RECIPE))[3]
    assert row[2:] == ["20.0", "…"]


def test_a_step_with_a_warning_shows_it_below_the_table():
    recipe = Recipe(base="tiny", steps=[Weights(fraction=0.5)])
    (warning,) = [step.warning for step in recipe.steps]
    assert warning in Page(results.measures(report(), recipe)).text
    assert "warning" not in Page(results.measures(report(), RECIPE)).values("class")


def test_the_columns_are_the_original_and_the_pruned_model():
    page = Page(results.measures_table([]))
    assert page.pieces == ["original", "pruned", "change"]


def test_genres_show_both_models():
    page = Page(results.genres(report(quality(20.0), quality(30.0)), RECIPE))
    assert page.text.startswith("Perplexity by kind of text, lower is better original pruned")
    assert [title for title in GENRES.values() if title in page.pieces] == list(GENRES.values())
    assert page.values("class").count("plot") == len(GENRES)
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
