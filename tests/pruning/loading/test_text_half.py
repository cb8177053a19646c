"""Of a multimodal checkpoint the text half is taken: it computes what the whole model computes of a text."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import pruning
from page.html.model_map import weights_origin
from pruning import Layers, Neurons, Recipe, Weights
from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.families import LAYER, NEURON
from pruning.architectures.masks import masked
from pruning.cli import main
from pruning.loading.load import find, load
from tests.helpers.models import tokenizer
from tests.helpers.multimodal import CONFIGS, TEXT_TYPES, save_whole, whole_model

NAMES = list(CONFIGS)
IDS = torch.arange(4, 44)[None]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


def change(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))


def test_the_text_half_computes_what_the_whole_model_does_of_a_text(name, tmp_path):
    base = pruning.load(save_whole(tmp_path, name))
    assert base.model.config.model_type == TEXT_TYPES[name]
    torch.testing.assert_close(logits(base.model), logits(whole_model(name)), atol=1e-5, rtol=1e-5)


def test_a_cut_text_half_is_saved_as_a_plain_text_model(name, tmp_path):
    base = pruning.load(save_whole(tmp_path / "base", name))
    steps = [Neurons(fraction=0.25, criterion="l2", repair=False)]
    if name != "gemma4":  # What a layer of so small a Gemma 4 is depends on its number.
        steps.append(Layers(layers=(1,), repair=False))
    pruned = pruning.prune(base, steps=steps)
    again = AutoModelForCausalLM.from_pretrained(pruned.save(tmp_path / "out"))
    assert again.config.model_type == TEXT_TYPES[name]
    anatomy = anatomy_of(base.model.config)
    neurons = [torch.arange(anatomy.units[NEURON])] * anatomy.layers
    for layer, kept in zip(pruned.layers, pruned.units[NEURON], strict=True):
        neurons[layer] = kept
    kept = {NEURON: neurons, LAYER: [torch.tensor(pruned.layers)]}
    with masked(base.model, anatomy, kept):
        expected = logits(base.model)
    torch.testing.assert_close(logits(again), expected, atol=1e-4, rtol=1e-4)


def test_streaming_a_text_half_gives_the_same_files(name, tmp_path):
    folder = save_whole(tmp_path / "base", name, max_shard_size="60KB")
    step = Neurons(fraction=0.25, criterion="l2", repair=False)
    recipe = Recipe(base=str(folder), steps=[step])
    pruning.streaming.prune(recipe, tmp_path / "streamed")
    pruning.prune(recipe).save(tmp_path / "out")
    streamed = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "streamed"))
    assert torch.equal(streamed, logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")))


def test_a_preview_reads_the_config_alone(name, tmp_path):
    folder = save_whole(tmp_path, name)
    whole = sum(values.numel() for values in whole_model(name).parameters())
    loaded = sum(values.numel() for values in pruning.load(folder).model.parameters())
    (folder / "model.safetensors").unlink()
    shapes = pruning.preview(folder, steps=Neurons(fraction=0.25))
    assert shapes.before.parameters == loaded < whole
    assert shapes.after.config.model_type == TEXT_TYPES[name]


def test_a_model_in_memory_gives_its_text_half_too(name):
    whole = whole_model(name)
    pruned = pruning.prune(whole, tokenizer(), steps=Weights(fraction=0.5))
    assert pruned.source.notes
    assert pruned.model.config.model_type == TEXT_TYPES[name]
    embeddings = pruned.model.get_input_embeddings().weight
    assert torch.equal(embeddings, whole.get_input_embeddings().weight)


def test_a_text_half_on_the_hub_is_checked_before_it_is_downloaded(hub, tmp_path):
    folder = save_whole(tmp_path / "whole", "gemma3", max_shard_size="60KB")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    change(folder, text_config=CONFIGS["gemma3"]["text_config"] | {"intermediate_size": 40})
    hub.add_model("ada/wrong", files | {"config.json": (folder / "config.json").read_bytes()})
    with pytest.raises(pruning.ModelError, match=r"do not fit its config: .* \[32, 48\], not \[32, 40\]"):
        pruning.load("ada/wrong", token=False)
    assert not list((tmp_path / "state").rglob("*.safetensors"))
    hub.add_model("ada/whole", files)
    base = pruning.load("ada/whole", token=False)
    torch.testing.assert_close(logits(base.model), logits(whole_model("gemma3")), atol=1e-5, rtol=1e-5)


def test_vision_that_was_left_out_is_said_everywhere(tmp_path, capsys, monkeypatch):
    folder = save_whole(tmp_path / "base", "gemma3")
    note = "Vision was left out: of this gemma3 model, only the text half (gemma3_text) is used."
    said = []
    steps = Neurons(fraction=0.25, criterion="l2", repair=False)
    pruned = pruning.run(
        folder, steps=steps, evaluate=False, progress=lambda progress: said.append(progress.text)
    )
    assert note in said
    assert pruned.report.base_notes == (note,)
    assert note in weights_origin(pruned.source)
    card = (pruned.save(tmp_path / "out") / "README.md").read_text()
    assert note in card
    monkeypatch.setattr("sys.argv", ["secateur", "info", str(folder)])
    assert main() == 0
    assert note in capsys.readouterr().out


def test_audio_that_was_left_out_is_named(tmp_path):
    (note,) = find(save_whole(tmp_path, "qwen2_audio")).notes
    assert note.startswith("Audio was left out: of this qwen2_audio model")


def test_weights_without_a_head_are_tied_whatever_the_config_says(tmp_path):
    folder = save_whole(tmp_path, "gemma3")
    change(folder, tie_word_embeddings=False)
    base = pruning.load(folder)
    assert base.model.config.tie_word_embeddings
    torch.testing.assert_close(logits(base.model), logits(whole_model("gemma3")), atol=1e-5, rtol=1e-5)


def test_weights_with_a_head_of_their_own_keep_it_whatever_the_config_says(tmp_path):
    folder = save_whole(tmp_path, "ministral3")
    change(folder, tie_word_embeddings=True)
    base = pruning.load(folder)
    assert not base.model.config.tie_word_embeddings
    torch.testing.assert_close(logits(base.model), logits(whole_model("ministral3")), atol=1e-5, rtol=1e-5)


def test_a_step_that_keeps_the_shape_saves_the_names_of_the_text_model(tmp_path):
    pruned = pruning.prune(save_whole(tmp_path / "base", "gemma3"), steps=Weights(fraction=0.5))
    out = pruned.save(tmp_path / "out")
    assert "model.embed_tokens.weight" in load_file(out / "model.safetensors")


def test_a_shared_copy_in_float32_gives_the_same_text_half(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    folder = save_whole(tmp_path / "half", "gemma3")
    tensors = load_file(folder / "model.safetensors")
    tensors = {key: values.to(torch.bfloat16) for key, values in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    plain, mapped = pruning.load(folder), load(folder, mapped=True)
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    assert torch.equal(logits(plain.model), logits(mapped.model))


REFUSED = {
    "a tensor is missing": (
        lambda folder: drop(folder, "language_model.model.layers.1.mlp.up_proj.weight"),
        "it describes 33,744 parameters, and the files have room for 32,208",
    ),
    "no language model": (
        lambda folder: drop(folder, "language_model"),
        "hold no language model that fits its config",
    ),
    "quantized": (
        lambda folder: change(folder, text_config={"quantization_config": {"bits": 4}}),
        "quantized",
    ),
    "no object": (lambda folder: change(folder, text_config="x"), "sets text_config to 'x'"),
    "billions of layers": (
        lambda folder: change(folder, text_config={"num_hidden_layers": 10**9}),
        "sets num_hidden_layers to '1000000000'",
    ),
    "another scale": (
        lambda folder: change(folder, model_type="aya_vision", text_config={}),
        "that scales its logits, which the whole model does not",
    ),
    "a text half without a class": (
        lambda folder: change(folder, model_type="qwen2_vl", text_config={}),
        "no causal language model of its type, qwen2_vl_text",
    ),
}


def drop(folder, start):
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: values for name, values in tensors.items() if not name.startswith(start)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_text_half_is_refused_in_a_sentence(case, tmp_path):
    damage, reason = REFUSED[case]
    folder = save_whole(tmp_path, "gemma3")
    damage(folder)
    with pytest.raises(pruning.ModelError) as error:
        pruning.load(folder)
    assert reason in str(error.value)


def test_code_that_a_multimodal_config_names_is_not_used(tmp_path):
    folder = save_whole(tmp_path, "mistral3")
    change(folder, auto_map={"AutoModel": "code.Model"})
    assert pruning.load(folder).model.config.model_type == "mistral"
