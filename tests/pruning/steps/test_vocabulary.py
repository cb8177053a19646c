"""A model without a part of its vocabulary predicts the rest as before, and every id follows."""

import dataclasses
import json
import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

import pruning
from pruning import (
    Channels,
    Heads,
    Layers,
    Neurons,
    Recipe,
    RecipeError,
    TextChoice,
    Vocabulary,
    prune,
)
from pruning.architectures.shape import Shape
from pruning.cli import main
from pruning.text.bpe import BytePairs
from pruning.text.passages import GENRES, passage
from tests.helpers.models import BOS, EOS, FAMILIES, count, folder_of, loaded, tiny, tokens

STORY = passage("story", "calibration")


def recipe(family, *steps, **values):
    return Recipe(base=str(folder_of(family)), steps=steps, **values)


@pytest.mark.parametrize("family", FAMILIES)
def test_model_predicts_the_tokens_that_stay_as_before(family, tmp_path):
    base = loaded(family)
    before = {name: value.clone() for name, value in base.model.named_parameters()}
    made = recipe(family, Vocabulary(vocab_size=290, text=TextChoice(text="story")))
    pruned = prune(made, base, share_memory=True)
    shown = pruning.preview(made)
    assert shown.after.components == pruned.shape.components == Shape.of(pruned.model.config).components
    assert count(pruned.model) == shown.after.parameters < shown.before.parameters
    assert pruned.model.config.vocab_size == len(pruned.tokenizer) == 290
    tied = base.model.config.tie_word_embeddings
    assert pruned.model.config.tie_word_embeddings == tied
    heads = pruned.model.get_input_embeddings().weight, pruned.model.get_output_embeddings().weight
    assert (heads[0] is heads[1]) == tied

    old = base.tokenizer.get_vocab()
    kept = [
        old[token] for token in sorted(pruned.tokenizer.get_vocab(), key=pruned.tokenizer.get_vocab().get)
    ]
    ids = torch.tensor([[5, 17, 280, 44, 0, 289, 100, 31]])
    with torch.inference_mode():
        whole = base.model(torch.tensor(kept)[ids]).logits[..., kept]
        torch.testing.assert_close(pruned.model(ids).logits, whole, rtol=1e-5, atol=1e-5)
    for name, value in base.model.named_parameters():
        assert torch.equal(value, before[name])
        if value.shape[0] != base.model.config.vocab_size:
            assert pruned.model.get_parameter(name).data_ptr() == value.data_ptr()

    pruned.save(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    words = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert words(STORY).input_ids == pruned.tokenizer(STORY).input_ids
    assert torch.equal(model(ids).logits, pruned.model(ids).logits)
    for settings_ in (model.config, model.generation_config):
        assert settings_.bos_token_id == words.bos_token_id
        assert settings_.eos_token_id == words.eos_token_id


def test_ids_follow_in_every_config():
    base = loaded("llama")
    old = base.tokenizer.get_vocab()
    config = dataclasses.replace(base).model.config.to_dict()
    model = tiny("llama", eos_token_id=[old[EOS], old["t"]], pad_token_id=old["."])
    model.config.parts_config = {"bos_token_id": old[BOS], "image_token_id": 7000, "hidden_size": 31}
    model.generation_config.suppress_tokens = [old["Z"], old["!"]]
    model.generation_config.pad_token_id = -1
    changed = dataclasses.replace(base, model=model)
    pruned = prune(recipe("llama", Vocabulary(vocab_size=280)), changed)
    new = pruned.tokenizer.get_vocab()
    assert new != {token: old[token] for token in new}
    assert pruned.model.config.eos_token_id == [new[EOS], new["t"]]
    assert pruned.model.config.pad_token_id == new["."]
    nested = pruned.model.config.parts_config
    assert nested == {"bos_token_id": new[BOS], "image_token_id": None, "hidden_size": 31}
    assert pruned.model.generation_config.suppress_tokens == [new["Z"], new["!"]]
    assert pruned.model.generation_config.pad_token_id == -1
    assert model.config.pad_token_id == old["."]
    assert base.model.config.to_dict() == config


def test_rows_beyond_the_tokenizer_go_first():
    base = loaded("qwen2")
    assert base.model.config.vocab_size == 328 > len(base.tokenizer) == 321
    pruned = prune(recipe("qwen2", Vocabulary(vocab_size=321)), base)
    assert pruned.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    with pytest.raises(RecipeError, match=r"the tokenizer has 321, .* Keep at most 321"):
        prune(recipe("qwen2", Vocabulary(vocab_size=324)), base)


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ({"vocab_size": 300}, 300),
        ({"fraction": 0.05}, 304),
        ({"fraction": 0.1, "multiple_of": 8}, 288),
        ({"vocab_size": 281, "multiple_of": 16}, 288),
    ],
)
def test_preview_needs_neither_tokenizer_nor_text(values, size, tmp_path):
    (tmp_path / "config.json").write_text((folder_of("gpt2") / "config.json").read_text())
    shown = pruning.preview(Recipe(base=str(tmp_path), steps=[Vocabulary(**values)]))
    assert shown.after.config.vocab_size == size
    assert shown.before.parameters - shown.after.parameters == (320 - size) * 32
    assert len(prune(recipe("gpt2", Vocabulary(**values)), loaded("gpt2")).tokenizer) == size


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "either fraction or vocab_size"),
        ({"vocab_size": 300, "fraction": 0.5}, "either fraction or vocab_size"),
        ({"fraction": 1.0}, "greater than 0 and less than 1"),
        ({"vocab_size": 300, "text": "self_generated"}, "choose a text"),
        ({"vocab_size": 300, "text": "nonsense"}, "no calibration text 'nonsense'"),
        ({"vocab_size": 320}, "removes none of the 320 tokens"),
        ({"vocab_size": 310, "multiple_of": 64}, "removes none"),
        ({"fraction": 0.001}, "removes none"),
        ({"vocab_size": 200}, "special tokens, .* are 258. Keep at least 258"),
    ],
)
def test_what_is_impossible_is_said(values, message):
    with pytest.raises(RecipeError, match=message):
        prune(recipe("gpt2", Vocabulary(**values)), loaded("gpt2"))


