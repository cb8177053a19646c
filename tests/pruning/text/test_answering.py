"""Questions answered together get the answers that the model gives to each alone."""

import pytest
import torch

from pruning.errors import Cancelled, RecipeError
from pruning.text import answering
from pruning.text.answering import iter_answers
from pruning.text.generation import Sampling, generate_ids
from pruning.text.prompt import prepare_prompt
from tests.helpers.models import FAMILIES, loaded

QUESTIONS = ["a", "Once upon a time there was", "The cat", "one two three four five six seven", "why?"]


def alone(model, question, tokens):
    prompt = prepare_prompt(model.tokenizer, question)
    ids = generate_ids(model.model, prompt.ids, Sampling(tokens), stop_ids=prompt.stop_ids)
    return ids[0, prompt.ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [2, 64])
def test_answers_are_those_that_a_model_gives_alone(family, batch, monkeypatch):
    monkeypatch.setattr(answering, "BATCH", batch)
    model = loaded(family)
    answers = dict(iter_answers(model, QUESTIONS, max_new_tokens=12))
    assert sorted(answers) == list(range(len(QUESTIONS)))
    for number, question in enumerate(QUESTIONS):
        expected = alone(model, question, 12)
        answer = answers[number]
        assert [*answer.ids, *([answer.end] if answer.ended else [])] == expected
        assert answer.text == model.tokenizer.decode(answer.ids, skip_special_tokens=True)


def test_an_answer_that_ends_does_not_hold_up_the_others(monkeypatch):
    """Which token ends a text is chosen here so that the answers end after different numbers of tokens."""
    model = loaded("llama")
    texts = [alone(model, question, 12) for question in QUESTIONS]
    ends = {texts[0][3], texts[1][7]}
    monkeypatch.setattr(answering, "special_tokens", lambda _model: {"eos_token_id": sorted(ends)})
    answers = dict(iter_answers(model, QUESTIONS, max_new_tokens=12))
    for number, text in enumerate(texts):
        length = next((place for place, token in enumerate(text) if token in ends), None)
        assert list(answers[number].ids) == text[:length]
        assert answers[number].ended == (length is not None)


def test_answering_can_be_cancelled_between_two_tokens():
    seen = []

    def stop(progress):
        seen.append(progress)
        if len(seen) == 4:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        list(iter_answers(loaded("llama"), QUESTIONS, max_new_tokens=12, progress=stop))
    assert len(seen) == 4


def test_an_empty_question_is_refused():
    with pytest.raises(RecipeError, match="empty"):
        list(iter_answers(loaded("llama"), ["fine", "  "], max_new_tokens=2))


@pytest.mark.real
def test_the_default_model_answers_questions(smollm2):
    questions = ["What is the capital of France?", "What is 2 + 2?"]
    answers = dict(iter_answers(smollm2, questions, max_new_tokens=40))
    assert "Paris" in answers[0].text
    assert answers[0].ended
    with torch.inference_mode():
        assert list(answers[0].ids) == alone(smollm2, questions[0], 40)[: len(answers[0].ids)]
