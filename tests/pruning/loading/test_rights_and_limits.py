"""What a model may bring, how large it may be, and who may have it."""

import json

import pytest

import pruning
from pruning.loading.load import find
from pruning.loading.source import Access
from tests.helpers.model_files import asked_for, files_of, outcome, refusal, same, tiny_llama, written
from tests.helpers.models import folder_of, loaded, save_tiny

CODE = {
    "tokenizer_config.json": {
        "auto_map": {"AutoTokenizer": ["code.Words", None]},
        "tokenizer_class": "Words",
    },
    "generation_config.json": {"nested": [{"deeply": {"auto_map": {"AutoModel": "code.Words"}}}]},
    "special_tokens_map.json": {"auto_map": "code.Words"},
    "config.json": {"custom_pipelines": {"text": {"impl": "code.Words"}}},
}


@pytest.mark.parametrize("name", CODE)
def test_a_model_that_brings_code_in_any_of_its_settings_is_refused(hub, tmp_path, name):
    mark = tmp_path / "ran"
    files = tiny_llama()
    settings = json.loads(files.get(name, b"{}")) | CODE[name]
    code = f"open({str(mark)!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast as Words\n".encode()
    files |= {name: json.dumps(settings).encode(), "code.py": code}
    hub.add_model("ada/tiny", files)
    for model in ("ada/tiny", written(tmp_path / "model", files)):
        message = refusal(model)
        assert "brings code of its own" in message
        assert f"in {name}" in message
    assert not mark.exists()
    assert not asked_for(hub, "code.py") + asked_for(hub, ".safetensors")


def test_a_token_may_be_called_like_a_key_that_loads_code(tmp_path):
    values = json.loads(tiny_llama()["tokenizer.json"])
    values["added_tokens"][0]["content"] = "auto_map"
    values["model"]["vocab"] = {
        {"<s>": "auto_map"}.get(token, token): number for token, number in values["model"]["vocab"].items()
    }
    files = tiny_llama(tokenizer__json=values, tokenizer_config__json={"eos_token": "</s>"})
    assert outcome(written(tmp_path / "model", files)) == "loaded"


def test_the_settings_that_are_saved_bring_no_code(hub, tmp_path):
    hub.add_model("ada/tiny", tiny_llama())
    base = pruning.load("ada/tiny")
    base.tokenizer.save_pretrained(tmp_path / "saved")
    base.model.save_pretrained(tmp_path / "saved")
    assert not [file for file in (tmp_path / "saved").glob("*.json") if "auto_map" in file.read_text()]


def test_limits_of_files(hub):
    hub.add_model("ada/tiny", tiny_llama(generation_config__json=b" " * 1_000_001))
    message = "generation_config.json of ada/tiny has 1.0 MB; the limit for this file is 1.0 MB"
    assert message in refusal("ada/tiny")
    many = {f"model-{number}.safetensors": b"x" for number in range(101)}
    index = {"weight_map": {name: name for name in many}}
    files = tiny_llama(model__safetensors=None, model__safetensors__index__json=index)
    hub.add_model("ada/many", files | many)
    assert "keeps its weights in 101 files; the limit is 100" in refusal("ada/many")
    assert not asked_for(hub, ".safetensors")


def test_the_files_of_a_folder_have_the_same_limits(tmp_path):
    folder = written(tmp_path / "model", tiny_llama(generation_config__json=b" " * 1_000_001))
    assert "the limit for this file is 1.0 MB" in refusal(folder)
    (tmp_path / "model" / "config.json").write_bytes(b" " * 1_000_001)
    assert "the limit is 1.0 MB" in refusal(folder)


def test_only_files_of_known_names_are_downloaded(hub):
    spare = {
        "notes.txt": b"x",
        "merges.txt.json": b"{}",
        "other.model": b"x",
        "extra.jinja": b"x",
        "code.py": b"x",
        "model-old.safetensors": b"x",
        "onnx/spare.json": b"{}",
    }
    hub.add_model("ada/tiny", tiny_llama() | spare)
    folder = pruning.load("ada/tiny").source.folder
    assert not {path.name for path in folder.rglob("*")} & {name.rpartition("/")[2] for name in spare}


def test_looking_a_model_up_downloads_its_config_and_nothing_else(hub):
    readme = b"---\nlicense: mit\n---\n"
    hub.add_model("ada/tiny", tiny_llama(README__md=readme, recipe__yaml=b"kept_layers: [0, 2, 3]\n"))
    source = find("ada/tiny")
    assert (source.license, source.kept_layers) == ("mit", None)
    assert {path.name for path in source.folder.iterdir()} == {"config.json"}
    assert {path.rpartition("/")[2] for _, path, _ in hub.requests} == {"tiny", "config.json"}
    assert pruning.load(source).source.kept_layers == (0, 2, 3)


