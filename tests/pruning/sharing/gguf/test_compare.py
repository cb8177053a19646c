"""A file that llama.cpp reads as something else is not handed over, and the sentence says what differs."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pruning
from pruning.progress import silent
from pruning.sharing.gguf import GGUF_TYPES, export_and_compare
from pruning.sharing.gguf.compare import (
    Difference,
    ResultsDiffer,
    compare,
    compare_16_bits,
    perplexity_ratio,
)
from pruning.sharing.gguf.expect import Prompt, expect, prompt_lengths
from pruning.sharing.gguf.quantize import quantize
from pruning.sharing.gguf.usage import run_lines
from pruning.sharing.verify import verify
from tests.helpers.models import config, folder_of, loaded, tiny

F16, Q8_0 = GGUF_TYPES["f16"], GGUF_TYPES["q8_0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A pruned model beside its base, and its GGUF file."""
    place = tmp_path_factory.mktemp("compared")
    base = shutil.copytree(folder_of("qwen2"), place / "base")
    step = pruning.Neurons(intermediate_size=32, criterion="l2", repair=False)
    folder = pruning.run(pruning.Recipe(base=str(base), steps=[step]), evaluate=False).save(place / "cut")
    export_and_compare(folder, place / "cut.gguf")
    return place


@pytest.fixture(scope="module")
def expected(place):
    model = pruning.load(str(place / "cut"))
    return expect(model.model, model.tokenizer, "cut", Q8_0, silent)


@pytest.fixture(scope="module")
def changed(place):
    """What a file has to give of another model, which differs in one column."""
    other = pruning.load(str(place / "cut"))
    with torch.no_grad():
        other.model.get_parameter("model.layers.1.mlp.down_proj.weight")[:, 0] *= -1
    return expect(other.model, other.tokenizer, "cut", Q8_0, silent)


def test_another_model_is_not_the_same(place, expected, changed):
    with pytest.raises(
        pruning.ModelError, match=r"computes something else .* 0\.05 and 0\.01 are allowed for f16"
    ):
        compare(place / "cut.gguf", changed, F16, silent)
    assert compare(place / "cut.gguf", expected, F16, silent)


def test_other_tokens_are_named(place, expected):
    text, special, ids = expected.texts[3]
    texts = (*expected.texts[:3], (text, special, (*ids, 7)))
    with pytest.raises(pruning.ModelError, match="makes other tokens of the text"):
        compare(place / "cut.gguf", replace(expected, texts=texts), F16, silent)


