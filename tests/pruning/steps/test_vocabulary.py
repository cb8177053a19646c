"""A cut vocabulary reads its text as before, loses no text, and every id follows."""

import dataclasses
import json
import sys
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
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
from tests.helpers.models import BOS, EOS, FAMILIES, count, folder_of, loaded, tiny

STORY = passage("story", "calibration")
CHAT = "{% for m in messages %}<turn>{{ 'walked to' + m['content'] }}<end>{% endfor %}{% generation %}"


def learned(kind: str, size: int = 700) -> Tokenizer:
    """A BPE made of the bundled texts, with words of every genre; `kind`: byte-level or byte-fallback."""
    if kind == "byte-level":
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        learner.decoder = decoders.ByteLevel()
        first, alphabet = [BOS, EOS, "<unk>"], pre_tokenizers.ByteLevel.alphabet()
    else:
        learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        learner.normalizer = normalizers.Replace(" ", "▁")
        learner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        learner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        first, alphabet = [BOS, EOS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))], []
    learner.train_from_iterator(
        [passage(genre, "calibration") for genre in GENRES],
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=first, initial_alphabet=alphabet, show_progress=False
        ),
    )
    # Training makes special tokens of the bytes; in a SentencePiece tokenizer they are ordinary ones.
    file = json.loads(learner.to_str())
    file["added_tokens"] = [token for token in file["added_tokens"] if "<0x" not in token["content"]]
    return Tokenizer.from_str(json.dumps(file))


def plain(kind: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=learned(kind), bos_token=BOS, eos_token=EOS, unk_token="<unk>"
    )
    made.add_tokens(["<turn>", "<end>", "<rare>"])
    made.chat_template = CHAT
    return made


def begun(processor) -> PreTrainedTokenizerFast:
    """A byte-level one that puts tokens around a text."""
    learner = learned("byte-level")
    ids = {token: learner.token_to_id(token) for token in (BOS, EOS)}
    learner.post_processor = processor(ids)
    return PreTrainedTokenizerFast(tokenizer_object=learner, bos_token=BOS, eos_token=EOS)


def of_class(kind: str, made_by, **special):
    """A tokenizer of a family's own class, which builds itself from tokens and merges."""
    model = json.loads(learned(kind).to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return made_by(vocab=model["vocab"], merges=merges, bos_token=BOS, eos_token=EOS, unk_token="<unk>")


TOKENIZERS = {
    "byte-level": lambda: plain("byte-level"),
    "byte fallback": lambda: plain("byte fallback"),
    "template": lambda: begun(
        lambda ids: processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=list(ids.items())),
            ]
        )
    ),
    "roberta": lambda: begun(
        lambda ids: processors.RobertaProcessing(
            (EOS, ids[EOS]), (BOS, ids[BOS]), trim_offsets=False, add_prefix_space=False
        )
    ),
    "gpt2": lambda: of_class("byte-level", GPT2Tokenizer),
    "gpt_neox": lambda: of_class("byte-level", GPTNeoXTokenizer),
    "qwen2": lambda: of_class("byte-level", Qwen2Tokenizer),
    "llama": lambda: of_class("byte fallback", LlamaTokenizer),
    "gemma": lambda: of_class("byte fallback", GemmaTokenizer),
}
LOSSLESS = {"byte-level", "template", "roberta", "gpt2"}
"""Those that give any text back as it was; others normalise it first."""


@lru_cache
def made(kind: str):
    return TOKENIZERS[kind]()


@lru_cache
def cut(kind: str, size: int = 480, text: str = STORY):
    """A tokenizer of a kind with fewer tokens, those that a text uses most."""
    whole = made(kind)
    pairs = BytePairs(whole)
    names = whole.convert_ids_to_tokens(whole(text, add_special_tokens=False).input_ids)
    used = sorted(set(names), key=lambda name: (-names.count(name), pairs.ids[name]))
    rest = sorted(pairs.ids, key=pairs.ids.get)
    order = list(pairs.with_parts(pairs.essential_tokens() + used + rest))
    assert sorted(order) == sorted(pairs.ids)
    kept = sorted(pairs.ids[token] for token in order[:size])
    return kept, pairs.rebuild(kept)


