"""For every family and kind of cut, the new model is the base without some neurons, and nothing else."""

import copy
import hashlib
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning import Calibration, Neurons, Recipe, RecipeError, preview, prune
from pruning.criteria import CRITERIA
from pruning.surgery import cast
from tests.helpers.models import FAMILIES, GATED, count, folder_of, loaded, matrices

WEIGHT_CRITERIA = [
    name for name, known in CRITERIA.items() if not known.needs_calibration and not known.gated_only
]
CUTS = {name: {"fraction": 0.3, "criterion": name} for name in WEIGHT_CRITERIA} | {
    "activation": {"fraction": 0.3, "repair": False},
    "repaired": {"fraction": 0.3},
    "random, repaired": {"fraction": 0.3, "criterion": "random", "repair": True},
    "width": {"width": 7, "criterion": "peak_to_peak"},
    "multiple": {"fraction": 0.4, "multiple_of": 8, "criterion": "l2"},
}
IDS = torch.arange(3, 43).reshape(2, 20)

pytestmark = pytest.mark.parametrize("family", FAMILIES)


def recipe_of(family, *steps, **values):
    calibration = Calibration(text="story", tokens=600, window=128)
    steps = [Neurons(**step) for step in steps]
    return Recipe(base=str(folder_of(family)), steps=steps, calibration=calibration, **values)


@pytest.fixture(scope="module")
def pruned_of():
    made = {}

    def pruned(family, cut):
        if (family, cut) not in made:
            made[family, cut] = prune(recipe_of(family, CUTS[cut]), loaded(family))
        return made[family, cut]

    return pruned


def digest(model):
    total = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        total.update(name.encode() + parameter.detach().numpy().tobytes())
    return total.hexdigest()


def neurons_kept(base, cut, layer):
    """Return which of the base's neurons the rows of a cut model are, by their values."""
    base_rows, cut_rows = matrices(base, layer)[0][-1], matrices(cut, layer)[0][-1]
    same = (cut_rows[:, None] == base_rows[None]).all(dim=2)
    assert (same.sum(dim=1) == 1).all()
    return same.nonzero()[:, 1]


@pytest.mark.parametrize("cut", CUTS)
def test_preview_counts_the_parameters_of_both_models(family, cut, pruned_of):
    pruned = pruned_of(family, cut)
    before, after = loaded(family).model, pruned.model
    parameters = preview(recipe_of(family, CUTS[cut])).to_dict()["parameters"]
    assert parameters == pruned.to_dict()["parameters"]
    for side, model in (("before", before), ("after", after)):
        assert parameters[side] == count(model)
        assert parameters[side] == sum(part[side] for part in parameters["components"].values())
    assert count(after) < count(before)


