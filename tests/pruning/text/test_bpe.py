"""A tokenizer that keeps a part of its tokens reads the rest as before, and loses no text."""

import json
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from pruning import (
    RecipeError,
)
from pruning.text.bpe import BytePairs
from pruning.text.passages import GENRES, passage
from tests.helpers.models import BOS, EOS, tokens

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