def test_least_vocabulary_reads_everything():
    pruned = prune(recipe("gpt2", Vocabulary(vocab_size=258)), loaded("gpt2"))
    assert pruned.tokenizer.decode(pruned.tokenizer(STORY).input_ids) == STORY
    (note,) = pruned.report.notes[0]
    assert note.tokens == 258 < note.needed
    assert 0 < note.read_as_before < 1


def test_later_steps_read_with_the_new_tokenizer():
    text = pruning.Calibration(text="story", tokens=600, window=64)
    steps = [Vocabulary(vocab_size=280), Neurons(fraction=0.3)]
    together = prune(recipe("llama", *steps, calibration=text), loaded("llama"))
    first = prune(recipe("llama", steps[0]), loaded("llama"))
    then = dataclasses.replace(loaded("llama"), model=first.model, tokenizer=first.tokenizer)
    apart = prune(recipe("llama", steps[1], calibration=text), then)
    other = prune(recipe("llama", *reversed(steps), calibration=text), loaded("llama"))
    ids = torch.arange(3, 23)[None]
    assert torch.equal(together.model(ids).logits, apart.model(ids).logits)
    assert not torch.equal(together.model(ids).logits, other.model(ids).logits)
    assert together.shape.components == other.shape.components


@pytest.mark.parametrize(
    ("family", "other"),
    [
        ("gpt2", Layers(count=1, method="last")),
        ("opt", Neurons(fraction=0.3, criterion="l2")),
        ("llama", Heads(groups=1)),
        ("gemma2", Channels(fraction=0.3)),
        ("qwen3", Layers(count=1, method="influence", protect=False)),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_vocabulary_goes_with_other_cuts(family, other, first, tmp_path):
    steps = [Vocabulary(vocab_size=283), other]
    text = pruning.Calibration(text="story", tokens=512, window=64)
    made = recipe(family, *(steps if first else steps[::-1]), calibration=text)
    pruned = prune(made, loaded(family))
    assert pruned.shape.components == pruning.preview(made).after.components
    assert count(pruned.model) == pruned.shape.parameters
    pruned.save(tmp_path / "out")  # Compares the logits of what is read back.
    words = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert len(words) == AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 283


def test_vocabulary_can_be_cut_twice():
    twice = prune(recipe("gpt2", Vocabulary(vocab_size=300), Vocabulary(vocab_size=270)), loaded("gpt2"))
    once = prune(recipe("gpt2", Vocabulary(vocab_size=270)), loaded("gpt2"))
    assert len(twice.tokenizer) == 270
    assert twice.tokenizer.get_vocab().keys() >= set(BytePairs(once.tokenizer).essential_tokens())


def test_recipe_names_the_text_and_never_holds_it():
    own = Vocabulary(vocab_size=300, text=TextChoice.custom("my secret words"))
    made = Recipe(base="x", steps=[own])
    assert "secret" not in made.to_yaml() + made.to_python() + repr(made)
    again = Recipe.parse(made.to_yaml())
    assert again.steps[0].text.content is None
    assert again.digest == made.digest
    with pytest.raises(RecipeError, match="never holds"):
        prune(again.model_copy(update={"base": str(folder_of("gpt2"))}), loaded("gpt2"))
    assert again.with_own_text("my secret words") == made
    named = Recipe.parse("base: x\nsteps: [{step: vocabulary, fraction: 0.5, text: story}]")
    assert named.steps == (Vocabulary(fraction=0.5, text=TextChoice(text="story")),)
    assert Recipe.parse(named.to_yaml()) == named
    assert eval(named.steps[0].to_python()) == named.steps[0]


@pytest.fixture
def as_json(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pruning", *map(str, arguments), "--json"])
        assert main() == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pruning", *map(str, arguments)])
        assert main() == 2
        return capsys.readouterr().err

    return run


def test_shell_keeps_what_a_file_needs(as_json, tmp_path):
    folder = folder_of("llama")
    text = tmp_path / "text.txt"
    text.write_text("The old man walked to the river. " * 40)
    shown = as_json("preview", folder, "--vocabulary", text)
    size = shown["config"]["vocab_size"]
    assert 258 < size < 320
    assert shown["recipe"]["steps"][0]["vocab_size"] == size
    assert "old man" not in json.dumps(shown)
    saved = as_json("prune", folder, "--vocabulary", text, "--no-evaluate", "--output", tmp_path / "out")
    assert saved["parameters"] == shown["parameters"]
    words, whole = (AutoTokenizer.from_pretrained(place) for place in (tmp_path / "out", folder))
    (tmp_path / "recipe.yaml").write_text(Recipe.parse(json.dumps(shown["recipe"])).to_yaml())
    assert tokens(words, text.read_text()) == tokens(whole, text.read_text())
    again = tmp_path / "again"
    told = as_json(
        *("prune", "--recipe", tmp_path / "recipe.yaml", "--calibration", text),
        *("--no-evaluate", "--output", again),
    )
    assert told["parameters"] == saved["parameters"]
    assert AutoTokenizer.from_pretrained(again).get_vocab() == words.get_vocab()


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["--vocabulary", "300"], 300),
        (["--vocabulary", "10%"], 288),
        (["--vocabulary", "0.1"], 288),
        (["--vocabulary", "290", "--vocabulary-multiple-of", "8"], 296),
        (["--vocabulary", "290", "--vocabulary-text", "code"], 290),
        (["--vocabulary", "code"], 318),
    ],
)
def test_shell_takes_numbers_and_shares(as_json, options, size):
    shown = as_json("preview", folder_of("gpt2"), *options)
    assert shown["config"]["vocab_size"] == size