@pytest.mark.parametrize("cut", CUTS)
def test_cut_model_is_the_base_without_the_removed_neurons(family, cut, pruned_of):
    base, result = loaded(family).model, pruned_of(family, cut)
    pruned, masked = result.model, copy.deepcopy(base)
    refitted = {note.layer for note in result.report.notes[0] if note.damping}
    for layer in range(base.config.num_hidden_layers):
        kept = neurons_kept(base, pruned, layer)
        assert torch.equal(kept, kept.sort().values)
        masked_weight, pruned_weight = matrices(masked, layer)[1], matrices(pruned, layer)[1]
        assert torch.equal(masked_weight[:, kept], pruned_weight) != (layer in refitted)
        masked_weight.zero_()
        masked_weight[:, kept] = pruned_weight
    torch.testing.assert_close(pruned(IDS).logits, masked(IDS).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(base(IDS).logits, masked(IDS).logits, atol=1e-2)


@pytest.mark.parametrize("cut", ["l2", "repaired"])
def test_the_base_is_unchanged_and_shares_the_tensors_that_are_not_cut(family, cut):
    base = loaded(family)
    before = digest(base.model)
    pruned = prune(recipe_of(family, CUTS[cut]), base, share_memory=True).model
    assert digest(base.model) == before
    base_parameters = dict(base.model.named_parameters())
    cut_names = set()
    for name, parameter in pruned.named_parameters():
        if parameter.shape == base_parameters[name].shape:
            assert parameter.data_ptr() == base_parameters[name].data_ptr()
        else:
            cut_names.add(name.rsplit(".", 2)[1])
            assert (
                parameter.untyped_storage().data_ptr() != base_parameters[name].untyped_storage().data_ptr()
            )
    assert 2 <= len(cut_names) <= 3


@pytest.mark.parametrize("cut", ["peak_to_peak", "repaired", "width"])
def test_saved_model_reloads_with_the_same_logits(family, cut, pruned_of, tmp_path):
    pruned = pruned_of(family, cut).model
    pruned.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    logits = pruned(IDS).logits
    assert torch.isfinite(logits).all()
    assert torch.equal(reloaded.eval()(IDS).logits, logits)
    assert count(reloaded) == count(pruned)
    assert reloaded.config.to_dict() | {"_name_or_path": ""} == pruned.config.to_dict() | {
        "_name_or_path": ""
    }


def test_generating_with_a_cache_gives_the_same_text(family, pruned_of):
    pruned = pruned_of(family, "repaired").model
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    settings["attention_mask"] = torch.ones_like(IDS)
    cached = pruned.generate(IDS, use_cache=True, **settings)
    assert torch.equal(cached, pruned.generate(IDS, use_cache=False, **settings))


def test_a_fraction_of_any_multiple_removes_that_many_neurons_rounded_down(family):
    base = loaded(family)
    width = matrices(base.model, 0)[1].shape[1]
    for fraction in (0.2, 0.29, 0.5, 0.99):
        pruned = prune(recipe_of(family, {"fraction": fraction, "multiple_of": 1, "criterion": "l1"}), base)
        for layer in range(base.model.config.num_hidden_layers):
            assert matrices(pruned.model, layer)[1].shape[1] == width - int(fraction * width)


def test_a_second_cut_works_on_the_result_of_the_first(family):
    base = loaded(family)
    recipe = recipe_of(family, {"width": 24, "criterion": "l2"}, {"fraction": 0.5})
    pruned = prune(recipe, base)
    assert matrices(pruned.model, 0)[1].shape[1] == 12
    assert count(pruned.model) == preview(recipe).after.parameters
    first = prune(recipe_of(family, {"width": 24, "criterion": "l2"}), base).model
    for layer in range(first.config.num_hidden_layers):
        assert len(neurons_kept(first, pruned.model, layer)) == 12


def test_ranking_gate_and_up_apart_keeps_different_rows_of_each(family):
    base = loaded(family)
    recipe = recipe_of(family, {"fraction": 0.4, "criterion": "gate_up_unpaired"})
    if family not in GATED:
        with pytest.raises(RecipeError, match="has no gate"):
            prune(recipe, base)
        with pytest.raises(RecipeError, match="has no gate"):
            preview(recipe)
        return
    pruned = prune(recipe, base).model
    assert count(pruned) == preview(recipe).after.parameters
    for layer in range(base.model.config.num_hidden_layers):
        kept = []
        pairs = zip(matrices(base.model, layer)[0], matrices(pruned, layer)[0], strict=True)
        for base_rows, cut_rows in pairs:
            kept.append(base_rows.abs().sum(dim=1).topk(len(cut_rows)).indices.sort().values)
            assert torch.equal(cut_rows, base_rows[kept[-1]])
        assert not torch.equal(*kept)
        assert torch.equal(matrices(pruned, layer)[1], matrices(base.model, layer)[1][:, kept[0]])


def test_casting_changes_the_precision_and_nothing_else(family, pruned_of):
    pruned = pruned_of(family, "l2")
    halved = cast(pruned.model, torch.bfloat16)
    assert {parameter.dtype for parameter in halved.parameters()} == {torch.bfloat16}
    assert halved.config.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in pruned.model.parameters()} == {torch.float32}
    assert count(halved) == count(pruned.model)
    for halved_values, values in zip(halved.parameters(), pruned.model.parameters(), strict=True):
        assert torch.equal(halved_values, values.bfloat16())
