"""Hostile tokenizers are tried out in a child process, and refused with one sentence; ordinary ones pass."""

import base64
import json
import shutil
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import pruning
from pruning.errors import panics_as_errors
from pruning.loading import tokenizer_check, tokenizer_probe
from pruning.loading.checks import check_tokenizer
from pruning.loading.load import find, read_tokenizer
from pruning.loading.tokenizer_check import read_checked
from tests.helpers.models import FAMILIES, folder_of, tokenizer


def settings_of(family="llama"):
    return json.loads((folder_of(family) / "tokenizer.json").read_text())


@pytest.fixture
def folder(tmp_path):
    """A copy of a small model's folder."""
    return shutil.copytree(folder_of("llama"), tmp_path / "model")


def written(folder, **parts):
    values = settings_of() | parts
    (folder / "tokenizer.json").write_text(json.dumps(values))
    return folder


def refusal(folder):
    with pytest.raises(pruning.ModelError) as error:
        read_checked(folder, "ada/model")
    message = str(error.value)
    assert len(message) < 700
    assert str(folder.parent) not in message
    return message


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*normalizers):
    return {"type": "Sequence", "normalizers": list(normalizers)}


def split(pattern):
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }


def charsmap(replacement):
    return {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode((4).to_bytes(4, "little") + bytes(4) + replacement).decode(),
    }


HOSTILE = {
    "one letter to a terabyte": (
        {"normalizer": sequence(*[replace({"String": "A"}, "A" * 1000)] * 4)},
        "content of Replace is too long",
    ),
    "short replacements, many times": (
        {"normalizer": sequence(*[replace({"String": "q"}, "q" * 16)] * 8)},
        "times longer",
    ),
    "a replacement behind a regular expression": (
        {"normalizer": sequence(*[replace({"Regex": "[a-z]"}, "b" * 16)] * 5)},
        "times longer",
    ),
    "many normalizers": ({"normalizer": sequence(*[{"type": "NFKC"}] * 100)}, "100 parts"),
    "nested normalizers": (
        {"normalizer": json.loads('{"type": "Sequence", "normalizers": [' * 40 + "]}" * 40)},
        "nested too deeply",
    ),
    "bytes of bytes of bytes": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 12}},
        "parts of the type ByteLevel",
    ),
    "an exponential expression": ({"pre_tokenizer": split(r"(a+)+b|\w+")}, "repeats a group"),
    "an exponential choice": ({"pre_tokenizer": split(r"(?:a|a)*b")}, "repeats a group"),
    "an expression that refers back": ({"pre_tokenizer": split(r"(a)\1b")}, "refers to itself"),
    "a quadratic expression": ({"pre_tokenizer": split(r"a*a*a*b|.")}, "encoding|too much memory or time"),
    "a quadratic expression on a rare letter": (
        {"pre_tokenizer": split(r"[ʘ]*[ʘ]*[ʘ]*b|.")},
        "encoding|too much memory or time",
    ),
    "a long expression": ({"pre_tokenizer": split("a" * 5_000)}, "not usable"),
    "a bad table of characters": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////"}},
        "precompiled_charsmap is damaged",
    ),
    "a table on which the library panics": (
        {
            "normalizer": {
                "type": "Precompiled",
                "precompiled_charsmap": base64.b64encode((4).to_bytes(4, "little") + b"\xff" * 4).decode(),
            }
        },
        "the library that reads it stops",
    ),
    "a table with a long text": ({"normalizer": charsmap(b"x" * 10_000 + b"\0")}, "10,000 bytes"),
    "an unknown part": ({"normalizer": {"type": "Lua", "code": "x"}}, "unknown type 'Lua'"),
    "padding to a billion": (
        {"padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0}},
        "its padding is not usable",
    ),
    "tokens with huge numbers": (
        {"added_tokens": [{"id": 10**18, "content": "<x>", "special": True}]},
        "has the id '1000000000000000000'",
    ),
    "a long token": ({"added_tokens": [{"id": 1, "content": "x" * 10_000}]}, "10,000 characters"),
    "a part that is a list": ({"decoder": [1]}, "nested too deeply"),
    "no model": ({"model": None}, "has no model"),
    "a vocabulary of numbers": ({"model": {"type": "BPE", "vocab": [1, 2], "merges": []}}, "is damaged"),
    "an unknown key": ({"auto_map": "x"}, "a part that is not known"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tokenizer_is_refused_with_a_sentence(folder, case):
    parts, reason = HOSTILE[case]
    message = refusal(written(folder, **parts))
    assert message.startswith("The tokenizer of ada/model is refused: ")
    assert any(part in message for part in reason.split("|")), message


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", "[" * 200_000, "nested too deeply"),
        ("tokenizer.json", '{"model": {"type": "BPE"', "not valid JSON"),
        ("tokenizer.json", "[]", "not a JSON object"),
        ("tokenizer.json", '{"version": ' + "9" * 5_000 + "}", "not valid JSON"),
        ("tokenizer.json", "\ufeff{}", "not valid JSON"),
        ("tokenizer.json", "{}", "has no model"),
        ("tokenizer_config.json", '{"x": ' * 100_000, "nested too deeply"),
        ("tokenizer_config.json", '{"gguf_file": "/etc/passwd"}', "sets gguf_file"),
        ("tokenizer_config.json", '{"fast_tokenizer_files": ["tokenizer.9.json"]}', "sets fast_tokenizer_files"),
        ("tokenizer_config.json", '{"init_inputs": ["/etc/passwd"]}', "sets init_inputs"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"999999999999": {"content": "x"}}}', "has the id"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": {"content": 7}}}', "a token is not text"),
        ("special_tokens_map.json", "[1]", "not a JSON object"),
        ("added_tokens.json", '{"x": "y"}', "has the id 'y'"),
        ("vocab.json", '{"%s": 1}' % ("x" * 5_000), "5,000 characters"),
    ],
)  # fmt: skip
def test_hostile_files_beside_a_tokenizer_are_refused(folder, name, content, reason):
    (folder / name).write_text(content, encoding="utf-8")
    assert reason in refusal(folder)


