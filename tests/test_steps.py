"""Heads and layers: every family, alone and together, against models computed another way."""

import copy

import pytest
import torch
from models import FAMILIES, count, loaded
from transformers import AutoModelForCausalLM

import pruning
from pruning import Heads, Layers, Neurons, Recipe, RecipeError
from pruning.anatomy import LAYER, QUERY, anatomy_of, resize
from pruning.influence import block_influences
from pruning.pipeline import reshape
from pruning.shape import Shape
from pruning.surgery import oriented
from pruning.windows import Windows

FIXED_HEADS = {"gpt2", "opt", "gpt_neox"}
CUTTABLE_HEADS = [family for family in FAMILIES if family not in FIXED_HEADS]
TEXT = pruning.Calibration(tokens=1280, window=64)
IDS = torch.arange(3, 23)[None]

COMBINATIONS = {
    "last layer": [Layers(count=1, method="last")],
    "first layer": [Layers(layers=(0,))],
    "group": [Heads(groups=1)],
    "query heads": [Heads(queries=1, criterion="minitron")],
    "layer, neurons": [Layers(count=1, method="first"), Neurons(fraction=0.3)],
    "neurons, group": [Neurons(fraction=0.3), Heads(groups=1, repair=False)],
    "all three": [Neurons(fraction=0.3), Heads(queries=1), Layers(count=1, method="last")],
}


def recipe(steps):
    return Recipe(base="tiny", calibration=TEXT, steps=steps)


def has_heads(steps):
    return any(isinstance(step, Heads) for step in steps)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_matrix(family, name, tmp_path):
    steps, base = COMBINATIONS[name], loaded(family)
    if has_heads(steps) and family in FIXED_HEADS:
        with pytest.raises(RecipeError, match="cannot be cut: its config has no head size"):
            pruning.prune(recipe(steps), base)
        return
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    pruned = pruning.prune(recipe(steps), base)

    shape = reshape(recipe(steps), Shape.of(base.model.config))
    assert shape.parameters == count(pruned.model) == pruned.report.parameters_after
    assert all(torch.equal(before[key], value) for key, value in base.model.state_dict().items())

    logits = pruned.model(IDS).logits
    assert torch.isfinite(logits).all()
    pruned.model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, logits)

    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    cached = pruned.model.generate(IDS, use_cache=True, **settings)
    assert torch.equal(cached, pruned.model.generate(IDS, use_cache=False, **settings))


