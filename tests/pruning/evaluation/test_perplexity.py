"""Perplexity and bits per byte follow from the plain loss, and an evaluation weighs all genres the same."""

import json
import math

import pytest
import torch

import pruning
from pruning import RecipeError, evaluate, perplexity
from pruning.errors import Cancelled
from pruning.evaluation.perplexity import (
    GENRE_CHARACTERS,
    Perplexity,
    Quality,
    evaluation_key,
    iter_evaluate,
    size_on_disk,
    summarize,
)
from pruning.evaluation.speed import tokens_per_second
from pruning.text.passages import GENRES, passage
from tests.helpers.models import WITH_BOS, loaded, trained

TEXT = passage("story", "heldout")
RECIPE = pruning.Recipe(base="tiny", steps=[pruning.Vocabulary(size=270)])


def plain(base, tokens, window, text=TEXT):
    """Compute perplexity from the losses of transformers, window by window; and the tokens read."""
    ids = base.tokenizer(text, add_special_tokens=False).input_ids[:tokens]
    start = [base.tokenizer.bos_token_id] if base.model.config.model_type in WITH_BOS else []
    size, total, count, read = window - len(start), 0.0, 0, 0
    for first in range(0, len(ids), size):
        piece = torch.tensor([start + ids[first : first + size]])
        if piece.shape[1] > 1:
            total += float(base.model(input_ids=piece, labels=piece).loss) * (piece.shape[1] - 1)
            count += piece.shape[1] - 1
            read += piece.shape[1] - len(start)
    return math.exp(total / count), read


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2", "gemma2"])
@pytest.mark.parametrize(
    ("tokens", "window"), [(200, 512), (200, 100), (201, 100), (199, 100), (65, 16), (2, 16), (40, 2)]
)
def test_perplexity_is_the_plain_loss(family, tokens, window):
    base = loaded(family)
    measured = perplexity(base.model, base.tokenizer, TEXT, tokens=tokens, window=window)
    value, read = plain(base, tokens, window)
    assert measured.value == pytest.approx(value, rel=1e-4)
    assert (measured.tokens, measured.window) == (read, window)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("window", [512, 16, 7])
def test_bits_per_byte_count_the_bytes_of_the_predicted_tokens(family, window):
    base, text = loaded(family), "Señor — 日本 ☕ said: 'naïve 🌲🌲 trees'.\n" * 4
    ids = base.tokenizer(text, add_special_tokens=False).input_ids
    measured = perplexity(base.model, base.tokenizer, text, window=window)
    starts = (
        [] if family in WITH_BOS else ids[::window]
    )  # Without a token before it, a token is not predicted.
    predicted = len(ids) - len(starts)
    size = len(text.encode()) - sum(
        len(base.tokenizer.convert_ids_to_tokens(token))  # One character for each byte.
        for token in starts
    )
    bits = math.log2(measured.value) * predicted
    # A character that is split between two windows counts in the first.
    split = 0 if family in WITH_BOS else 4 * len(starts) / size
    assert measured.bits_per_byte == pytest.approx(bits / size, rel=split + 1e-9)
    assert measured.tokens == len(ids)


def test_bits_per_byte_compare_different_vocabularies():
    """A model without any knowledge finds all tokens equally likely."""
    base, text = loaded("llama", seed=1), TEXT[:1500]
    head = base.model.lm_head.weight
    kept = head.clone()
    head.zero_()
    try:
        for one in (base, pruning.prune(RECIPE, base)):
            measured, size = perplexity(one.model, one.tokenizer, text), one.model.config.vocab_size
            bits = len(one.tokenizer(text, add_special_tokens=False).input_ids) * math.log2(size)
            assert measured.value == pytest.approx(size)
            assert measured.bits_per_byte == pytest.approx(bits / len(text.encode()))
    finally:
        head.copy_(kept)


def test_models_with_any_vocabulary_are_evaluated_on_the_same_text():
    base = loaded("llama")
    for one in (base, pruning.prune(RECIPE, base)):
        genre, measured = next(iter_evaluate(one))
        text = passage(genre, "heldout")[:GENRE_CHARACTERS]
        assert measured == perplexity(one.model, one.tokenizer, text, name=measured.text)
        assert measured.tokens == len(one.tokenizer(text, add_special_tokens=False).input_ids)


