"""GGUF: offered where the shape allows it, converted whole or not at all, and what llama.cpp makes of it."""

import importlib.util
import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoConfig

import pruning
from pruning.architectures.shape import Shape
from pruning.cli import main
from pruning.sharing.gguf import GGUF_TYPES, export, gguf_types, row_lengths
from tests.helpers.models import FAMILIES, _build, config, folder_of

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


def shape(model_type="llama", **sizes):
    return Shape.of(CONFIG_MAPPING[model_type](**(SMOLLM2 | sizes)))


@pytest.mark.parametrize(("width", "possible"), [(1536, True), (1228, False), (1500, False), (1248, True)])
def test_types_follow_from_the_width(width, possible):
    types = gguf_types(shape(intermediate_size=width))
    assert types.keys() == GGUF_TYPES.keys()
    assert types["f16"] == ""
    assert (types["q8_0"] == "") == possible
    assert possible or f"multiples of 32; this shape has rows of {width} (neurons)" in types["q8_0"]


def test_types_follow_the_slider():
    before = shape()
    assert gguf_types(pruning.Neurons(fraction=0.2).reshape(before))["q8_0"]
    assert not gguf_types(pruning.Neurons(fraction=0.2, multiple_of=32).reshape(before))["q8_0"]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(1, 4), st.sampled_from([8, 24, 32, 48]), st.integers(1, 40))
def test_a_type_is_offered_where_every_row_divides(hidden, heads, head, width):
    sizes = {"hidden_size": 24 * hidden, "intermediate_size": 8 * width, "head_dim": head}
    found = shape(num_attention_heads=heads, num_key_value_heads=heads, num_hidden_layers=1, **sizes)
    assert row_lengths(found) == {"channel": 24 * hidden, "neuron": 8 * width, "query head": heads * head}
    rows = (24 * hidden, 8 * width, heads * head)
    assert (gguf_types(found)["q8_0"] == "") == all(length % 32 == 0 for length in rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_what_projections_read(family):
    rows = row_lengths(Shape.of(config(family)))
    heads = {"qwen3": 48}.get(family, 32)
    assert rows == {"channel": 32, "neuron": {"mistral": 53}.get(family, 48), "query head": heads}


def test_models_that_llama_cpp_does_not_know():
    types = gguf_types(Shape.of(config("opt")))
    assert all("does not know OPT models" in reason for reason in types.values())
    types = gguf_types(shape(), [pruning.Neurons(fraction=0.5), pruning.Vocabulary(fraction=0.5)])
    assert all("recognizes a tokenizer" in reason for reason in types.values())


def model_folder(folder: Path, smollm2, model_type, **sizes) -> Path:
    """A small random model that speaks SmolLM2's tokens: llama.cpp knows its tokenizer."""
    _build(config(model_type, vocab_size=49152, tie_word_embeddings=True, **sizes)).save_pretrained(folder)
    smollm2.tokenizer.save_pretrained(folder)
    return folder


def matrices(file):
    """The type of each matrix of a GGUF file, and its size with rows first."""
    return {
        tensor.name: (tensor.tensor_type.name, *reversed(tensor.shape.tolist()))
        for tensor in GGUFReader(file).tensors
        if len(tensor.shape) == 2
    }


@pytest.mark.real
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_type_that_is_offered_is_what_every_matrix_gets(smollm2, tmp_path, family):
    sizes = {
        "llama": {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "attention_bias": False},
        "gpt2": {
            "n_embd": 64,
            "n_inner": 96,
            "n_ctx": 1024,
        },  # As the config of every GPT-2 on the Hub has it.
    }[family]
    folder = model_folder(tmp_path / "model", smollm2, family, **sizes)
    assert gguf_types(Shape.of(AutoConfig.from_pretrained(folder)))["q8_0"] == ""
    said = []
    file = export(folder, tmp_path / "new" / "{model}.gguf", "q8_0", progress=said.append)
    found = matrices(file)
    learned = {name: kind for name, (kind, *_) in found.items() if "position" not in name}
    assert len(learned) > 8
    assert set(learned.values()) == {"Q8_0"}
    assert found["blk.0.ffn_down.weight"] == ("Q8_0", 64, 96)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert said
    assert all(line.total == 100 for line in said)


@pytest.mark.real
def test_the_shell_exports_and_names_the_recipe(smollm2, tmp_path, monkeypatch, capsys):
    base = model_folder(tmp_path / "base", smollm2, "llama", attention_bias=False, mlp_bias=False)
    recipe = pruning.Recipe(
        base=str(base), steps=[pruning.Neurons(fraction=0.3, criterion="l2", repair=False)]
    )
    folder = pruning.run(recipe, evaluate=False).save(tmp_path / "cut")
    file = tmp_path / "cut.gguf"
    arguments = ["export", folder, "--format", "gguf", "--type", "f16", "--output", file, "--json"]
    monkeypatch.setattr(sys, "argv", ["pruning", *map(str, arguments)])
    assert main() == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"output": str(file), "type": "f16", "bytes": file.stat().st_size}
    fields = GGUFReader(file).fields
    digest = pruning.Recipe.parse((folder / "recipe.yaml").read_text()).digest
    assert digest in fields["general.description"].contents()
    assert fields["llama.feed_forward_length"].contents() == 34
    assert matrices(file)["blk.2.ffn_up.weight"] == ("F16", 34, 32)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(folder_of("llama"), tmp_path / "model")