@pytest.mark.parametrize("family", CUTTABLE_HEADS)
@pytest.mark.parametrize("step", [Heads(groups=1, repair=False), Heads(queries=1, repair=False)], ids=str)
def test_cut_heads_are_heads_that_say_nothing(family, step):
    """The cut model is the base with the removed heads' columns of the output projection at zero."""
    base = loaded(family)
    anatomy = anatomy_of(base.model.config)
    kept = {}
    original = Heads.rank

    def remember(self, subject):
        kept.update(original(self, subject))
        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Heads, "rank", remember)
        pruned = pruning.prune(recipe([step]), base)
    silenced = copy.deepcopy(base.model)
    for layer in range(anatomy.layers):
        spec = anatomy.tensor(f"{anatomy.write_module(layer, QUERY)}.weight")
        columns = oriented(silenced.get_parameter(spec.name).data, spec)
        heads = columns.view(columns.shape[0], anatomy.units[QUERY], -1)
        gone = [head for head in range(anatomy.units[QUERY]) if head not in kept[QUERY][layer].tolist()]
        assert gone
        heads[:, gone] = 0
    torch.testing.assert_close(pruned.model(IDS).logits, silenced(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_removed_layer_is_a_layer_passed_by(family):
    base = loaded(family)
    anatomy = anatomy_of(base.model.config)
    pruned = pruning.prune(recipe([Layers(layers=(0,))]), base)
    passed = copy.deepcopy(base.model)
    first = passed.get_submodule(anatomy.layer_module(0))

    def pass_by(module, inputs, named, output):
        states = inputs[0] if inputs else named["hidden_states"]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    first.register_forward_hook(pass_by, with_kwargs=True)
    torch.testing.assert_close(
        pruned.model(IDS).logits, passed(IDS, use_cache=False).logits, rtol=1e-4, atol=1e-4
    )
    shared = {p.data_ptr() for p in base.model.parameters()}
    assert all(p.data_ptr() in shared for p in pruned.model.parameters())


def test_types_of_layers_stay_with_their_layers():
    config = copy.deepcopy(loaded("gemma3_text").model.config)
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    assert resize(config, {LAYER: 2}, [1, 2]).layer_types == ["sliding_attention", "full_attention"]
    pruned = pruning.prune(recipe([Layers(layers=(0,))]), loaded("gemma3_text"))
    assert len(pruned.model.config.layer_types) == pruned.model.config.num_hidden_layers == 2


@pytest.mark.parametrize("method", ["influence", "angular", "perplexity", "greedy"])
def test_methods_that_choose_protect_the_ends(method):
    base = loaded("llama", num_hidden_layers=5)
    marked = copy.deepcopy(base.model)
    for layer, module in enumerate(marked.model.layers):
        module.input_layernorm.weight.data.fill_(layer + 1.0)
    base = pruning.LoadedModel(marked, base.tokenizer, base.source, base.storage_dtype)
    pruned = pruning.prune(recipe([Layers(count=2, method=method)]), base)
    left = [round(float(layer.input_layernorm.weight[0])) - 1 for layer in pruned.model.model.layers]
    assert left[0] == 0
    assert left[-1] == 4
    assert left == sorted(left)
    assert len(left) == 3


def test_block_influence_of_a_layer_that_does_nothing_is_zero():
    base = loaded("llama")
    model = copy.deepcopy(base.model)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        for parameter in model.model.layers[1].get_submodule(name).parameters():
            parameter.data.zero_()
    windows = Windows((torch.arange(3, 40), torch.arange(5, 20)), ())
    scores = block_influences(model, anatomy_of(model.config), windows)
    assert scores[1] < 1e-6
    assert (scores[[0, 2]] > 1e-3).all()


def test_llama_1b_without_its_last_three_layers(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,'
        ' "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,'
        ' "tie_word_embeddings": true}'
    )
    steps = [Layers(count=3, method="last")]
    assert pruning.preview(Recipe(base=str(tmp_path), steps=steps)).after.parameters == 1_053_349_888


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([Heads(groups=2)], "There are 2 key/value groups; 2 cannot be removed"),
        ([Heads(queries=2)], "There are 2 query heads of a group; 2 cannot be removed"),
        ([Layers(layers=(7,))], "There is no layer 7"),
        ([Layers(count=3, method="last")], "cannot be removed"),
        ([Layers(count=2)], "2 must stay"),
    ],
)
def test_impossible_cuts_are_refused_before_any_work(steps, says):
    with pytest.raises(RecipeError, match=says):
        reshape(recipe(steps), Shape.of(loaded("llama").model.config))


def test_heads_that_would_not_divide_the_hidden_size_are_refused():
    config = loaded("llama", num_attention_heads=8, num_key_value_heads=4).model.config
    with pytest.raises(RecipeError, match="does not divide the hidden size 32"):
        Heads(groups=1).reshape(Shape.of(config))


@pytest.mark.real
def test_one_group_and_three_layers_of_smollm2(smollm2):
    """REFERENCE: one of three groups with repair 31.3 / 25.5; three of thirty layers 36.7 / 25.5."""
    text = pruning.texts.passage("encyclopedia", "heldout")

    def perplexity(model):
        return pruning.perplexity(model, smollm2.tokenizer, text, 1024).value

    dense = perplexity(smollm2.model)
    calibration = pruning.Calibration(text="encyclopedia", tokens=2048)
    for step, limit in ((Heads(groups=1), 1.6), (Layers(count=3), 1.8)):
        cut = pruning.prune(Recipe(base="smollm2-135m", calibration=calibration, steps=[step]), smollm2)
        assert perplexity(cut.model) < limit * dense
