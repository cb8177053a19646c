"""Weights and tokenizers that do not fit their config, that are damaged, or that are missing."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

import pruning
from tests.helpers.model_files import config, files_of, outcome, refusal, tiny_llama, written
from tests.helpers.models import folder_of, save_tiny, tokenizer


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
