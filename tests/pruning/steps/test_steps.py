"""Every step on every family, alone and together, against models computed another way."""

import copy
import itertools
import json

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import pruning
from pruning import Channels, Heads, Layers, Neurons, Recipe, RecipeError, Weights
from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.families import LAYER, NEURON, QUERY
from pruning.architectures.matrices import as_channels_first
from pruning.architectures.resize import resize
from pruning.architectures.shape import Shape
from pruning.calibration.block_influence import block_influences
from pruning.calibration.calibrate import windows_of
from pruning.calibration.hooks import hooks
from pruning.calibration.residual_streams import ResidualStreams
from pruning.calibration.statistics import PRIOR_TOKENS, Statistics
from pruning.steps import STEPS
from pruning.steps.base import StepContext
from pruning.text.passages import passage
from pruning.text.tokens import Windows
from tests.helpers.models import FAMILIES, count, loaded
from tests.pruning.steps.samples import SAMPLES, combinations

HEAD_SIZE_DERIVED = {"gpt2", "opt", "gpt_neox"}
"""Families whose heads and channels cannot be cut."""

CUTTABLE_HEADS = [family for family in FAMILIES if family not in HEAD_SIZE_DERIVED]
TEXT = pruning.Calibration(tokens=640, window=64)
IDS = torch.arange(3, 23)[None]

COMBINATIONS = combinations()
"""What the matrix does, made from `SAMPLES`."""

FAMILIES_OF_A_COMBINATION = 4
"""Families on which several steps together are tried, in turn; each step alone is tried on all of them."""


def matrix():
    """Yield a family and a combination for each test: over all combinations, each family has its turn as often."""
    families, turn = [*FAMILIES], itertools.cycle(FAMILIES)
    for name, steps in COMBINATIONS.items():
        for family in families if len(steps) == 1 else itertools.islice(turn, FAMILIES_OF_A_COMBINATION):
            yield pytest.param(family, name, id=f"{name}-{family}")


def recipe(steps):
    return Recipe(base="tiny", calibration=TEXT, steps=steps)


def impossible(steps, family):
    """What the error says where a family, or its small model, cannot be cut like that; None where it can."""
    if family in HEAD_SIZE_DERIVED and any(isinstance(step, Heads | Channels) for step in steps):
        return "cannot be cut: its config has no head size"
    if family == "mistral" and any(isinstance(step, Weights) and step.pattern == "4:8" for step in steps):
        return "53 inputs, not a multiple of 8"
    return None


def test_every_step_has_a_sample():
    """A new step is tested as soon as it has a row in `SAMPLES`."""
    assert list(SAMPLES) == list(STEPS)
    for name, sample in SAMPLES.items():
        assert sample.alone
        assert all(type(step) is STEPS[name] for step in (*sample.alone, *sample.together))


def test_the_matrix_holds_every_pair_of_steps_in_pairs_and_in_triples():
    names = [name for name in STEPS if SAMPLES[name].in_matrix]
    last = {name for name in names if STEPS[name].must_be_last}
    pairs = {frozenset(pair) for pair in itertools.combinations(names, 2) if not last.issuperset(pair)}
    assert len(pairs) >= 15
    together = [[step.step for step in steps] for steps in COMBINATIONS.values()]
    assert {names[0] for names in together if len(names) == 1} == set(names)
    for size in (2, 3):
        groups = [names for names in together if len(names) == size]
        assert {frozenset(pair) for names in groups for pair in itertools.combinations(names, 2)} == pairs
        assert all(not last.intersection(names[:-1]) for names in groups)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_survives_yaml_json_and_python(name):
    sample = SAMPLES[name]
    for step in (*sample.alone, *sample.together):
        made = Recipe(base="tiny", steps=[step])
        assert Recipe.parse(made.to_yaml()) == Recipe.parse(json.dumps(made.to_dict())) == made
        assert eval(step.to_python()) == step
        assert step.canonical()["step"] == name