def test_a_model_that_was_looked_up_without_its_weights_can_still_be_loaded(hub):
    hub.add_model("distilbert/distilgpt2", files_of(folder_of("gpt2")))
    find("distilgpt2")
    source = find("distilgpt2")
    assert source.remote is None
    assert same(pruning.load(source), loaded("gpt2"))


@pytest.mark.parametrize("license", [b"[a, b]", b"{a: b}", b"'" + b"x" * 300 + b"'", b'"a\\nb"', b"3"])
def test_a_license_that_is_no_short_text_is_none(hub, license, tmp_path):
    files = tiny_llama(README__md=b"---\nlicense: " + license + b"\n---\n")
    hub.add_model("ada/tiny", files)
    assert find("ada/tiny").license is None
    assert find(written(tmp_path / "model", files)).license is None


def test_too_large(hub, monkeypatch):
    size = (folder_of("llama") / "model.safetensors").stat().st_size
    hub.add_model("ada/tiny", tiny_llama())
    monkeypatch.setenv("SECATEUR_MAX_BYTES", str(size // 2))
    message = refusal("ada/tiny")
    assert "is a download of 0.2 MB; the limit here is 0.1 MB" in message
    assert "raise SECATEUR_MAX_BYTES" in message
    monkeypatch.setenv("SECATEUR_MAX_BYTES", "lots")
    assert "SECATEUR_MAX_BYTES is 'lots'" in refusal("ada/tiny")
    assert {path for _, path, _ in hub.requests} == {"/api/models/ada/tiny"}
    monkeypatch.setenv("SECATEUR_MAX_BYTES", "1e9")
    assert pruning.load("ada/tiny")


def test_the_size_counts_all_that_is_downloaded(hub, monkeypatch):
    monkeypatch.setenv("SECATEUR_MAX_BYTES", "1e6")
    hub.add_model("ada/tiny", tiny_llama(vocab__json=b" " * 10**6 + b"{}"))
    assert "the limit here is 1.0 MB" in refusal("ada/tiny")
    assert not asked_for(hub, "config.json")


def test_unknown(hub):
    for token in ("ada-token", False):
        message = refusal("ada/none", token=token)
        assert "'ada/none'. Check the spelling" in message


def test_gated(hub):
    repo = hub.add_model("ada/gated", tiny_llama(), gated=True)
    for token in ("bob-token", False):
        assert "Accept them on its page" in refusal("ada/gated", token=token)
    assert not asked_for(hub, ".json") + asked_for(hub, ".safetensors")
    repo.granted.add("bob")
    assert not pruning.load("ada/gated", token="bob-token").source.public


def test_private(hub):
    hub.add_model("ada/secret", tiny_llama(), private=True)
    for token in ("bob-token", False):
        assert "if it is private, sign in" in refusal("ada/secret", token=token)
    assert not pruning.load("ada/secret", token="ada-token").source.public


@pytest.mark.parametrize("kind", ["private", "gated"])
def test_the_cache_hands_out_nothing_without_rights(hub, kind, monkeypatch):
    hub.add_model("ada/secret", tiny_llama(), **{kind: True})
    pruning.load("ada/secret", token="ada-token")
    assert pruning.load("ada/secret", access=Access("ada-token", local=False))
    for token in ("bob-token", False):
        for read in (pruning.load, find):
            with pytest.raises(pruning.ModelError, match="sign in"):
                read("ada/secret", access=Access(token, local=False))
    monkeypatch.setenv("HF_TOKEN", "ada-token")
    assert "sign in" in refusal("ada/secret", access=Access(local=False))
    assert pruning.load("ada/secret")

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refusal("ada/secret", access=Access("ada-token", local=False))
    assert pruning.load("ada/secret", token="ada-token")


def test_only_a_local_caller_reads_folders(hub):
    folder = str(folder_of("llama"))
    assert pruning.load(folder).source.hub_id is None
    assert "is not a model" in refusal(folder, access=Access(local=False))
    with pytest.raises(pruning.ModelError, match="is not a model"):
        find(folder, access=Access(local=False))


def test_a_recipe_holds_a_folder_to_its_content(tmp_path):
    folder = save_tiny(tmp_path / "model", "llama")
    revision = pruning.load(str(folder)).source.revision
    assert pruning.load(str(folder), revision=revision)
    save_tiny(folder, "llama", seed=1)
    assert "not the one that the recipe was made for" in refusal(str(folder), revision=revision)
