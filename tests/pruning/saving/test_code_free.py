"""No code goes out: a saved, published or exported model holds nothing that would load code."""

import json
import shutil
from dataclasses import replace

import pytest

import pruning
from pruning.saving.code_free import check_code_free, strip_code
from tests.helpers.models import folder_of, loaded
from tests.helpers.saved import cut

CODE = {"AutoTokenizer": ["mallory/code--tok.Evil", None]}

ASKING = {
    "config.json": {"auto_map": CODE},
    "tokenizer_config.json": {"nested": [{"deeper": {"auto_map": CODE}}]},
    "generation_config.json": {"custom_generate": "mallory/code"},
    "processor_config.json": {"auto_map": CODE},
    "tokenizer.json": {"model": {"vocab": {"auto_map": 3}, "auto_map": CODE}},
    "adapter_config.json": {"auto_mapping": {"parent_library": "os"}},
    "onnx/config.json": {"custom_pipelines": {"x": {"impl": "code.X"}}},
    "vocab.json": {"auto_map": CODE},
    "kernel.json": {"_attn_implementation": "mallory/kernel"},
}
HARMLESS = {
    "vocab.json": {"auto_map": 3, "the": 4},
    "tokenizer.json": {"model": {"vocab": {"auto_map": 3}}},
    "config.json": {"_attn_implementation": "sdpa", "note": "auto_map"},
}


def write(folder, name, values):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("name", ASKING)
def test_a_key_that_loads_code_is_found_and_stripped_at_any_depth(name, tmp_path):
    write(tmp_path, name, ASKING[name])
    with pytest.raises(pruning.ModelError, match=r"asks for code of its own \(\w+\), which is refused"):
        check_code_free(tmp_path)
    strip_code(tmp_path)
    check_code_free(tmp_path)
    assert isinstance(json.loads((tmp_path / name).read_text()), dict)


@pytest.mark.parametrize("name", HARMLESS)
def test_tokens_and_values_that_look_like_it_are_left_alone(name, tmp_path):
    write(tmp_path, name, HARMLESS[name])
    check_code_free(tmp_path)
    before = (tmp_path / name).read_bytes()
    strip_code(tmp_path)
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(
    "name", ["modeling.py", "custom_generate/generate.py", "fast.so", "pytorch_model.bin"]
)
def test_a_file_of_code_is_found_and_removed(name, tmp_path):
    write(tmp_path, name, {})
    with pytest.raises(pruning.ModelError, match="is code, or can hold some"):
        check_code_free(tmp_path)
    strip_code(tmp_path)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")])
def test_json_that_cannot_be_read_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(pruning.ModelError, match="cannot be read"):
        check_code_free(tmp_path)


def test_what_the_tokenizer_and_the_config_still_carry_is_not_saved(tmp_path):
    base = pruning.load(str(folder_of("llama")))
    base.tokenizer.init_kwargs["auto_map"] = CODE
    base.model.generation_config.custom_generate = "mallory/code"
    base.model.config.auto_map = CODE
    base.model.config.custom_pipelines = {"x": {"impl": "code.X"}}
    folder = cut(base).save(tmp_path / "cut")
    text = "".join(file.read_text() for file in folder.glob("*.json"))
    assert not any(key in text for key in ("auto_map", "custom_generate", "custom_pipelines", "mallory"))
    check_code_free(folder)


def test_a_writer_that_brings_code_along_brings_nothing_out(tmp_path):
    pruned = cut(loaded("llama"))

    class Smuggler:
        def save_pretrained(self, folder):
            pruned.tokenizer.save_pretrained(folder)
            write(folder, "tok.py", {})
            write(folder, "deep/tokenizer_config.json", {"auto_map": CODE})

    folder = replace(pruned, tokenizer=Smuggler()).save(tmp_path / "cut")
    assert not list(folder.rglob("*.py"))
    assert json.loads((folder / "deep" / "tokenizer_config.json").read_text()) == {}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return cut(loaded("llama")).save(tmp_path_factory.mktemp("saved") / "cut")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "deep/processor_config.json", "modeling.py"])
def test_no_folder_with_code_is_published_or_exported(name, saved, hub, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "cut")
    write(folder, name, {"auto_map": CODE})
    with pytest.raises(pruning.PruningError, match="code"):
        pruning.publish(folder, "ada/cut", token="ada-token")
    assert not hub.repos
    with pytest.raises(pruning.PruningError, match="code"):
        pruning.export(folder, tmp_path / "out" / "cut.gguf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["modeling.py", "deep/processor_config.json"])
def test_verify_names_code_in_a_folder(name, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "cut")
    write(folder, name, {"auto_map": CODE})
    failed = {
        check.name: check.detail for check in pruning.verify(str(folder)).checks if check.holds is False
    }
    assert name in failed["code"]


def test_verify_names_code_in_a_repository(saved, hub):
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    hub.add_model("ada/cut", files | {"custom_generate/generate.py": b"import os"})
    checks = {check.name: check for check in pruning.verify("ada/cut", token=False).checks}
    assert checks["code"].holds is False
    assert "generate.py" in checks["code"].detail