@pytest.mark.parametrize(("family", "name"), matrix())
def test_matrix(family, name, tmp_path):
    steps, base = COMBINATIONS[name], loaded(family)
    if says := impossible(steps, family):
        with pytest.raises(RecipeError, match=says):
            pruning.prune(recipe(steps), base)
        return
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    pruned = pruning.prune(recipe(steps), base)
    assert all(torch.equal(before[key], value) for key, value in base.model.state_dict().items())
    check(pruned, steps, base, tmp_path)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached = pruned.model.generate(IDS, use_cache=True, **settings)
    assert torch.equal(cached, pruned.model.generate(IDS, use_cache=False, **settings))


def check(pruned, steps, base, folder):
    """The model has the shape of the preview, says something finite, and says it again once reloaded."""
    shape = recipe(steps).check(Shape.of(base.model.config))
    assert shape.parameters == count(pruned.model) == pruned.report.after.parameters
    logits = pruned.model(IDS).logits
    assert torch.isfinite(logits).all()
    pruned.model.save_pretrained(folder)
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(reloaded(IDS).logits, logits)
    if any(isinstance(step, Weights) for step in steps):
        zeros = sum(int((parameter == 0).sum()) for parameter in reloaded.parameters())
        assert zeros == sum(note.zeros for note in pruned.report.notes[-1])


