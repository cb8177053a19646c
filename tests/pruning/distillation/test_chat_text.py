"""Distillation on the teacher's own answers to the bundled questions."""

import pytest
import torch

import pruning
from pruning import Distillation, Neurons, Recipe, RecipeError
from pruning.architectures.shape import Shape
from pruning.distillation.settings import MAX_HELDOUT_TOKENS
from pruning.steps.base import StepContext
from tests.helpers.models import folder_of, loaded


def training_tokens(base, text):
    context = StepContext(base.model, base.tokenizer, Shape.of(base.model.config), base)
    return Distillation(steps=1, text=text)._training_tokens(context, base)


def test_a_teacher_that_cannot_chat_is_read_in_general_text_or_refused():
    base = loaded("llama")
    assert training_tokens(base, "chat_and_general").digest == training_tokens(base, "general").digest
    recipe = Recipe(
        base=str(folder_of("llama")),
        steps=[Neurons(fraction=0.3, criterion="l2"), Distillation(steps=1, text="chat")],
    )
    with pytest.raises(RecipeError, match="The text chat needs a model that can chat"):
        pruning.prune(recipe, base)


@pytest.mark.real
def test_a_student_reads_its_teachers_answers(smollm2):
    alone, mixed = (training_tokens(smollm2, text) for text in ("chat", "chat_and_general"))
    assert "<|im_start|>assistant" in smollm2.tokenizer.decode(alone.tokens[:500])
    assert len(mixed.tokens) > len(alone.tokens) > 20_000
    assert torch.equal(mixed.tokens[: len(alone.tokens)], alone.tokens)
    assert 0 < sum(map(len, alone.heldout)) <= MAX_HELDOUT_TOKENS
    for window in alone.heldout:
        assert "<|im_start|>" in smollm2.tokenizer.decode(window)
