"""A model's own answers to the bundled questions, as text to calibrate on."""

import json

import pytest
import torch

import pruning
from pruning import Calibration, Recipe, RecipeError
from pruning.calibration.calibrate import windows_of
from pruning.text import questions
from pruning.text.chat_learning import learn_chat_format
from pruning.text.choice import DEFAULT_CALIBRATION, MIX_TOKENS
from pruning.text.own_answers import Conversation, digest_of, own_answers, pack, shipped_answers
from tests.helpers.chat import named
from tests.helpers.models import loaded, tiny


def test_the_default_models_answers_are_those_to_the_calibration_questions():
    asked = [question.prompt for question in questions.read("calibration")]
    assert sorted(asked) == sorted(conversation.question for conversation in shipped_answers())
    assert all(conversation.answer for conversation in shipped_answers())


def test_a_model_that_cannot_chat_reads_the_plain_part_of_the_mix():
    base = loaded("llama")
    mixed = windows_of(base, Calibration(text="chat_and_general", tokens=3000, window=128))
    plain = windows_of(base, Calibration(text="general", tokens=1000, window=128))
    assert mixed.digest == plain.digest
    with pytest.raises(RecipeError, match="needs a model that can chat"):
        windows_of(base, Calibration(text="chat", tokens=1000))


def test_a_new_recipe_reads_chat_and_an_old_one_what_it_read():
    steps = [{"step": "neurons", "fraction": 0.2}]
    assert Recipe(base="smollm2-135m", steps=steps).calibration == DEFAULT_CALIBRATION
    old = Recipe.parse(json.dumps({"base": "smollm2-135m", "steps": steps}))
    assert old.calibration == Calibration(text="general", tokens=8192)
    partly = {"base": "smollm2-135m", "steps": steps, "calibration": {"tokens": 4096}}
    assert Recipe.parse(json.dumps(partly)).calibration == Calibration(text="general", tokens=4096)
    assert Calibration(text="chat_and_general").tokens == MIX_TOKENS
    assert Calibration(text="chat_and_general", tokens=5000).tokens == 5000


def test_the_digest_of_a_recipe_is_what_it_was_and_survives_a_file():
    steps = [{"step": "neurons", "fraction": 0.2}]
    old = Recipe.parse(json.dumps({"base": "smollm2-135m", "steps": steps}))
    written_out = Recipe(
        base="smollm2-135m",
        steps=[{**steps[0], "multiple_of": 1}],
        calibration=Calibration(text="general", tokens=8192),
    )
    assert old.digest == written_out.digest
    new = Recipe(base="smollm2-135m", steps=steps)
    for recipe in (old, new):
        assert Recipe.parse(recipe.to_yaml()) == recipe
        assert Recipe.parse(recipe.to_yaml()).digest == recipe.digest
        named = {}
        exec(recipe.to_python().split("pruned =")[0], {"pruning": pruning}, named)
        assert named["recipe"] == recipe


@pytest.mark.parametrize("unknown", [0, 3, "2", None, [], True])
def test_a_recipe_of_another_format_is_refused(unknown):
    text = json.dumps({"format": unknown, "base": "a", "steps": [{"step": "neurons", "fraction": 0.2}]})
    with pytest.raises(RecipeError, match="this version reads recipes of the formats 1 to 2"):
        Recipe.parse(text)


@pytest.mark.real
def test_windows_of_chat_are_whole_turns_in_the_models_format(smollm2):
    chat_format = learn_chat_format(smollm2.tokenizer)
    conversations = own_answers(smollm2, 2000)
    windows = pack(smollm2, chat_format, conversations, 400, 2000)
    assert sum(map(len, windows)) == 2000
    assert all(len(window) <= 400 for window in windows)
    text = smollm2.tokenizer.decode(windows[0])
    first = conversations[0]
    assert text.startswith("<|im_start|>system")
    assert f"<|im_start|>user\n{first.question}<|im_end|>\n<|im_start|>assistant\n{first.answer}" in text
    for window in windows[:-1]:
        assert smollm2.tokenizer.decode(window).rstrip().endswith("<|im_end|>")


@pytest.mark.real
def test_a_conversation_longer_than_a_window_is_cut_off(smollm2):
    chat_format = learn_chat_format(smollm2.tokenizer)
    long = Conversation("Why?", "Because " * 100, False)
    windows = pack(smollm2, chat_format, (long, long), 64, 1000)
    assert [len(window) for window in windows] == [64, 64]


@pytest.mark.real
@pytest.mark.parametrize(("text", "tokens"), [("chat_and_general", 256), ("chat", 256), ("chat", 700)])
def test_little_of_it_is_enough(smollm2, text, tokens):
    windows = windows_of(smollm2, Calibration(text=text, tokens=tokens))
    assert 0.95 * tokens <= windows.tokens <= tokens + 8
    assert windows.heldout
    assert windows.fitting


@pytest.mark.real
def test_the_mix_holds_out_some_of_both_texts(smollm2):
    windows = windows_of(smollm2, Calibration(text="chat_and_general", tokens=6000, window=256))
    assert 5500 <= windows.tokens <= 6000
    for part in (windows.fitting, windows.heldout):
        texts = [smollm2.tokenizer.decode(window) for window in part]
        assert any("<|im_start|>" in text for text in texts)
        assert any("<|im_start|>" not in text for text in texts)
    assert not any(
        torch.equal(one, other)
        for one in windows.fitting
        for other in windows.heldout
        if one.shape == other.shape
    )


@pytest.mark.parametrize("text", ["chat", "chat_and_general"])
def test_a_run_records_which_answers_it_read(text, tmp_path):
    words = named("chatml")
    tiny("llama", vocab_size=len(words)).save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    base = pruning.load(str(tmp_path / "base"))
    calibration = Calibration(text=text, tokens=1000)
    reads = Recipe(
        base=str(tmp_path / "base"), calibration=calibration, steps=[pruning.Neurons(fraction=0.3)]
    )
    recorded = pruning.prune(base, recipe=reads).recipe
    read = conversations_read(base, calibration)
    assert recorded.calibration.answers == digest_of(read)
    assert recorded.digest == reads.pinned(base.source.revision).digest
    assert Recipe.parse(recorded.to_yaml()) == recorded
    assert recorded.calibration.answers not in recorded.to_python()
    weights_alone = pruning.Neurons(fraction=0.3, criterion="l2", repair=False)
    unread = reads.model_copy(update={"steps": (weights_alone,)})
    assert pruning.prune(base, recipe=unread).recipe.calibration.answers is None


def conversations_read(base, calibration):
    return own_answers(
        base, calibration.tokens if calibration.text == "chat" else round(calibration.tokens * 2 / 3)
    )