def test_a_file_that_does_not_open(place, expected, tmp_path):
    whole = (place / "cut.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: len(whole) - 5000])
    with pytest.raises(pruning.ModelError, match=r"is not handed over: llama\.cpp does not open it"):
        compare(cut, expected, F16, silent)


def test_what_is_not_a_number_is_not_within_the_bounds():
    assert Difference(28, 0.04, 0.004, 28).is_within(F16)
    assert not Difference(28, float("nan"), float("nan"), 28).is_within(F16)


def test_a_file_that_rounding_ruined_is_refused(place, expected, tmp_path):
    """Perplexity shows what log-probabilities of likely tokens may hide."""
    quantize(place / "cut.gguf", tmp_path / "cut.gguf", "q8_0", silent)
    assert compare(tmp_path / "cut.gguf", expected, Q8_0, silent).perplexity_ratio == pytest.approx(
        1, abs=0.05
    )
    certain = tuple(replace(each, expected=((0.0,),) * len(each.positions)) for each in expected.passages)
    with pytest.raises(
        pruning.ModelError, match=r"perplexity .* times as high, and 3 times are allowed\. Choose a type"
    ):
        compare(tmp_path / "cut.gguf", replace(expected, passages=certain), Q8_0, silent)


def test_perplexity_is_compared_over_all_passages():
    one = Prompt((1, 2), (0, 1), ((2,), (3,)), ((-1.0,), (-2.0,)))
    other = Prompt((1,), (0,), ((2,),), ((-3.0,),))
    assert perplexity_ratio([one, other], [[[-1.0], [-2.0]], [[-3.0]]]) == 1
    assert perplexity_ratio([one, other], [[[-2.0], [-4.0]], [[-6.0]]]) == pytest.approx(math.exp(2))


def test_prompts_reach_beyond_a_window_and_not_beyond_the_positions():
    assert prompt_lengths(config("gemma2", sliding_window=512)) == [28, 480, 576]
    assert prompt_lengths(config("llama", max_position_embeddings=64)) == [28, 63]


def test_texts_hold_special_tokens_and_every_script(expected):
    texts = [text for text, _, _ in expected.texts]
    assert any("<s>" in text for text in texts)
    assert any("日本語" in text for text in texts)
    assert any(special for _, special, _ in expected.texts)


def test_an_export_is_verified_by_opening_it(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    result = verify(str(place / "cut.gguf"))
    assert {check.name: check.holds for check in result.checks} == dict.fromkeys(
        ("opened", "log-probabilities", "recipe", "shape"), True
    )
    damaged = bytearray((place / "cut.gguf").read_bytes())
    damaged[-4000:-2000] = bytes(2000)
    (tmp_path / "damaged.gguf").write_bytes(damaged)
    failed = [check.name for check in verify(str(tmp_path / "damaged.gguf")).checks if check.holds is False]
    assert failed == ["log-probabilities"]
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(range(60)))
    with pytest.raises(pruning.ModelError, match=r"broken\.gguf cannot be read as a GGUF file"):
        verify(str(tmp_path / "broken.gguf"))


def test_a_file_of_another_recipe_does_not_hold(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    data = (place / "cut.gguf").read_bytes()
    assert b"intermediate_size: 32" in data
    (tmp_path / "other.gguf").write_bytes(data.replace(b"intermediate_size: 32", b"intermediate_size: 40"))
    failed = [check.name for check in verify(str(tmp_path / "other.gguf")).checks if check.holds is False]
    assert failed == ["recipe", "shape"]


def test_lines_that_run_a_file(tmp_path):
    lines = run_lines(tmp_path / "My Model's.gguf", chats=True)
    assert lines["Modelfile"] == "FROM ./My Model's.gguf"
    assert lines["ollama"].startswith("ollama create my-model-s -f Modelfile")
    assert lines["llama.cpp"] == """llama-cli -m 'My Model'"'"'s.gguf'"""
    assert "llama-completion" in run_lines(tmp_path / "model.gguf", chats=False)["llama.cpp"]


def test_values_too_large_for_sixteen_bits(tmp_path):
    model = tiny("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight")[0, 0] = 1e5
    model.save_pretrained(tmp_path / "model")
    loaded("llama").tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(pruning.ModelError, match="too large for 16 bits"):
        export_and_compare(tmp_path / "model", tmp_path / "model.gguf")


@pytest.mark.usefixtures("converted_quickly")
def test_rounding_alone_is_told_from_another_computation(tmp_path):
    """A large output matrix makes small errors of weights large."""
    model = tiny("llama")
    with torch.no_grad():
        model.get_parameter("lm_head.weight").mul_(20)
        for layer in range(model.config.num_hidden_layers):  # Its cache has 16 bits too.
            model.get_parameter(f"model.layers.{layer}.self_attn.o_proj.weight").mul_(0.01)
    model.save_pretrained(tmp_path / "model")
    loaded("llama").tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ResultsDiffer, match="so that rounding to f16 is the cause") as refused:
        export_and_compare(tmp_path / "model", tmp_path / "model.gguf")
    assert refused.value.by_rounding
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model"]


def test_another_computation_is_not_blamed_on_rounding(place, changed, tmp_path):
    file = shutil.copy(place / "cut.gguf", tmp_path)
    with pytest.raises(ResultsDiffer) as refused:
        compare_16_bits(Path(file), changed, F16, silent, lambda exact: shutil.copy(file, exact))
    assert not refused.value.by_rounding
    assert [each.name for each in tmp_path.iterdir()] == ["cut.gguf"]


def test_a_full_disk_does_not_hide_what_differs(place, changed, tmp_path):
    file = shutil.copy(place / "cut.gguf", tmp_path)

    def fill_the_disk(_exact):
        raise pruning.SavingError("The disk is full.")

    with pytest.raises(ResultsDiffer, match="computes something else"):
        compare_16_bits(Path(file), changed, F16, silent, fill_the_disk)
