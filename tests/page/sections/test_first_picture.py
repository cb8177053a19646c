"""What a visitor sees before Gradio has drawn the page is what it will show."""

import json

import pytest

from page.html.first_look import first_look
from page.layout import TABS, first_look_of
from page.sections import first_picture
from tests.page.html.samples import Page


def test_the_picture_drawn_ahead_is_what_the_program_of_today_draws():
    drawn = json.loads(first_picture.FILE.read_text(encoding="utf-8"))
    assert drawn == first_picture.draw(), "draw it again: python -m page.sections.first_picture"
    assert first_picture.first_picture() == (drawn["picture"], drawn["note"])


def test_without_the_packaged_weights_nothing_is_drawn_ahead(monkeypatch):
    monkeypatch.setattr(first_picture, "is_installed", lambda entry: False)
    assert first_picture.first_picture() == ("", "")


def test_the_first_look_has_what_the_components_hold_and_none_of_their_ids():
    look = first_look("<h1>Secateur</h1>", TABS, [("texts", '<p id="text-after" class="text">Paris</p>')])
    page = Page(look)
    assert page.values("id") == ["first-look"]
    assert page.values("data-part") == ["texts"]
    assert [piece for piece in page.pieces if piece in ("Secateur", *TABS, "Paris")] == [
        "Secateur",
        *TABS,
        "Paris",
    ]


@pytest.mark.parametrize(
    "words", ["117.9M", "20% of the MLP neurons removed", "Pruned", "Much worse", "Facts"]
)
def test_the_first_look_holds_the_picture_the_answers_the_numbers_and_the_skills(words, demo):
    assert words in " ".join(Page(first_look_of(demo)).pieces)
