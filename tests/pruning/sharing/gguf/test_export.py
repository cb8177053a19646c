"""GGUF: offered where the shape allows it, and handed over only if llama.cpp computes what transformers computes."""

import importlib
import json
import re
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoConfig

import pruning
from pruning.architectures.shape import Shape
from pruning.cli import main
from pruning.sharing.gguf import GGUF_TYPES, convert, export, export_and_compare, gguf_types
from pruning.sharing.gguf.compare import Comparison
from tests.helpers.models import FAMILIES, config, folder_of, save_tiny

export_module = importlib.import_module("pruning.sharing.gguf.export")

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
    assert gguf_types(pruning.Neurons(fraction=0.2, multiple_of=1).reshape(before))["q8_0"]
    assert not gguf_types(pruning.Neurons(fraction=0.2, multiple_of=32).reshape(before))["q8_0"]


def rows_in(reason):
    """The rows that a refusal names, by the kind of unit that they count."""
    return {unit: int(length) for length, unit in re.findall(r"(\d+) \(([a-z ]+)s\)", reason)}


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(1, 4), st.sampled_from([8, 24, 32, 48]), st.integers(1, 40))
def test_a_type_is_offered_where_every_row_divides(hidden, heads, head, width):
    sizes = {"hidden_size": 24 * hidden, "intermediate_size": 8 * width, "head_dim": head}
    found = shape(num_attention_heads=heads, num_key_value_heads=heads, num_hidden_layers=1, **sizes)
    rows = {"channel": 24 * hidden, "neuron": 8 * width, "query head": heads * head}
    reason = gguf_types(found)["q8_0"]
    assert rows_in(reason) == {unit: length for unit, length in rows.items() if length % 32}
    assert (reason == "") == all(length % 32 == 0 for length in rows.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_what_projections_read(family, monkeypatch):
    # Rows are named of families that llama.cpp does not know, too.
    monkeypatch.setattr("pruning.sharing.gguf.types.check_known", lambda shape: None)
    rows = rows_in(gguf_types(Shape.of(config(family)))["q6_k"])
    heads = {"qwen3": 48}.get(family, 32)
    assert rows == {"channel": 32, "neuron": {"mistral": 53}.get(family, 48), "query head": heads}


def test_models_that_llama_cpp_does_not_know():
    types = gguf_types(Shape.of(config("opt")))
    assert all("does not know OPT models" in reason for reason in types.values())


def test_a_width_that_does_not_divide_names_the_nearest_that_do():
    assert "nearest that work are 1216 or 1248" in gguf_types(shape(intermediate_size=1229))["q4_0"]


def matrices(file):
    """The type of each matrix of a GGUF file, and its size with rows first."""
    return {
        tensor.name: (tensor.tensor_type.name, *reversed(tensor.shape.tolist()))
        for tensor in GGUFReader(file).tensors
        if len(tensor.shape) == 2
    }


SIZES = {
    "llama": {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16},
    # As the config of every GPT-2 on the Hub has it, besides a width that is not four times the channels.
    "gpt2": {"n_embd": 64, "n_inner": 96, "n_ctx": 1024},
}


@pytest.mark.parametrize(("family", "kind"), [("llama", "q4_0"), ("gpt2", "q8_0"), ("llama", "q5_0")])
def test_a_type_that_is_offered_is_what_every_matrix_gets(tmp_path, family, kind):
    folder = save_tiny(tmp_path / "model", family, **SIZES[family])
    assert gguf_types(Shape.of(AutoConfig.from_pretrained(folder)))[kind] == ""
    said = []
    exported = export_and_compare(folder, tmp_path / "new" / "{model}.gguf", kind, progress=said.append)
    found = matrices(exported.file)
    learned = {name: stored for name, (stored, *_) in found.items() if "position" not in name}
    assert len(learned) > 8
    assert set(learned.values()) == {kind.upper()}
    assert found["blk.0.ffn_down.weight"] == (kind.upper(), 64, 96)
    assert [path.name for path in exported.file.parent.iterdir()] == [exported.file.name]
    assert ("in f32" in exported.fallback) == (family == "gpt2")  # Its position embeddings.
    assert exported.perplexity_ratio == pytest.approx(1, abs=0.1)  # Of random weights, rounded or not.
    assert any(f"Rounded to {kind}, its perplexity" in line for line in exported.notes)
    stages = [line.text for line in said]
    for stage in ("Converting", "Computing", "Comparing f16", "Rounding", f"Comparing {kind}"):
        assert any(text.startswith(stage) for text in stages), stage


def test_the_shell_exports_names_the_recipe_and_says_how_to_run_the_file(tmp_path, monkeypatch, capsys):
    base = folder_of("llama")
    recipe = pruning.Recipe(
        base=str(base), steps=[pruning.Neurons(fraction=0.3, criterion="l2", repair=False)]
    )
    folder = pruning.run(recipe, evaluate=False).save(tmp_path / "cut")
    file = tmp_path / "cut.gguf"
    arguments = ["export", folder, "--format", "gguf", "--type", "f16", "--output", file, "--json"]
    monkeypatch.setattr(sys, "argv", ["pruning", *map(str, arguments)])
    assert main() == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == file.stat().st_size
    assert [each["tokens"] for each in told["differences"]] == [28, 480]
    assert all(each["largest"] < 0.05 for each in told["differences"])
    assert told["perplexity_ratio"] is None
    assert told["run"]["Modelfile"] == "FROM ./cut.gguf"
    assert "cut.gguf" in told["run"]["llama.cpp"]
    fields = GGUFReader(file).fields
    parsed = pruning.Recipe.parse((folder / "recipe.yaml").read_text())
    assert parsed.digest in fields["general.description"].contents()
    assert pruning.Recipe.parse(fields["secateur.recipe"].contents()).digest == parsed.digest
    assert fields["secateur.base_model"].contents() == parsed.base
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
    refused(pruning.RecipeError, "choose one of: f16, bf16, q8_0", folder, output, "q4_k")
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
    written = json.loads((folder / "tokenizer.json").read_text())
    written["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(pruning.ModelError, match="does not know the tokenizer of model"):
        export(folder, tmp_path / "out" / "model.gguf")
    assert left_over(tmp_path) == []


def test_a_full_disk(tmp_path, files_of_at_most):
    folder = save_tiny(tmp_path / "model", "llama", hidden_size=256, intermediate_size=512)
    with files_of_at_most(1_000_000), pytest.raises(pruning.SavingError, match="disk is full"):
        export(folder, tmp_path / "out" / "model.gguf")
    assert left_over(tmp_path) == []


def test_stopping_ends_the_converter(folder, tmp_path):
    def stop(progress):
        raise pruning.Cancelled("Stopped.")

    with pytest.raises(pruning.Cancelled):
        export(folder, tmp_path / "out" / "model.gguf", progress=stop)
    assert left_over(tmp_path) == []


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
    monkeypatch.setattr(convert, "converter_folder", lambda: package)
    for name in ("compare", "compare_16_bits"):
        monkeypatch.setattr(export_module, name, lambda *arguments: Comparison(()))
    monkeypatch.setattr(export_module, "open_gguf", lambda file: SimpleNamespace(fields={}, tensors=[]))
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


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("raise KeyError('head_dim')", "cannot read model: it expects head_dim in the config"),
        (
            "raise ValueError(\"Can not map tensor 'a.b.weight'\")",
            "it has no place for the tensor a.b.weight.",
        ),
        ("raise OSError('a thing')", "The last line that it printed is: OSError: a thing"),
    ],
)
def test_why_the_converter_stopped_is_told(line, told, folder, fake_converter):
    converter = convert.converter_folder() / "convert_hf_to_gguf.py"
    converter.write_text(line)
    with pytest.raises(pruning.ModelError, match=re.escape(told)):
        export(folder, fake_converter.with_name("model.gguf"))


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