def test_what_cannot_be_exported(folder, tmp_path):
    output = tmp_path / "out" / "model.gguf"

    def refused(kind, match, *arguments):
        with pytest.raises(kind, match=match) as error:
            export(*arguments)
        assert "\n" not in str(error.value)
        assert not output.parent.exists()

    refused(pruning.RecipeError, "cannot be exported as q8_0. It needs rows", folder, output, "q8_0")
    refused(pruning.RecipeError, "choose one of: f16, q8_0", folder, output, "q4_k")
    refused(pruning.ModelError, "is not a folder", tmp_path / "none", output)
    refused(pruning.ModelError, r"no config\.json", tmp_path, output)
    refused(pruning.ModelError, "does not know OPT", folder_of("opt"), output)
    refused(pruning.SavingError, "exists", folder, folder / "config.json")
    for text in ('{"auto_map": {"AutoTokenizer": ["code.Tokenizer", null]}}', r'{"auto\u005fmap": {}}'):
        (folder / "tokenizer_config.json").write_text(text)
        refused(pruning.ModelError, r"code of its own \(auto_map\)", folder, output)
    (folder / "tokenizer_config.json").write_text("{")
    refused(pruning.ModelError, r"tokenizer_config\.json in model cannot be read", folder, output)


def left_over(tmp_path):
    return [path for path in tmp_path.rglob("*") if path.suffix == ".gguf" or "secateur-" in path.name]


def test_a_tokenizer_that_llama_cpp_does_not_know(folder, tmp_path):
    with pytest.raises(pruning.ModelError, match="does not know the tokenizer of model"):
        export(folder, tmp_path / "out" / "model.gguf")
    assert left_over(tmp_path) == []


@pytest.mark.real
def test_a_full_disk(smollm2, tmp_path, files_of_at_most):
    folder = model_folder(tmp_path / "model", smollm2, "llama")
    with files_of_at_most(1_000_000), pytest.raises(pruning.SavingError, match="disk is full"):
        export(folder, tmp_path / "out" / "model.gguf")
    assert left_over(tmp_path) == []


def test_stopping_ends_the_converter(folder, tmp_path):
    def stop(progress):
        raise pruning.Cancelled("Stopped.")

    with pytest.raises(pruning.Cancelled):
        export(folder, tmp_path / "out" / "model.gguf", progress=stop)
    assert left_over(tmp_path) == []


@pytest.mark.real
def test_llama_cpp_reads_eight_bits_as_transformers_does(smollm2, need, tmp_path):
    need(importlib.util.find_spec("xllamacpp"), "llama.cpp (xllamacpp) is not installed")
    from transformers import AutoModelForCausalLM

    from tests.helpers.llamacpp import assert_agrees

    steps = [
        pruning.Layers(layers=tuple(range(4, 28))),
        pruning.Neurons(intermediate_size=1248, criterion="peak_to_peak"),
    ]
    recipe = pruning.Recipe(
        base="smollm2-135m", steps=[steps[0], steps[1].model_copy(update={"repair": False})]
    )
    folder = pruning.prune(recipe, smollm2).save(tmp_path / "cut")
    file = export(folder, tmp_path / "cut.gguf", "q8_0")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    # llama.cpp rounds to eight bits what it multiplies the weights with, too.
    assert_agrees(file, read, smollm2.tokenizer, ["Paris is the capital of"], tolerance=0.7)


SECRETS = {
    "HF_TOKEN": "hf_sesame",
    "OAUTH_CLIENT_SECRET": "sesame-secret",
    "AWS_SECRET_ACCESS_KEY": "sesame-aws",
    "MY_DATABASE_URL": "postgres://user:sesame@host",
    "OPENAI_API_KEY": "sesame-key",
}

FAKE_CONVERTER = """
import json, os, resource, sys, time
facts = {
    "environment": dict(os.environ),
    "memory": resource.getrlimit(resource.RLIMIT_AS)[0],
    "seconds": resource.getrlimit(resource.RLIMIT_CPU)[0],
    "arguments": sys.argv,
}
open(os.environ["SECATEUR_TEST_OUTPUT"], "w").write(json.dumps(facts))
if os.environ.get("SECATEUR_TEST_FORK"):
    if os.fork() == 0:
        open(os.environ["SECATEUR_TEST_FORK"], "w").write(str(os.getpid()))
    time.sleep(600)
open(sys.argv[sys.argv.index("--outfile") + 1], "w").write("GGUF")
"""


@pytest.fixture
def fake_converter(tmp_path, monkeypatch):
    """Let the child run a converter that writes down what it was given; return the file that it writes."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "convert_hf_to_gguf.py").write_text(FAKE_CONVERTER)
    monkeypatch.setenv("PYTHONPATH", str(package))
    monkeypatch.setenv("SECATEUR_TEST_OUTPUT", str(tmp_path / "facts.json"))
    return tmp_path / "facts.json"


def test_the_converter_gets_limits_and_no_secrets(folder, fake_converter, tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    export(folder, tmp_path / "model.gguf")
    facts = json.loads(fake_converter.read_text())
    assert "sesame" not in json.dumps(facts)
    assert facts["environment"]["HF_HUB_OFFLINE"] == "1"
    assert 0 < facts["memory"] < 2**36
    assert 0 < facts["seconds"] < 10_000
    assert facts["arguments"][1:3] == ["--outtype", "f16"]


def test_a_cancelled_export_kills_all_that_the_converter_started(
    folder, fake_converter, tmp_path, monkeypatch
):
    forked = tmp_path / "forked"
    monkeypatch.setenv("SECATEUR_TEST_FORK", str(forked))

    def stop(_progress):
        if forked.exists() and forked.read_text():
            raise pruning.Cancelled("Stopped.")

    with pytest.raises(pruning.Cancelled):
        export(folder, tmp_path / "out" / "model.gguf", progress=stop)
    assert left_over(tmp_path) == []
    child = int(forked.read_text())
    for _ in range(1000):
        if not running(child):
            break
        time.sleep(0.01)
    assert not running(child)


def running(pid):
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False