RANDOM = {name: sample.random for name, sample in SAMPLES.items() if sample.random is not None}
"""Any sensible setting of each step, for a small model of three layers."""


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(family=st.sampled_from(["llama", "gemma3_text"]), data=st.data())
def test_any_ratio_in_any_order(family, data, tmp_path):
    names = data.draw(st.permutations(list(RANDOM)))[: data.draw(st.integers(1, len(RANDOM)))]
    steps = [
        data.draw(RANDOM[name]) for name in sorted(names, key=lambda name: bool(STEPS[name].must_be_last))
    ]
    base = loaded(family)
    try:
        recipe(steps).check(Shape.of(base.model.config))
    except RecipeError as error:
        # The smallest models cannot lose everything: nothing was done before that was said.
        note(str(error))
        with pytest.raises(RecipeError):
            pruning.prune(recipe(steps), base)
        return
    check(pruning.prune(recipe(steps), base), steps, base, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_batching_does_not_change_a_score(family):
    """The statistics that rank units are those of all windows read at once, in whatever order."""
    base = loaded(family)
    anatomy = anatomy_of(base.model.config)
    kinds = (NEURON,) if family in HEAD_SIZE_DERIVED else (NEURON, QUERY)
    sites = [anatomy.output_projection(layer, kind) for layer in range(anatomy.layers) for kind in kinds]
    ids = torch.randint(3, 300, (6, 32), generator=torch.Generator().manual_seed(1))
    one_by_one = Statistics(base.model, sites, tuple(ids[:4]), tuple(ids[4:]))
    turned = Statistics(base.model, sites, tuple(ids[:4].flip(0)), tuple(ids[4:].flip(0)))
    seen = {}
    handles = [
        base.model.get_submodule(site).register_forward_pre_hook(
            lambda module, inputs, site=site: seen.update({site: inputs[0].view(6, 32, -1)})
        )
        for site in sites
    ]
    base.model.base_model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    close = {"rtol": 1e-4, "atol": 1e-5}
    for site in sites:
        rows = seen[site][:4].flatten(0, 1)
        sequence = seen[site].abs().mean(dim=1).square().sum(dim=0).sqrt()
        for statistics in (one_by_one, turned):
            moments = statistics.moments[site]
            torch.testing.assert_close(moments.square, seen[site].square().mean(dim=(0, 1)), **close)
            torch.testing.assert_close(moments.sequence, sequence, **close)
            torch.testing.assert_close(statistics.gram(site).gram, rows.T @ rows, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", CUTTABLE_HEADS)
@pytest.mark.parametrize(
    "step",
    [
        Heads(groups=1, repair=False),
        Heads(queries=1, repair=False),
        Heads(groups=1, queries=1, repair=False),
    ],
    ids=str,
)
def test_cut_heads_are_heads_that_say_nothing(family, step):
    """The cut model is the base with the removed heads' columns of the output projection at zero."""
    base = loaded(family)
    anatomy = anatomy_of(base.model.config)
    kept = {}
    original = Heads.rank

    def remember(self, context):
        kept.update(original(self, context))
        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Heads, "rank", remember)
        pruned = pruning.prune(recipe([step]), base)
    silenced = copy.deepcopy(base.model)
    for layer in range(anatomy.layers):
        spec = anatomy.tensor(f"{anatomy.output_projection(layer, QUERY)}.weight")
        columns = as_channels_first(silenced.get_parameter(spec.name).data, spec)
        heads = columns.view(columns.shape[0], anatomy.units[QUERY], -1)
        gone = [head for head in range(anatomy.units[QUERY]) if head not in kept[QUERY][layer].tolist()]
        assert len(gone) == (3 if step.groups and step.queries else 2)
        heads[:, gone] = 0
    torch.testing.assert_close(pruned.model(IDS).logits, silenced(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_removed_layer_is_a_layer_passed_by(family):
    base = loaded(family)
    anatomy = anatomy_of(base.model.config)
    pruned = pruning.prune(recipe([Layers(layers=(0,))]), base, share_memory=True)
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


@pytest.mark.parametrize("method", ["influence", "magnitude", "angular", "perplexity", "greedy"])
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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layer_before_a_gap_is_refitted_by_ridge_regression(family):
    """The gradient of the objective is zero at the new weights, and nothing else has changed."""
    base = loaded(family)
    anatomy = anatomy_of(base.model.config)
    # Where there are layers enough, the one that is refitted moves down.
    before = 1 if anatomy.layers > 2 else 0
    site, after = anatomy.output_projection(before), list(range(before + 1, anatomy.layers))
    gone = [*range(before), *after]
    # What it learns from is also what it is judged by, so that it is always kept.
    ids = torch.stack([window for window in windows_of(base, TEXT).fitting if len(window) == TEXT.window])
    windows = Windows(tuple(ids), tuple(ids))
    context = StepContext(base.model, base.tokenizer, Shape.of(base.model.config), base, windows=windows)
    outcome = Layers(layers=gone, repair=True).apply(context)
    shared = {p.data_ptr() for p in base.model.parameters()}
    new = {name: p for name, p in outcome.model.named_parameters() if p.data_ptr() not in shared}
    if anatomy.family.post_norms:  # See `repair/test_post_norm_gap.py`.
        layer = anatomy.layer_module(0)
        assert {name.removeprefix(f"{layer}.") for name in new} == {
            "mlp.down_proj.weight",
            "post_feedforward_layernorm.weight",
        }
        return
    ((name, weight),) = new.items()
    assert name == f"{anatomy.output_projection(0)}.weight"
    (note,) = outcome.notes
    assert note.layers == tuple(after)
    assert note.lost_after < note.lost_before

    rows, start, end = [], [], []
    with hooks(base.model, {site: lambda inputs, _: rows.append(inputs[0].flatten(0, -2))}):
        for states in ResidualStreams(base.model, anatomy, Windows(tuple(ids), ())):
            start.append(states[before + 1])
            end.append(states[-1])
    rows, start, end = torch.cat(rows), torch.cat(start), torch.cat(end)
    spec = anatomy.tensor(f"{site}.weight")
    change = as_channels_first(weight - base.model.get_parameter(spec.name), spec).T.clone()
    change.requires_grad_()
    energy = torch.maximum(start.square().sum(dim=1), end.square().sum(dim=1))
    diagonal = (rows.square() / energy[:, None]).sum(dim=0)
    ridge = PRIOR_TOKENS / ids.numel() * diagonal[diagonal > 0].median()
    missing = ((rows @ change - (end - start)).square().sum(dim=1) / energy).sum()
    (missing + ridge * change.square().sum()).backward()
    scale = (2 * rows.T @ ((end - start) / energy[:, None])).abs().max()
    assert change.grad.abs().max() < 1e-3 * scale


def test_block_influence_of_a_layer_that_does_nothing_is_zero():
    base = loaded("llama")
    model = copy.deepcopy(base.model)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        for parameter in model.model.layers[1].get_submodule(name).parameters():
            parameter.data.zero_()
    windows = Windows((torch.arange(3, 40), torch.arange(5, 20)), ())
    scores = block_influences(ResidualStreams(model, anatomy_of(model.config), windows))
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
        ([Heads(num_key_value_heads=2)], "removes none of the 2 key/value heads of a layer: 2 would be kept"),
        ([Heads(num_key_value_heads=5, queries=1)], "removes none of the 2 key/value heads"),
        ([Layers(layers=(7,))], "There is no layer 7"),
        ([Layers(count=3, method="last")], "cannot be removed"),
        ([Layers(count=2)], "at least 2 must remain"),
    ],
)
def test_impossible_cuts_are_refused_before_any_work(steps, says):
    with pytest.raises(RecipeError, match=says):
        recipe(steps).check(Shape.of(loaded("llama").model.config))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_key_value_heads_to_keep_are_groups_to_remove(family):
    base = loaded(family)
    by_groups = pruning.prune(recipe([Heads(groups=1, queries=1)]), base).model
    by_heads = pruning.prune(recipe([Heads(num_key_value_heads=1, queries=1)]), base).model
    assert by_heads.config.num_key_value_heads == 1
    for name, value in by_groups.state_dict().items():
        assert torch.equal(value, by_heads.state_dict()[name])
    assert Heads(num_key_value_heads=1, queries=1).describe() == (
        "all but 1 of the key/value groups of every layer and 1 query head of every group"
    )


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"groups": 1, "num_key_value_heads": 1}, "either groups or num_key_value_heads"),
        ({}, "Give groups, num_key_value_heads or queries"),
        ({"num_key_value_heads": 0}, "num_key_value_heads: enter 1 or more, not '0'"),
        ({"num_key_value_heads": [1, 2]}, "Give one number"),
        ({"groups": [1, 2]}, "Give one number"),
    ],
)
def test_heads_are_asked_for_in_one_way(values, says):
    with pytest.raises(RecipeError, match=says):
        Heads(**values)


