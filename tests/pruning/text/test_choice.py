"""The bundled passages: enough of each genre, and none of it on both sides; and the choice of a text."""

import hashlib
import re
from importlib.resources import files

import pytest

from pruning import Calibration, RecipeError, TextChoice
from pruning.text.choice import read_texts
from pruning.text.passages import CALIBRATION_NAMES, CUSTOM, GENRES, SELF_GENERATED, passage


def sentences(text):
    """Lines, and sentences within them, that are too long to be there twice by chance."""
    parts = text.splitlines() + re.split(r"(?<=[.!?])\s+|\n", text)
    return {part.strip() for part in parts if len(part.strip()) >= 40}


def test_the_passages_are_those_of_release_0_1_0():
    """Recipes name them, and the same recipe gives the same weights indefinitely."""
    total = hashlib.sha256()
    for file in sorted(files("pruning.text.passages").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".txt"):
            total.update(file.name.encode() + b"\n" + file.read_bytes())
    assert total.hexdigest() == "9d8257a11188ca63d291dd0b59d25c234abef7566f32c711c94ea345591389dd"


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


@pytest.mark.parametrize("name", [name for name in CALIBRATION_NAMES if name != CUSTOM])
def test_a_text_is_chosen_by_its_name(name):
    assert TextChoice.named(name) == TextChoice(text=name)
    assert Calibration.named(name, tokens=512) == Calibration(text=name, tokens=512)


def test_a_text_is_chosen_by_its_file(tmp_path):
    (tmp_path / "mine.txt").write_text("Süßes, sonst gibt's Saures.", encoding="utf-8")
    choice = Calibration.named(str(tmp_path / "mine.txt"), tokens=512)
    given = Calibration.custom("Süßes, sonst gibt's Saures.", tokens=512)
    assert choice == given.model_copy(update={"address": "mine.txt"})
    assert choice.canonical() == given.canonical()
    assert read_texts(choice) == ["Süßes, sonst gibt's Saures."]
    assert choice.sha256 == hashlib.sha256("Süßes, sonst gibt's Saures.".encode()).hexdigest()
    assert "Saures" not in repr(choice) + str(choice.model_dump()) + choice.to_python()
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"bytes\.txt cannot be read: it is not UTF-8 text"):
        TextChoice.named(str(tmp_path / "bytes.txt"))


@pytest.mark.parametrize("name", ["nowhere", CUSTOM, "own", ""])
def test_what_is_neither_a_text_nor_a_file_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RecipeError, match=f"no calibration text '{name}': it is neither a file nor one of chat_and_general"
    ):
        TextChoice.named(name)


def test_a_custom_text_is_the_same_text_or_none():
    choice = TextChoice(text=CUSTOM, sha256=TextChoice.custom("one").sha256)
    assert choice.with_content("one") == TextChoice.custom("one")
    with pytest.raises(RecipeError, match="not the text that the recipe was calibrated on"):
        choice.with_content("two")
    with pytest.raises(RecipeError, match=r"which a recipe never holds\. Give the same text again"):
        read_texts(choice)
    with pytest.raises(RecipeError, match="A custom calibration text needs its content"):
        TextChoice(text=CUSTOM)


def test_every_genre_is_a_text_of_the_mix():
    assert read_texts(TextChoice()) == [passage(genre, "calibration") for genre in GENRES]
    assert [read_texts(TextChoice(text=genre)) for genre in GENRES] == [
        [passage(genre, "calibration")] for genre in GENRES
    ]
    assert SELF_GENERATED not in GENRES