def test_a_tokenizer_without_an_unknown_token_is_refused_for_what_it_cannot_encode(folder):
    words = {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "The": 2}, "unk_token": "<unk>"}
    written(folder, model=words, pre_tokenizer={"type": "Whitespace"}, post_processor=None, added_tokens=[])
    assert "it cannot encode every text (WordLevel error: Missing [UNK] token" in refusal(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ordinary_tokenizer_of_each_family_passes(family):
    assert read_checked(folder_of(family), family)("The old man").input_ids


PATTERNS = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
    "Mistral": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
}


@pytest.mark.parametrize("name", PATTERNS)
def test_the_regular_expressions_of_known_families_pass(folder, name):
    assert read_checked(written(folder, pre_tokenizer=split(PATTERNS[name])), name)("The old man").input_ids


def test_normalizers_that_known_families_use_pass(folder):
    llama = sequence({"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁"))
    assert read_checked(written(folder, normalizer=llama), "llama")
    common = sequence(*({"type": kind} for kind in ("NFKC", "Lowercase", "StripAccents", "Nmt")))
    assert read_checked(written(folder, normalizer=common), "common")


@pytest.mark.real
def test_the_tokenizer_of_the_real_default_model_passes(smollm2):
    assert read_checked(smollm2.source.folder, "smollm2")("The old man").input_ids


def test_the_child_process_has_tight_limits_and_loads_neither_torch_nor_transformers(monkeypatch, tmp_path):
    asks = tmp_path / "asks.py"
    asks.write_text(f"""
import json, resource, runpy, sys
refused = runpy.run_path({tokenizer_probe.__file__!r})["main"](sys.argv[1])
limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)]
loaded = sorted({{"torch", "transformers", "numpy", "huggingface_hub", "pruning"}} & sys.modules.keys())
print(json.dumps({{"refused": str([refused, limits, loaded])}}))
""")
    monkeypatch.setattr(tokenizer_probe, "__file__", str(asks))
    limits = [tokenizer_check.MEMORY_BYTES, tokenizer_check.CPU_SECONDS, 0]
    assert tokenizer_check._try_out(str(folder_of("llama")), b"") == str([None, limits, []])


def test_a_child_that_dies_is_a_refusal(folder, monkeypatch, tmp_path):
    dies = tmp_path / "dies.py"
    dies.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(tokenizer_probe, "__file__", str(dies))
    assert "too much memory or time" in refusal(written(folder, truncation=None, version="1.1"))