def test_layers_report_which_remain():
    context = StepContext(
        loaded("llama").model,
        loaded("llama").tokenizer,
        Shape.of(loaded("llama").model.config),
        loaded("llama"),
    )
    assert Layers(layers=(1,)).apply(context).layers == (0, 2)
    assert Neurons(fraction=0.3, criterion="l2").apply(context).layers is None


def test_heads_that_would_not_divide_the_hidden_size_are_refused():
    config = loaded("llama", num_attention_heads=8, num_key_value_heads=4).model.config
    with pytest.raises(RecipeError, match="A model with 6 query heads would not load: its hidden size is 32"):
        Heads(groups=1).reshape(Shape.of(config))


@pytest.mark.real
def test_one_group_and_three_layers_of_smollm2(smollm2):
    """REFERENCE: one of three groups with repair 31.3 / 25.5; three of thirty layers 36.7 / 25.5."""
    text = passage("encyclopedia", "heldout")

    def perplexity(model):
        return pruning.perplexity(model, smollm2.tokenizer, text, tokens=512).value

    dense = perplexity(smollm2.model)
    calibration = pruning.Calibration(text="encyclopedia", tokens=1024)
    for step, limit in ((Heads(groups=1), 1.6), (Layers(count=3), 1.8)):
        cut = pruning.prune(Recipe(base="smollm2-135m", calibration=calibration, steps=[step]), smollm2)
        assert perplexity(cut.model) < limit * dense