def test_shell_says_what_is_missing(refused, as_json, tmp_path):
    folder = folder_of("gpt2")
    assert "neither a file nor one of chat_and_general" in refused(
        "preview", folder, "--vocabulary", "nowhere"
    )
    assert "--vocabulary-text repeats what another option sets" in refused(
        "preview", folder, "--vocabulary", "story", "--vocabulary-text", "code"
    )
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert "give the number of tokens to keep" in refused("preview", tmp_path, "--vocabulary", "story")
    assert as_json("preview", tmp_path, "--vocabulary", "300")["config"]["vocab_size"] == 300


def test_real_tokenizer_keeps_what_a_story_needs(smollm2):
    name = smollm2.source.name
    folder = smollm2.source.folder
    step = Vocabulary.for_model(str(folder), text=TextChoice(text="story"))
    assert 2000 < step.vocab_size < 4000
    pruned = prune(Recipe(base=name, steps=[step]), smollm2)
    words, whole = pruned.tokenizer, smollm2.tokenizer
    assert count(pruned.model) == 134_515_008 - (49_152 - step.vocab_size) * 576
    assert tokens(words, STORY) == tokens(whole, STORY)
    for genre in GENRES:
        text = passage(genre, "heldout")
        assert words.decode(words(text).input_ids) == text
        assert len(tokens(words, text)) > len(tokens(whole, text))
    chat = [{"role": "user", "content": "Once upon a time"}]
    asked = [one.apply_chat_template(chat, tokenize=False) for one in (words, whole)]
    assert asked[0] == asked[1]
    head, tail = "<|im_start|>system\nYou are a helpful AI assistant", "<|im_end|>\n<|im_start|>user\n"
    for part in (head, tail):
        assert part in asked[0]
        assert tokens(words, part) == tokens(whole, part)
    assert (
        words.eos_token_id == pruned.model.config.eos_token_id == pruned.model.generation_config.eos_token_id
    )
    # The same text, so the same bytes; its tokens compete with fewer others.
    before = pruning.perplexity(smollm2.model, whole, STORY, tokens=512)
    after = pruning.perplexity(pruned.model, words, STORY, tokens=512)
    assert after.bits_per_byte < before.bits_per_byte


def test_a_token_beyond_the_rows_of_the_model_is_not_kept(tmp_path):
    """As Gemma 3's text models have it: an image token that only the model with vision has a row for."""
    base = loaded("llama")
    words = AutoTokenizer.from_pretrained(folder_of("llama"))
    words.add_tokens(["<image>"], special_tokens=True)
    assert words.convert_tokens_to_ids("<image>") >= base.model.config.vocab_size
    base.model.save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    pruned = prune(str(tmp_path / "base"), steps=Vocabulary(vocab_size=280))
    folder = pruned.save(tmp_path / "cut")
    smaller, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert "<image>" not in smaller.get_vocab()
    assert len(smaller) == model.config.vocab_size
    rows, kept = base.model.get_input_embeddings().weight, model.get_input_embeddings().weight
    for token, number in smaller.get_vocab().items():
        assert torch.equal(kept[number], rows[words.convert_tokens_to_ids(token)])