def test_the_whole_text_is_read_by_default():
    base = loaded("gpt2")
    short = TEXT[:700]
    measured = perplexity(base.model, base.tokenizer, short)
    assert measured.tokens == len(base.tokenizer(short).input_ids)
    assert measured == perplexity(base.model, base.tokenizer, short, tokens=10**6)


def test_windows_are_limited_to_the_context():
    base = loaded("gpt2", n_positions=64)
    measured = perplexity(base.model, base.tokenizer, TEXT, tokens=200)
    assert measured.window == 64
    assert measured.value == pytest.approx(plain(base, 200, 64)[0], rel=1e-4)
    assert evaluate(base, tokens=500).overall.window == 64


@pytest.mark.parametrize("text", ["", "a"])
def test_text_too_short_is_refused(text):
    base = loaded("gpt2")
    with pytest.raises(RecipeError, match="at least two tokens are needed"):
        perplexity(base.model, base.tokenizer, text)


def test_a_token_without_an_embedding_is_named():
    base = loaded("qwen2", vocab_size=320)
    with pytest.raises(RecipeError, match=r"'<\|endoftext\|>'.*Remove it"):
        perplexity(base.model, base.tokenizer, "Hello <|endoftext|>")


def test_an_evaluation_weighs_five_genres_the_same():
    base, lines = trained(), []
    measured = evaluate(base, tokens=1000, progress=lines.append)
    assert list(measured.genres) == list(GENRES)
    for genre, title in GENRES.items():
        alone = perplexity(base.model, base.tokenizer, passage(genre, "heldout"), tokens=200)
        assert measured.genres[genre].value == pytest.approx(alone.value)
        assert title in measured.genres[genre].text
        assert any(title in line.text for line in lines)
    product = math.prod(one.value for one in measured.genres.values())
    assert measured.overall.value == pytest.approx(product ** (1 / 5))
    mean = sum(one.bits_per_byte for one in measured.genres.values()) / 5
    assert measured.overall.bits_per_byte == pytest.approx(mean)
    assert measured.overall.tokens == sum(one.tokens for one in measured.genres.values())
    assert measured == summarize(dict(iter_evaluate(base, tokens=1000)))
    assert Quality.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured


def test_an_evaluation_is_deterministic_and_has_a_key_of_its_revision():
    base = trained()
    assert evaluate(base) == evaluate(base)
    assert evaluation_key("one") == evaluation_key("one") != evaluation_key("two")
    assert evaluation_key(None) == "751c4a4189f7097b1d4afab57a07c7e7"


def test_a_summary_without_all_bits_per_byte_has_none():
    measured = {"one": Perplexity(2.0, 10, 512, "one", 1.0), "two": Perplexity(8.0, 10, 512, "two")}
    assert summarize(measured).overall == Perplexity(
        pytest.approx(4.0), 20, 512, "five genres, held out", None
    )


def test_the_perplexity_of_a_ruined_model_is_infinite():
    base = loaded("gpt2", seed=2)
    kept = base.model.lm_head.weight.clone()
    base.model.lm_head.weight.mul_(1e6)
    try:
        assert perplexity(base.model, base.tokenizer, TEXT, tokens=50).value == math.inf
        assert evaluate(base, tokens=50).overall.value == math.inf
    finally:
        base.model.lm_head.weight.copy_(kept)


def test_speed_and_size():
    small, large = loaded("gpt2"), loaded("gpt2", n_layer=24)
    speeds = tokens_per_second((small.model, large.model), small.tokenizer, new_tokens=8)
    assert speeds[0] > speeds[1] > 0
    assert size_on_disk(10, torch.float32) == 40
    assert size_on_disk(10, torch.bfloat16) == 20


def test_measuring_speed_can_be_cancelled():
    base = loaded("llama")
    reports = []

    def stop(progress):
        reports.append(progress)
        if len(reports) > 2:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        tokens_per_second((base.model,), base.tokenizer, new_tokens=8, progress=stop)
    assert len(reports) == 3
