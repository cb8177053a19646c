"""What a visitor sees before Gradio has drawn the page is what it will show."""

import pytest

from page.html.first_look import first_look
from page.layout import TABS, first_look_of
from tests.page.html.samples import Page


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


@pytest.mark.parametrize("words", ["20% of the MLP neurons removed", "Pruned", "Much worse", "Facts"])
def test_the_first_look_holds_the_answers_the_numbers_and_the_skills(words, demo):
    assert words in " ".join(Page(first_look_of(demo)).pieces)
