"""The bundled passages: enough of each genre, and none of it on both sides."""

import re

import pytest

from pruning.text.passages import CALIBRATION_NAMES, GENRES, passage


def sentences(text):
    """Lines, and sentences within them, that are too long to be there twice by chance."""
    parts = text.splitlines() + re.split(r"(?<=[.!?])\s+|\n", text)
    return {part.strip() for part in parts if len(part.strip()) >= 40}


def test_there_are_five_genres():
    assert list(GENRES) == ["encyclopedia", "story", "code", "dialogue", "documentation"]
    assert set(GENRES) < set(CALIBRATION_NAMES)


@pytest.mark.real
@pytest.mark.parametrize("genre", GENRES)
def test_there_is_enough_of_each(genre, smollm2):
    for split, least in (("calibration", 2000), ("heldout", 1000)):
        assert len(smollm2.tokenizer(passage(genre, split), verbose=False).input_ids) >= least


@pytest.mark.parametrize("genre", GENRES)
def test_nothing_held_out_is_calibrated_on(genre):
    known = set().union(*(sentences(passage(other, "calibration")) for other in GENRES))
    heldout = sentences(passage(genre, "heldout"))
    assert len(heldout) > 10
    assert heldout & known == set()
