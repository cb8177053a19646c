"""Questions in a model's chat format: which tokens it reads, where its answer ends, and what is refused."""

import json
import sys
from dataclasses import replace

import pytest
import torch

import pruning
from pruning.cli import main
from pruning.text import prompt as prompts
from pruning.text.chat_learning import learn_chat_format
from pruning.text.generation import stream_together
from tests.helpers.chat import SPECIAL, TEMPLATES, conversation, made, named
from tests.helpers.models import loaded, tiny

QUESTION = "Who walked to the harbor?"
SAMPLING = pruning.Sampling(16)


def chatting(words):
    """A small model with random weights that knows all tokens of a tokenizer."""
    model = tiny("llama", vocab_size=len(words))
    return replace(loaded("llama"), model=model, tokenizer=words)


def ids_of(words, messages):
    return words.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def continued(base, ids):
    """Return the tokens with which transformers continues others; no token ends them."""
    inputs = torch.tensor([ids])
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "max_new_tokens": 16}
    generated = base.model.generate(inputs, attention_mask=torch.ones_like(inputs), **settings)
    return generated[0, len(ids) :].tolist()


def text(base, ids):
    return base.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.fixture
def without_eos(monkeypatch):
    """A model that chats and has no EOS token."""
    base = chatting(named("chatml_default_system"))
    base.model.config.eos_token_id = base.model.generation_config.eos_token_id = None
    return base


def test_a_question_is_asked_in_the_chat_format_by_default(without_eos):
    base, words = without_eos, without_eos.tokenizer
    expected = text(base, continued(base, ids_of(words, conversation(QUESTION))))
    assert pruning.generate(base, QUESTION, SAMPLING) == expected
    assert pruning.generate(base, QUESTION, SAMPLING, chat=True) == expected
    plain = text(base, continued(base, words(QUESTION).input_ids))
    assert pruning.generate(base, QUESTION, SAMPLING, chat=False) == plain != expected
    polite = conversation(QUESTION, system="Be polite.")
    assert pruning.generate(base, QUESTION, SAMPLING, system="Be polite.") == text(
        base, continued(base, ids_of(words, polite))
    )


def test_an_answer_ends_at_the_token_of_the_template_which_is_not_eos(without_eos, monkeypatch):
    base, words = without_eos, without_eos.tokenizer
    ids = continued(base, ids_of(words, conversation(QUESTION)))
    at = next(at for at in range(3, 16) if ids[at] not in ids[:at])
    learned = learn_chat_format(words)
    token = words.convert_ids_to_tokens(ids[at])
    assert token not in words.all_special_tokens
    ends = replace(learned, stop_tokens=("<|im_end|>", token))
    monkeypatch.setattr(prompts, "learn_chat_format", lambda _: ends)
    assert pruning.generate(base, QUESTION, SAMPLING) == text(base, ids[:at])
    # The EOS token of the model ends it too.
    base.model.generation_config.eos_token_id = ids[0]
    assert len(pruning.generate(base, QUESTION, SAMPLING)) <= len(text(base, ids[:1]))


def test_a_model_without_a_template_continues_and_does_not_chat():
    base = loaded("llama")
    plain = pruning.generate(base, QUESTION, SAMPLING, chat=False)
    assert pruning.generate(base, QUESTION, SAMPLING) == plain
    for settings in ({"chat": True}, {"system": "Be polite."}):
        with pytest.raises(pruning.RecipeError, match=r"cannot chat\. The tokenizer has no chat template\."):
            pruning.generate(base, QUESTION, SAMPLING, **settings)
    with pytest.raises(pruning.RecipeError, match="A system prompt is for a chat"):
        pruning.generate(base, QUESTION, SAMPLING, chat=False, system="Be polite.")


def test_a_model_without_a_system_role_refuses_a_system_prompt():
    base = chatting(named("gemma2"))
    assert isinstance(pruning.generate(base, QUESTION, SAMPLING), str)
    with pytest.raises(pruning.RecipeError, match=r"cannot be given to this model\. .* refuses one\."):
        pruning.generate(base, QUESTION, SAMPLING, system="Be polite.")