def test_the_child_gets_no_secrets(folder, monkeypatch, tmp_path):
    prints = tmp_path / "prints.py"
    prints.write_text('import json, os\nprint(json.dumps({"refused": str("sesame" in str(os.environ))}))\n')
    monkeypatch.setattr(tokenizer_probe, "__file__", str(prints))
    monkeypatch.setenv("HF_TOKEN", "hf_sesame")
    assert "is refused: False" in refusal(written(folder, version="1.2"))


def test_a_verdict_is_remembered_until_the_files_change(folder, monkeypatch):
    calls = []
    real = tokenizer_check._try_out
    monkeypatch.setattr(tokenizer_check, "_try_out", lambda *given: calls.append(given) or real(*given))
    written(folder, normalizer=replace({"String": "Ж"}, "x"))
    for _ in range(2):
        read_checked(folder, "model")
    assert len(calls) == 1
    written(folder, normalizer=replace({"String": "A"}, "A" * 1000))
    refusal(folder)
    assert len(calls) == 2


def test_models_with_the_same_tokenizer_share_a_verdict(folder, tmp_path, monkeypatch):
    calls = []
    real = tokenizer_check._try_out
    monkeypatch.setattr(tokenizer_check, "_try_out", lambda *given: calls.append(given) or real(*given))
    written(folder, normalizer=replace({"String": "Ы"}, "x"))
    pruned = shutil.copytree(folder, tmp_path / "pruned")
    config = json.loads((pruned / "config.json").read_text())
    (pruned / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    for each in (folder, pruned):
        read_checked(each, "model")
    assert len(calls) == 1
    for name in tokenizer_probe.OTHER_FILES:
        file = pruned / name
        before = file.read_bytes() if file.is_file() else None
        file.write_text("{}" if name.endswith("json") else "#version: 0.2\n")
        tried = len(calls)
        tokenizer_check._verdict_on_folder(pruned, tokenizer_check._digest(pruned))
        assert len(calls) == tried + 1, name
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)


def test_a_tokenizer_of_vocabulary_and_merges_is_tried_out_too(folder):
    model = settings_of()["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    assert read_checked(folder, "model")("The old man").input_ids
    (folder / "merges.txt").write_text("a " + "b" * 10_000)
    assert "merges.txt is too long" in refusal(folder)


def test_a_slow_tokenizer_written_in_python_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text('{"a": 0, "b": 1, "<unk>": 2}')
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')
    assert "CTRLTokenizer is not a tokenizer that is fast" in refusal(folder)


def test_reading_a_tokenizer_of_a_model_on_the_hub_downloads_no_weights(hub):
    files = {path.name: path.read_bytes() for path in folder_of("llama").iterdir()}
    hub.add_model("ada/tiny", files)
    for _ in range(2):
        assert read_tokenizer(find("ada/tiny"))("The old man").input_ids
    assert not [path for _, path, _ in hub.requests if path.endswith(".safetensors")]


PANICS = (4).to_bytes(4, "little") + b"\xff" * 4
"""A table of characters on which the real library panics."""


def test_a_panic_becomes_the_error_that_is_given():
    from tokenizers import normalizers

    with pytest.raises(pruning.ModelError, match="damaged"), panics_as_errors("damaged"):
        normalizers.Precompiled(PANICS).normalize_str("A")
    for other in (KeyboardInterrupt, ValueError, GeneratorExit):
        with pytest.raises(other), panics_as_errors("damaged"):
            raise other


def test_a_panic_while_a_tokenizer_is_read_becomes_a_model_error(folder, monkeypatch):
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    def panic(*_, **__):
        normalizers.Precompiled(PANICS).normalize_str("A")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", panic)
    assert "The tokenizer of ada/model is damaged" in refusal(folder)


def test_a_panic_while_a_tokenizer_is_checked_becomes_a_model_error():
    from tokenizers import normalizers

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())
    )
    words.backend_tokenizer.normalizer = normalizers.Precompiled(PANICS)
    with pytest.raises(pruning.ModelError, match="is damaged"):
        check_tokenizer("ada/model", words, 1_000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PARTS = (
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
    "truncation",
    "padding",
)


@given(st.sampled_from(PARTS), JSON)
@settings(max_examples=150, deadline=None)
def test_the_structure_is_checked_without_other_exceptions(part, value):
    text = json.dumps(json.loads(tokenizer().backend_tokenizer.to_str()) | {part: value})
    with suppress(tokenizer_probe.Refused):
        tokenizer_probe.check_structure(tokenizer_probe.parse(text, "tokenizer.json"))
