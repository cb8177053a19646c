"""An inspection shows what the models compute."""

import pytest
import torch

from pruning import Calibration, Neurons, Recipe, RecipeError, Vocabulary, prune
from pruning.errors import Cancelled
from pruning.evaluation.inspection import (
    importance_map,
    layer_influences,
    losses_by_token,
    neuron_scores,
    next_tokens,
    overlaps,
)
from pruning.text import likelihood, prompt
from tests.helpers.models import FAMILIES, PROMPT, VOCABULARY, loaded, trained

TEXT = Calibration(tokens=1280, window=64)


@pytest.fixture(scope="module")
def pair():
    base = trained()
    step = Neurons(fraction=0.5, criterion="random", repair=False)
    return base, prune(Recipe(base="tiny", steps=[step]), base)


def test_next_tokens_are_the_likeliest(pair):
    base, _ = pair
    tokens = next_tokens(base, PROMPT, 320)
    assert sum(token.probability for token in tokens) == pytest.approx(1, abs=1e-4)
    values = [token.probability for token in tokens]
    assert values == sorted(values, reverse=True)
    ids = base.tokenizer(PROMPT, return_tensors="pt").input_ids
    order = base.model(ids).logits[0, -1].argsort(descending=True)
    assert [token.text for token in tokens[:5]] == [base.tokenizer.decode([int(id_)]) for id_ in order[:5]]


def test_losses_add_up_to_the_loss_of_the_text(pair):
    base, pruned = pair
    text = "Once there was a fox who lived in the wood."
    rows = losses_by_token((base, pruned), text)
    assert "".join(row.text for row in rows) == text
    assert rows[0].losses == (None, None)
    ids = base.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    for which, model in enumerate((base.model, pruned.model)):
        mean = sum(row.losses[which] for row in rows[1:]) / (len(rows) - 1)
        assert mean == pytest.approx(float(model(ids, labels=ids).loss), rel=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no text to read"),
        ("   ", "no text to read"),
        (None, "no text to read"),
        ("x" * 5000, "5,000 characters; at most 4,000"),
        ("x", "a single token"),
    ],
)
def test_texts_without_losses_are_refused(pair, text, message):
    with pytest.raises(RecipeError, match=message):
        losses_by_token(pair, text)


def test_models_that_split_a_text_differently_are_refused():
    base = trained()
    pruned = prune(Recipe(base="tiny", steps=[Vocabulary(size=270)]), base)
    with pytest.raises(RecipeError, match="different tokens, because the vocabulary was cut"):
        losses_by_token((base, pruned), "Once there was a fox who lived in the wood.")


def test_importance_falls_from_left_to_right_and_follows_the_criterion():
    base = loaded("llama")
    scores = neuron_scores(base, "l2", TEXT)
    rows = importance_map(scores, columns=16)
    assert [len(row) for row in rows] == [16] * 3
    for row in rows:
        assert row[0] == pytest.approx(1)
        assert row == sorted(row, reverse=True)
    assert overlaps(scores, scores, 0.5) == [1.0] * 3
    reversed_scores = [-row for row in scores]
    assert max(overlaps(scores, reversed_scores, 0.5)) < 0.1
    with pytest.raises(RecipeError, match="does not give a neuron a single score"):
        neuron_scores(base, "gate_up_unpaired")


def test_there_is_an_influence_for_each_layer():
    values = layer_influences(loaded("llama"), TEXT)
    assert len(values) == 3
    assert all(0 < value < 2 for value in values)
    assert torch.tensor(values).isfinite().all()


def test_a_prompt_longer_than_the_model_reads_is_refused(monkeypatch):
    base = loaded("llama")
    with pytest.raises(RecipeError, match=r"more than the model's context of 1024\. Shorten it"):
        next_tokens(base, "fox " * 1000)
    monkeypatch.setattr(prompt, "MAX_PROMPT_TOKENS", 20)
    with pytest.raises(RecipeError, match=r"tokens; at most 20 are allowed\. Shorten it"):
        next_tokens(base, "fox " * 50)


def test_logits_are_computed_in_bounded_pieces_and_give_the_same_losses(monkeypatch):
    base, text = trained(), "Once there was a fox who lived in the wood."
    sizes = []

    def record(_module, _args, logits):
        sizes.append(logits.numel())

    handle = base.model.get_output_embeddings().register_forward_hook(record)
    try:
        whole = losses_by_token((base,), text)
        monkeypatch.setattr(likelihood, "MOST_LOGITS", 3 * VOCABULARY)
        pieces = losses_by_token((base,), text)
        assert max(sizes[1:]) == 3 * VOCABULARY < sizes[0]
        sizes.clear()
        next_tokens(base, text)
        assert sizes == [VOCABULARY]
    finally:
        handle.remove()
    assert [row.text for row in pieces] == [row.text for row in whole]
    values = [[row.losses[0] for row in rows[1:]] for rows in (whole, pieces)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_the_models_own_logits(family):
    base = loaded(family)
    ids = torch.arange(3, 60)
    logits = base.model(input_ids=ids[None]).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
    torch.testing.assert_close(likelihood.token_losses(base.model, ids), expected)


def test_reading_can_be_cancelled(pair):
    def stop(_progress):
        raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        next_tokens(pair[0], PROMPT, progress=stop)
    with pytest.raises(Cancelled):
        losses_by_token(pair, "Once there was a fox.", progress=stop)
