"""Two outputs stand side by side, and the first word that differs is marked in each."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from page.html import outputs
from tests.page.html.samples import Page

words = st.lists(st.sampled_from(["the", "a", "cat", "cats", "sat", ""]), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("text", "other", "word"),
    [
        ("the cat sat", "the dog sat", "cat"),
        ("the cat sat", "the car sat", "cat"),
        ("cat", "dog", "cat"),
        ("line\none", "line\ntwo", "one"),
        ("the cat sat", "the cat", ""),
        ("the cat", "the cat sat", ""),
        ("the cat", "the cat", ""),
        ("", "the cat", ""),
        ("the cat s", "the cats", " s"),
    ],
)
def test_the_first_word_that_differs_is_found(text, other, word):
    start, end = outputs.first_difference(text, other)
    assert text[start:end] == word


@settings(deadline=None)
@given(text=words, other=words)
def test_texts_agree_before_the_word_and_differ_within_it(text, other):
    start, end = outputs.first_difference(text, other)
    assert 0 <= start <= end <= len(text)
    if start == end:
        assert text.startswith(other) or other.startswith(text)
    else:
        assert text[:start] == other[:start]
        assert text[:end] != other[:end]


def test_each_text_is_whole_and_marked_once():
    page = Page(outputs.side_by_side("Once", " upon a time", " upon a hill"))
    assert page.tags.count("mark") == 2
    assert page.text == "OriginalOnce upon a timePrunedOnce upon a hill"
    assert page.values("id") == ["text-before", "text-after"]
    assert "time" in page.pieces
    assert "hill" in page.pieces


def test_a_distilled_model_stands_beside_what_it_was_before():
    page = Page(outputs.side_by_side("Once", " upon a time", " upon a day", " upon a hill"))
    assert page.text == "OriginalOnce upon a timePrunedOnce upon a hillDistilledOnce upon a day"
    assert page.values("id") == ["text-before", "text-undistilled", "text-after"]


def test_a_question_stands_above_its_answers():
    for html in (
        outputs.side_by_side("Why?", "So", "Thus", chat=True),
        outputs.sample("Why?", "So", chat=True),
    ):
        assert "prompt question" in Page(html).values("class")
    assert "prompt question" not in Page(outputs.side_by_side("Why?", "So", "Thus")).values("class")


def test_a_cursor_stands_behind_texts_that_are_still_written():
    assert Page(outputs.side_by_side("Once", "", "", writing=True)).values("class").count("cursor") == 2
    assert "cursor" not in Page(outputs.side_by_side("Once", "", "")).values("class")


def test_the_placeholder_says_what_to_press():
    page = Page(outputs.texts_placeholder())
    assert "press Prune" in page.text
    assert page.pieces.count("Original") == page.pieces.count("Pruned") == 1


def test_a_sample_continues_its_prompt():
    assert Page(outputs.sample("Once", " upon a time")).text == "Current outputOnce upon a time"
