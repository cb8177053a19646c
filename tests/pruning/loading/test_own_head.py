"""A head of its own beside a config that ties it stays a head of its own."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import pruning
from pruning import Layers, Recipe
from tests.helpers.models import save_tiny, tokenizer

STEPS = [Layers(layers=(1,), repair=False)]


@pytest.fixture
def folder(tmp_path):
    """A model whose head differs from its embeddings, though its config ties both."""
    folder = save_tiny(tmp_path / "base", "llama", tie_word_embeddings=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return folder


def logits_without_layer_1(model, ids):
    model.model.layers = torch.nn.ModuleList(
        [layer for at, layer in enumerate(model.model.layers) if at != 1]
    )
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


def test_a_head_of_its_own_is_kept_whatever_the_config_says(folder, tmp_path):
    ids = torch.arange(4, 24)[None]
    plain = AutoModelForCausalLM.from_pretrained(folder)
    pruned = pruning.run(Recipe(base=str(folder), steps=STEPS), evaluate=False)
    pruned.save(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)
    with torch.inference_mode():
        got = again(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(got, logits_without_layer_1(plain, ids), atol=1e-4, rtol=1e-4)


def test_a_loaded_model_with_a_head_of_its_own_keeps_it(folder):
    plain = AutoModelForCausalLM.from_pretrained(folder)
    pruned = pruning.prune(plain, tokenizer(), steps=STEPS)
    assert torch.equal(pruned.model.lm_head.weight, plain.lm_head.weight)
    assert not torch.equal(pruned.model.lm_head.weight, pruned.model.model.embed_tokens.weight)


def test_a_copy_of_the_embeddings_in_the_files_stays_tied(tmp_path):
    folder = save_tiny(tmp_path / "base", "llama", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert pruning.load(folder).model.config.tie_word_embeddings
