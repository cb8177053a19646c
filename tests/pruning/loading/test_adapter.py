"""A LoRA adapter is merged into its base, as peft does, or refused as what it is."""

import importlib.util
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import pruning
from page.html.model_map import weights_origin
from pruning import Neurons, Recipe
from pruning.loading.find import find
from pruning.loading.source import Access
from tests.helpers.models import folder_of

IDS = torch.arange(4, 44)[None]

OPTIONS = {
    "plain": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "rank-stabilized": {"target_modules": ["q_proj"], "use_rslora": True},
    "decomposed": {"target_modules": ["up_proj"], "use_dora": True},
    "of several ranks": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"layers.1.mlp.up_proj": 32},
    },
    "on one layer": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
}


def save_adapter(folder, base, **options):
    """Save an adapter that changes its base by as much as its weights are large."""
    model = AutoModelForCausalLM.from_pretrained(base)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, **options))
    generator = torch.Generator().manual_seed(0)
    for name, values in wrapped.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            values.data.copy_(torch.randn(values.shape, generator=generator) * 0.2)
    wrapped.save_pretrained(folder)
    return folder


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def change(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def adapter(tmp_path):
    return save_adapter(tmp_path / "adapter", folder_of("llama"), **OPTIONS["plain"])


@pytest.mark.parametrize("case", OPTIONS)
def test_a_merged_adapter_computes_what_peft_does(case, tmp_path):
    base = folder_of("llama")
    adapter = save_adapter(tmp_path, base, **OPTIONS[case])
    plain = AutoModelForCausalLM.from_pretrained(base)
    before = logits(plain)
    expected = logits(PeftModel.from_pretrained(plain, adapter))
    assert not torch.allclose(before, expected, atol=1e-2)
    loaded = pruning.load(adapter)
    torch.testing.assert_close(logits(loaded.model), expected, atol=1e-4, rtol=1e-4)
    assert not [name for name, _ in loaded.model.named_parameters() if "lora" in name]


def test_a_cut_adapter_is_saved_as_a_plain_model(adapter, tmp_path):
    base = pruning.load(adapter)
    pruned = pruning.prune(adapter, steps=Neurons(fraction=0.25, criterion="l2", repair=False))
    again = AutoModelForCausalLM.from_pretrained(pruned.save(tmp_path / "out"))
    handles = []
    for layer, kept in enumerate(pruned.kept["neurons"].values()):
        mask = torch.zeros(base.model.config.intermediate_size)
        mask[kept] = 1
        projection = base.model.model.layers[layer].mlp.down_proj
        handles.append(
            projection.register_forward_pre_hook(lambda _module, args, mask=mask: (args[0] * mask,))
        )
    torch.testing.assert_close(logits(again), logits(base.model), atol=1e-4, rtol=1e-4)


def test_an_adapter_on_the_hub_names_its_base_in_the_card(hub, tmp_path, adapter):
    hub.add_model("ada/base", files_of(folder_of("llama")))
    change(adapter, base_model_name_or_path="ada/base")
    repo = hub.add_model("bob/adapter", files_of(adapter))
    steps = Neurons(fraction=0.25, criterion="l2", repair=False)
    pruned = pruning.prune(Recipe(base="bob/adapter", steps=[steps]), token=False)
    (note,) = pruned.report.base_notes
    assert note.startswith("The LoRA adapter bob/adapter was merged into its base, ada/base (revision ")
    assert note in weights_origin(pruned.source)
    assert pruned.recipe.revision == repo.sha
    card = (pruned.save(tmp_path / "out") / "README.md").read_text()
    assert "base_model: ada/base" in card
    assert note in card
    expected = logits(pruning.prune(adapter, steps=steps, token=False).model)
    assert torch.equal(logits(pruned.model), expected)


def test_a_preview_of_an_adapter_downloads_no_weights(hub, adapter):
    hub.add_model("ada/base", files_of(folder_of("llama")))
    change(adapter, base_model_name_or_path="ada/base")
    hub.add_model("bob/adapter", files_of(adapter))
    shapes = pruning.preview("bob/adapter", steps=Neurons(fraction=0.25), token=False)
    assert (
        shapes.before.parameters
        == pruning.preview("ada/base", steps=Neurons(fraction=0.25)).before.parameters
    )
    assert not [path for method, path, _ in hub.requests if method == "GET" and path.endswith(".safetensors")]


def test_an_adapter_on_the_hub_may_not_name_a_folder(hub, adapter):
    """What others wrote must not choose a file of this machine."""
    change(adapter, base_model_name_or_path=str(folder_of("llama")))
    hub.add_model("bob/adapter", files_of(adapter))
    with pytest.raises(pruning.ModelError, match=r"its base cannot be had: '.*' is not a model"):
        find("bob/adapter", access=Access(token=False))


def test_a_changed_adapter_is_not_the_one_of_a_recipe(adapter):
    recipe = pruning.prune(adapter, steps=Neurons(fraction=0.25, criterion="l2")).recipe
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: values * 2 for name, values in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(pruning.ModelError, match="not the one that the recipe was made for"):
        pruning.prune(recipe)


def test_without_peft_an_adapter_is_refused_with_what_to_install(adapter, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else found(name))
    with pytest.raises(pruning.ModelError, match=r"holds an adapter .* not installed\. .* pip install peft"):
        pruning.load(adapter)


def test_an_adapter_is_not_streamed(adapter, tmp_path):
    recipe = Recipe(base=str(adapter), steps=[Neurons(fraction=0.25, criterion="l2", repair=False)])
    with pytest.raises(pruning.ModelError, match="is an adapter, which is merged into its base in memory"):
        pruning.streaming.prune(recipe, tmp_path / "out")


REFUSED = {
    "not LoRA": ({"peft_type": "IA3"}, "of the type IA3; only LoRA can be merged here"),
    "no base": ({"base_model_name_or_path": None}, "names no base model"),
    "a base that is not there": (
        {"base_model_name_or_path": "/no/such/folder"},
        "its base cannot be had: '/no/such/folder' is not a model",
    ),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "more than LoRA weights: modules_to_save is set"),
    "biases": ({"bias": "all"}, "more than LoRA weights: bias is set"),
    "a base that was changed": ({"init_lora_weights": "pissa"}, "init_lora_weights is set"),
    "a setting of the future": ({"use_newest": True}, "use_newest is set"),
    "code": ({"auto_map": {"AutoModel": "code.Model"}}, "brings code of its own"),
    "no number": ({"lora_alpha": "many"}, "whose lora_alpha is 'many'"),
    "a pattern": ({"alpha_pattern": {"(a+)+$": 1}}, "alpha_pattern is not a table of module names"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_cannot_be_merged_is_refused_as_what_it_is(case, adapter):
    changes, reason = REFUSED[case]
    change(adapter, **changes)
    with pytest.raises(pruning.ModelError) as error:
        pruning.load(adapter)
    assert reason in str(error.value)


def test_an_adapter_of_another_base_is_refused(adapter):
    change(adapter, base_model_name_or_path=str(folder_of("gpt2")))
    with pytest.raises(
        pruning.ModelError, match=r"does not fit its base: it changes .*, which the base does not have"
    ):
        pruning.load(adapter)


def test_an_adapter_of_another_size_is_refused(adapter):
    change(adapter, base_model_name_or_path=str(folder_of("llama", intermediate_size=40)))
    with pytest.raises(pruning.ModelError, match=r"The adapter .* does not fit its base: .* Choose the base"):
        pruning.load(adapter)


def test_an_adapter_that_lacks_a_half_is_refused(adapter):
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[next(name for name in tensors if "lora_B" in name)]
    save_file(tensors, file)
    with pytest.raises(pruning.ModelError, match="does not fit its base"):
        pruning.load(adapter)


def test_an_adapter_in_a_format_that_can_run_code_is_refused(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(pruning.ModelError, match="other formats can run code when they are read"):
        pruning.load(adapter)
