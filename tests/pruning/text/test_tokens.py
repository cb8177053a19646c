"""Long texts are tokenized in chunks, as if they had been read whole; a panic is an error like any other."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from pruning import Calibration, perplexity
from pruning.calibration.calibrate import windows_of
from pruning.errors import Cancelled, ModelError, RecipeError, panics_as_errors
from pruning.text import tokens
from pruning.text.passages import GENRES, passage
from pruning.text.prompt import encode_prompt
from pruning.text.tokens import (
    bos_ids,
    check_words_known,
    encode,
    ids_around,
    split_into_windows,
    token_ids,
    tokenize,
)
from tests.helpers.models import BOS, EOS, loaded, tokenizer

TEXT = "\n\n".join(passage(genre, "calibration") for genre in GENRES) + " naïve 日本語 🙂 " * 50

IDS = torch.arange(10, 30)


def sentencepiece_like():
    """A tokenizer that reads a text as one word, with spaces as letters, as Llama 2's does."""
    letters = sorted(set(TEXT) | {"▁"} - {" "})
    pieces = ["<unk>", *letters, "▁t", "he", "▁the", "▁a", "in", "ing", "▁s", "er"]
    merges = [
        ("▁", "t"),
        ("h", "e"),
        ("▁t", "he"),
        ("▁", "a"),
        ("i", "n"),
        ("in", "g"),
        ("▁", "s"),
        ("e", "r"),
    ]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, "g"]))}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")


@pytest.mark.parametrize("make", [tokenizer, lambda: tokenizer(bos=True), sentencepiece_like])
@pytest.mark.parametrize("size", [5_003, 30_000])
def test_chunks_give_the_tokens_of_the_whole_text(make, size, monkeypatch):
    words = make()
    whole = words(TEXT, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    monkeypatch.setattr(tokens, "CHUNK", size)
    read = tokenize(words, TEXT)
    assert read.ids == whole.input_ids
    assert list(zip(read.starts, read.ends, strict=True)) == whole.offset_mapping


def test_a_text_without_any_border_still_has_all_of_its_characters(monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK", 5_000)
    words, text = tokenizer(), "x" * 20_000
    assert words.decode(tokenize(words, text).ids) == text


def test_tokenizing_reports_between_chunks_and_stops_at_a_limit(monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK", 5_000)
    reports = []
    assert len(tokenize(tokenizer(), TEXT, reports.append, limit=100).ids) >= 100
    assert len(reports) == 2
    base = loaded("llama")

    def stop(progress):
        if progress.done:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        token_ids(base.model, base.tokenizer, TEXT, stop)


def test_a_passage_is_tokenized_once_for_each_tokenizer_and_other_texts_are_not_kept(monkeypatch):
    read = []
    monkeypatch.setattr(
        tokens, "tokenize", lambda words, text, *rest: read.append(text) or tokenize(words, text, *rest)
    )
    story = passage("story", "calibration")
    words, others = deepcopy(tokenizer()), sentencepiece_like()
    first = encode(words, story)
    assert encode(words, story) is first
    assert first.tolist() == words(story, add_special_tokens=False, verbose=False).input_ids
    assert encode(others, story).tolist() != first.tolist()
    words.add_tokens(["The"])  # It was in the vocabulary.
    encode(words, story)
    words.add_tokens(["Odile"])
    assert encode(words, story).tolist() != first.tolist()
    assert read == [story] * 4
    assert torch.equal(encode(words, TEXT), encode(words, TEXT))
    assert read == [story] * 4 + [TEXT] * 2


class PanicException(BaseException):
    """What pyo3 raises, by its name."""


def test_a_panic_becomes_a_sentence_and_nothing_else_does():
    with pytest.raises(ModelError, match="tokenizer failed on this text"), panics_as_errors():
        raise PanicException("index out of range")
    for kind in (KeyboardInterrupt, GeneratorExit, ValueError):
        with pytest.raises(kind), panics_as_errors():
            raise kind


def test_a_tokenizer_that_panics_is_a_model_error():
    class Panicking:
        is_fast = True

        def __call__(self, *_, **__):
            raise PanicException("regex")

    with pytest.raises(ModelError, match="tokenizer failed"):
        tokenize(Panicking(), "text")


@pytest.mark.parametrize(
    ("single", "before", "after"),
    [
        ("$A", [], []),
        (f"{BOS} $A", [0], []),
        (f"$A {EOS}", [], [1]),
        (f"{BOS} $A {EOS}", [0], [1]),
    ],
)
def test_what_stands_before_a_text_is_told_from_what_stands_after_it(single, before, after):
    words = tokenizer()
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(BOS, 0), (EOS, 1)]
    )
    assert ids_around(words) == (before, after)
    assert bos_ids(words).tolist() == before
    assert all(window.tolist()[: len(before)] == before for window in split_into_windows(words, IDS, 6))
    prompt = encode_prompt(words, "The old man")[0].tolist()
    assert prompt == before + words("The old man", add_special_tokens=False).input_ids


def test_a_tokenizer_without_a_token_for_a_letter_begins_texts_as_it_does(tmp_path):
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({BOS: 0, EOS: 1, "man": 2})), bos_token=BOS, eos_token=EOS
    )
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, 0), (EOS, 1)]
    )
    assert ids_around(words) == ([0], [1])


def test_a_tokenizer_without_offsets_is_refused_with_a_sentence():
    with pytest.raises(ModelError, match="ByT5Tokenizer, which does not say where in a text") as error:
        tokenize(ByT5Tokenizer(), "The old man")
    assert "criterion" not in str(error.value)  # Nothing may have been pruned.


def word_pieces(**options):
    """A WordPiece tokenizer that knows no word; by default, it does not split texts into words either."""
    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    for name, value in options.items():
        setattr(pieces, name, value)
    return PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]", pad_token="[PAD]")


def test_a_text_whose_words_are_unknown_is_not_called_too_short():
    base, text = loaded("llama"), "The old man walked to the sea. " * 40
    unread = f"1 tokens of a text of {len(text):,} characters, and 1 of them are \\[UNK\\]"
    with pytest.raises(ModelError, match=unread):
        perplexity(base.model, word_pieces(), text)
    calibration = Calibration.custom(text)
    with pytest.raises(ModelError, match=unread):
        windows_of(replace(base, tokenizer=word_pieces()), calibration)
    by_words = word_pieces(pre_tokenizer=pre_tokenizers.BertPreTokenizer())
    with pytest.raises(ModelError, match="16 tokens of a text of 62 characters, and 16 of them are"):
        check_words_known(by_words, text[:62], tokenize(by_words, text[:62]).ids)
    with pytest.raises(RecipeError, match="too short"):
        perplexity(base.model, base.tokenizer, "")