def tokens(words, text):
    return words.convert_ids_to_tokens(words(text).input_ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_text_whose_tokens_stay_is_read_as_before(kind):
    whole, short = made(kind), "The old man walked to the river, and sat down."
    kept, words = cut(kind, text=short)
    old, new = whole(short).input_ids, words(short).input_ids
    assert [kept[number] for number in new] == old
    assert words.decode(new) == whole.decode(old)
    assert len(words) == len(words.get_vocab()) == 480
    assert sorted(words.get_vocab().values()) == list(range(480))
    assert len(tokens(words, STORY)) > len(tokens(whole, STORY))  # Something was cut.


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_words_are_read_as_before_where_their_tokens_stay(kind):
    whole, (_, words) = made(kind), cut(kind)
    stay, compared = words.get_vocab().keys(), 0
    for word in set(passage("documentation", "heldout").split()):
        if stay >= set(tokens(whole, word)):
            assert tokens(words, word) == tokens(whole, word)
            compared += 1
    assert compared > 50


anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
spoken = st.lists(st.sampled_from([*STORY.split()[:80], " ", "\n", "  ", "é", "日本", BOS, "<turn>"]))


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=anything | spoken.map("".join))
def test_no_text_is_lost(kind, text):
    whole, (_, words) = made(kind), cut(kind)
    again = words.decode(words(text, add_special_tokens=False).input_ids)
    assert again == whole.decode(whole(text, add_special_tokens=False).input_ids)
    if kind in LOSSLESS:
        assert again == text


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_number_of_tokens_is_closed_under_merges(kind):
    sizes = range(len(cut(kind, 400)[0]), 560, 40)
    before: set[int] = set()
    for size in sizes:
        kept, words = cut(kind, size)
        assert before <= set(kept)
        before = set(kept)
        made_by_merges = {
            "".join(merge) for merge in json.loads(words.backend_tokenizer.to_str())["model"]["merges"]
        }
        letters = {token for token in words.get_vocab() if len(token) == 1 or token.startswith("<")}
        assert words.get_vocab().keys() == made_by_merges | letters


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_saved_tokenizer_gives_the_same_ids(kind, tmp_path):
    _, words = cut(kind)
    words.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert again.get_vocab() == words.get_vocab()
    assert again(STORY).input_ids == words(STORY).input_ids
    assert again.special_tokens_map == words.special_tokens_map == made(kind).special_tokens_map
    assert again.chat_template == made(kind).chat_template
    assert type(words) is type(made(kind))
    assert words.name_or_path == made(kind).name_or_path


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback"])
def test_special_tokens_and_those_of_the_chat_template_stay(kind):
    _, words = cut(kind)
    assert {BOS, EOS, "<unk>", "<turn>", "<end>"} <= words.get_vocab().keys()
    assert "<rare>" not in words.get_vocab()
    least = made(kind).get_vocab().keys() & BytePairs(made(kind)).essential_tokens()
    assert least >= {"<turn>", "<end>", "al", "ed" if kind == "byte-level" else "ed▁"}


def test_last_merge_is_the_one_that_reading_takes():
    """Two merges make "abc"; only one of them comes about, for "b" and "c" are joined first."""
    vocabulary = {
        token: number for number, token in enumerate(["a", "b", "c", "bc", "ab", "abc", "d", "dbc"])
    }
    merges = [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc"), ("d", "bc")]
    for missing in sorted(set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys()):
        vocabulary[missing] = len(vocabulary)
    learner = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    pairs = BytePairs(PreTrainedTokenizerFast(tokenizer_object=learner))
    assert list(pairs.with_parts(["abc"])) == ["a", "b", "c", "bc", "abc"]
    assert list(pairs.with_parts(["dbc", "ab"])) == ["d", "b", "c", "bc", "dbc", "a", "ab"]
    letters = [pairs.ids[token] for token in pairs.essential_tokens()]
    words = pairs.rebuild(sorted([*letters, *(vocabulary[token] for token in ("bc", "abc"))]))
    assert tokens(words, "abc") == ["abc"]
    assert tokens(words, "dabc") == ["d", "abc"]


def test_tokens_that_no_merge_makes_need_no_others():
    """As `ignore_merges` has it: "abc" is found whole, though merges lead elsewhere."""
    vocabulary = {token: number for number, token in enumerate(["a", "b", "c", "bc", "ab", "abc"])}
    for missing in sorted(set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys()):
        vocabulary[missing] = len(vocabulary)
    learner = Tokenizer(models.BPE(vocabulary, [("b", "c"), ("a", "b")], ignore_merges=True))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    pairs = BytePairs(PreTrainedTokenizerFast(tokenizer_object=learner))
    assert list(pairs.with_parts(["abc"])) == ["abc"]


def _refused(model, **parts):
    learner = Tokenizer(model)
    for name, part in parts.items():
        setattr(learner, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=learner)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (lambda: _refused(models.Unigram([("a", -1.0), ("<unk>", -2.0)], 1)), "a Unigram tokenizer"),
        (
            lambda: _refused(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")),
            "a WordPiece tokenizer",
        ),
        (lambda: _refused(models.BPE({"a": 0}, [])), "does not have all single bytes"),
        (lambda: _refused(models.BPE({"a": 0}, [], end_of_word_suffix="</w>")), "ends of words"),
    ],
)
def test_other_tokenizers_are_refused_with_the_reason(words, reason):
    with pytest.raises(RecipeError, match=reason):
        BytePairs(words())


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
