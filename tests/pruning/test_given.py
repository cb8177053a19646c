"""Every kind of model goes in, and none of them is changed."""

import os
from pathlib import Path

import peft
import pytest
import torch
from accelerate import cpu_offload
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaModel

import pruning
from pruning import Calibration, ModelError, Neurons, Recipe, RecipeError
from pruning.loading.given import TENSORS, fingerprint
from tests.helpers.models import FAMILIES, PROMPT, WITH_BOS, folder_of, loaded, tiny, tokenizer

STEP = Neurons(intermediate_size=24, criterion="l2")
TEXT = Calibration(text="story", tokens=600, window=128)


def words(family="llama"):
    return tokenizer(family in WITH_BOS)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model, before):
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_memory_is_pruned_as_its_folder_is_and_not_changed(family):
    model = AutoModelForCausalLM.from_pretrained(folder_of(family), local_files_only=True)
    model.train().requires_grad_(True)
    before = state(model)
    step = Neurons(intermediate_size=24, criterion="activation")
    pruned = pruning.prune(model, words(family), steps=[step], calibration=TEXT)
    expected = pruning.prune(loaded(family), steps=[step], calibration=TEXT)
    assert_same(pruned.model, state(expected.model))
    assert model.training
    assert all(values.requires_grad for values in model.parameters())
    assert_same(model, before)
    places = {values.untyped_storage().data_ptr() for values in model.parameters()}
    assert not places & {values.untyped_storage().data_ptr() for values in pruned.model.parameters()}
    assert pruned.recipe.revision == fingerprint(model)


def test_all_kinds_give_the_same_model():
    folder = folder_of("llama")
    kinds = [
        (str(folder),),
        (folder,),
        (pruning.load(folder),),
        (AutoModelForCausalLM.from_pretrained(folder, local_files_only=True), words()),
    ]
    models = [pruning.prune(*kind, steps=STEP) for kind in kinds]
    models += [pruning.run(*kind, steps=[STEP], evaluate=False) for kind in kinds]
    old = Recipe(base=folder, steps=[STEP])
    models += [pruning.prune(old, pruning.load(folder)), pruning.prune(old), pruning.run(old, evaluate=False)]
    models += [pruning.prune(old, base=pruning.load(folder)), pruning.run(old, base=folder, evaluate=False)]
    for one in models[1:]:
        assert_same(one.model, state(models[0].model))
    shapes = {pruning.preview(kind[0], steps=STEP).after.parameters for kind in kinds}
    assert shapes == {models[0].shape.parameters} == {pruning.preview(old).after.parameters}


def test_all_kinds_are_evaluated_continued_and_searched():
    folder = folder_of("llama")
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    expected = pruning.evaluate(loaded("llama"), tokens=100)
    assert pruning.evaluate(folder, tokens=100) == pruning.evaluate(model, words(), tokens=100) == expected
    text = pruning.generate(loaded("llama"), PROMPT, pruning.Sampling(4))
    assert pruning.generate(model, PROMPT, pruning.Sampling(4), tokenizer=words()) == text
    assert pruning.generate(folder, PROMPT, pruning.Sampling(4)) == text
    events = pruning.iter_search(model, "10%", words(), calibration=TEXT, thorough=False)
    assert isinstance(next(events), pruning.Trial)


def test_a_pruned_model_is_pruned_again():
    once = pruning.prune(folder_of("llama"), steps=STEP)
    twice = pruning.prune(once, steps=Neurons(intermediate_size=8, criterion="l2"))
    assert (once.model.config.intermediate_size, twice.model.config.intermediate_size) == (24, 8)


def test_a_model_that_was_trained_meanwhile_is_read_again():
    model = tiny("llama")
    step = Neurons(intermediate_size=24, criterion="activation")
    first = pruning.prune(model, words(), steps=step, calibration=TEXT)
    again = pruning.prune(model, words(), steps=step, calibration=TEXT)
    assert first.recipe.revision == again.recipe.revision
    for values in model.parameters():
        values.data.mul_(1.5)
    changed = pruning.prune(model, words(), steps=step, calibration=TEXT)
    assert changed.recipe.revision != first.recipe.revision
    assert not torch.equal(changed.model.lm_head.weight, first.model.lm_head.weight)


def test_a_recipe_of_a_model_in_memory_is_for_these_weights():
    model = tiny("llama")
    pruned = pruning.prune(model, words(), steps=STEP)
    assert pruned.recipe.revision.startswith(TENSORS)
    assert_same(pruning.prune(model, words(), recipe=pruned.recipe).model, state(pruned.model))
    with pytest.raises(RecipeError, match="other weights"):
        pruning.prune(tiny("llama", seed=1), words(), recipe=pruned.recipe)


def test_a_model_in_memory_is_saved_without_a_path(tmp_path):
    folder = folder_of("llama")
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    saved = pruning.prune(model, words(), steps=STEP).save(tmp_path / "out")
    assert Recipe.load(saved / "recipe.yaml").base == folder.name
    assert str(folder.parent) not in "".join(
        file.read_text() for file in saved.iterdir() if file.suffix in (".md", ".yaml", ".json")
    )


def quantized():
    model = tiny("llama")
    model.is_quantized = True
    return model


def offloaded():
    model = tiny("llama")
    cpu_offload(model, execution_device="cpu")
    return model


def adapted():
    return peft.get_peft_model(tiny("llama"), peft.LoraConfig(target_modules=["q_proj"]))


def another():
    return LlamaModel(tiny("llama").config)


REFUSED = {
    "meta": (lambda: tiny("llama").to("meta"), "meta device"),
    "quantized": (quantized, "quantized"),
    "offloaded": (offloaded, "offloaded"),
    "adapters": (adapted, "merge_and_unload"),
    "adapters inside": (lambda: adapted().base_model.model, "adapters"),
    "compiled": (lambda: torch.compile(tiny("llama")), "_orig_mod"),
    "no head": (another, "LlamaForCausalLM"),
    "no model": (lambda: 3, "not a model"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_cut_is_refused_in_one_sentence_and_not_changed(kind):
    make, words_of_it = REFUSED[kind]
    model = make()
    before = state(model) if kind not in ("no model", "meta", "offloaded") else {}
    with pytest.raises(ModelError, match=words_of_it) as refusal:
        pruning.prune(model, words(), steps=STEP)
    assert "\n" not in str(refusal.value)
    if before:
        assert_same(model, before)


def test_the_tokenizer_is_the_models_own():
    with pytest.raises(ModelError, match=r"tokenizer of .* is missing"):
        pruning.prune(tiny("llama"), steps=STEP)
    with pytest.raises(ModelError, match="does not fit the model: it has 320 tokens"):
        pruning.prune(tiny("llama", vocab_size=200), words(), steps=STEP)
    small = pruning.load(folder_of("llama"))
    large = AutoTokenizer.from_pretrained(folder_of("llama"))
    large.add_tokens([f"<{number}>" for number in range(200)])
    with pytest.raises(ModelError, match="does not fit"):
        pruning.prune(small, large, steps=STEP)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"steps": STEP, "recipe": Recipe(base="x", steps=[STEP])},
        {"steps": STEP, "base": "smollm2-135m"},
        {"steps": []},
        {"steps": STEP, "seed": -1},
    ],
    ids=lambda arguments: "+".join(arguments) or "nothing",
)
def test_contradictions_are_refused(arguments):
    with pytest.raises(RecipeError):
        pruning.prune(loaded("llama"), **arguments)


def test_paths_are_names():
    assert Recipe(base=Path("some") / "folder", steps=[STEP]).base == os.path.join("some", "folder")