@pytest.mark.parametrize("question", ["", " \n", None])
def test_an_empty_question_is_refused(question):
    base = chatting(named("chatml"))
    with pytest.raises(pruning.RecipeError, match=r"^The (question|prompt) is empty\. Write a few words"):
        pruning.stream(base, question)
    with pytest.raises(pruning.RecipeError, match=r"^The system prompt is empty\. Write a few words"):
        pruning.stream(base, "Who?", system=question or " ")


def test_too_long_a_question_is_refused():
    base = chatting(named("chatml"))
    for settings in ({"prompt": "x" * 20_001}, {"prompt": "x", "system": "x" * 20_001}):
        with pytest.raises(pruning.RecipeError, match="20,001 characters; at most 20,000"):
            pruning.stream(base, **settings)


def test_a_pair_chats_if_it_is_asked_to(without_eos):
    base = without_eos
    *_, last = stream_together((base, base), QUESTION, SAMPLING, chat=True, system="Be polite.")
    assert last == (pruning.generate(base, QUESTION, SAMPLING, system="Be polite."),) * 2
    *_, last = stream_together((base, base), QUESTION, SAMPLING)
    assert last == (pruning.generate(base, QUESTION, SAMPLING, chat=False),) * 2


@pytest.fixture
def shell(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["secateur", "generate", *map(str, arguments)])
        status = main()
        out, err = capsys.readouterr()
        return status, out, err.splitlines()

    return run


@pytest.fixture
def folder(tmp_path):
    """`folder(words)` saves a small model with a tokenizer."""

    def save(words):
        base = chatting(words)
        base.model.save_pretrained(tmp_path / "model")
        words.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def test_the_shell_chats_by_default_and_continues_if_it_is_told_to(shell, folder):
    saved = folder(named("chatml"))
    base = pruning.load(str(saved))
    for options, settings in (
        ((), {}),
        (("--chat",), {"chat": True}),
        (("--system", "Be polite."), {"system": "Be polite."}),
        (("--plain",), {"chat": False}),
    ):
        status, out, err = shell(saved, QUESTION, "--json", *options)
        answer = json.loads(out)
        expected = {"prompt": QUESTION, "chat": settings.get("chat", True)}
        assert (status, answer) == (0, expected | {"text": pruning.generate(base, QUESTION, **settings)})
        assert not [line for line in err if line.startswith("Warning")]
    status, out, _ = shell(saved, QUESTION)
    assert (status, out) == (0, pruning.generate(base, QUESTION) + "\n")
    status, out, _ = shell(saved, QUESTION, "--plain")
    assert (status, out) == (0, QUESTION + pruning.generate(base, QUESTION, chat=False) + "\n")
    status, out, err = shell(saved, " ")
    assert (status, out) == (2, "")
    assert err[-1] == "Error: The question is empty. Write a few words for the model to answer."


def test_the_shell_says_in_one_line_why_a_model_does_not_chat(shell, folder):
    status, out, err = shell(folder(made("{{ messages[-1].content }}A:")), QUESTION)
    assert status == 0
    assert out.startswith(QUESTION)
    reason = "The chat template rewrites earlier turns of a conversation."
    assert [line for line in err if line.startswith("Warning")] == [
        f"Warning: {reason} The text is continued instead."
    ]
    status, out, err = shell(folder(made("{{ messages[-1].content }}A:")), QUESTION, "--chat")
    assert (status, out) == (2, "")
    assert err[-1] == f"Error: This model cannot chat. {reason} Let it continue a plain text."


def test_a_pruned_vocabulary_keeps_the_chat_format(tmp_path):
    words = made(TEMPLATES["chatml"], SPECIAL["chatml"])
    base = chatting(words)
    base.model.save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    recipe = pruning.Recipe(base=str(tmp_path / "base"), steps=[pruning.Vocabulary(vocab_size=310)])
    smaller = pruning.prune(recipe, pruning.load(str(tmp_path / "base"))).tokenizer
    learned = learn_chat_format(smaller)
    assert learned == learn_chat_format(words)
    assert learned.encode(smaller, conversation(QUESTION)) == ids_of(smaller, conversation(QUESTION))
    assert learned.stop_ids(smaller) == [smaller.convert_tokens_to_ids("<|im_end|>")]


@pytest.mark.real
def test_the_real_default_model_answers(smollm2):
    answer = pruning.generate(smollm2, "What is the capital of France?", pruning.Sampling(30))
    assert "Paris" in answer
    assert "<|im_end|>" not in answer
