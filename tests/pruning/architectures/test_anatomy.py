"""The table of families fits the models that transformers builds."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, PreTrainedConfig

import pruning
from pruning.architectures import anatomy as anatomies
from pruning.architectures.anatomy import anatomy_of, anatomy_of_model
from pruning.architectures.config import build_on_meta, config_from_dict
from pruning.architectures.families import COMPONENTS, KEY_VALUE, NEURON, QUERY, family_of
from pruning.architectures.families import FAMILIES as KNOWN
from pruning.architectures.matrices import neuron_matrices
from pruning.architectures.resize import resize
from tests.helpers.models import (
    FAMILIES,
    GATED,
    config,
    count,
    folder_of,
    loaded,
    matrices,
    output_projection,
    tiny,
)

VARIANTS = [
    *((family, {}) for family in FAMILIES),
    *((family, {"tie_word_embeddings": True}) for family in FAMILIES),
    *((family, {"tie_word_embeddings": False}) for family in FAMILIES),
    ("gpt2", {"n_inner": None}),
    ("opt", {"word_embed_proj_dim": 16}),
    ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    ("opt", {"do_layer_norm_before": False}),
    ("gpt_neox", {"attention_bias": False, "use_parallel_residual": False}),
    ("llama", {"attention_bias": False, "mlp_bias": False, "num_key_value_heads": 4}),
    ("qwen2", {"num_key_value_heads": 1}),
    ("phi3", {"num_key_value_heads": 4}),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_anatomy_of_a_model_in_memory_is_that_of_its_config_and_nothing_is_built(family, monkeypatch):
    pruned = pruning.prune(loaded(family), steps=pruning.Layers(count=1, method="last", repair=False)).model
    for model in (loaded(family).model, pruned):
        expected = anatomies.anatomy_with(model.config, family_of(family))
        with monkeypatch.context() as patch:
            patch.setattr(anatomies, "_ANATOMIES", {})
            patch.setattr(anatomies, "build_on_meta", lambda config: pytest.fail("a model was built"))
            found = anatomy_of_model(model)
            assert anatomy_of(model.config) is found
        assert (found.tensors, found.buffers, found.units) == (
            expected.tensors,
            expected.buffers,
            expected.units,
        )
        assert found.config.to_dict() == model.config.to_dict()
        assert found.config is not model.config


def test_every_family_is_tested():
    assert set(KNOWN) == set(FAMILIES)
    assert [name for name, family in KNOWN.items() if family.gated] == GATED


@pytest.mark.parametrize(("family", "overrides"), VARIANTS)
def test_every_tensor_is_known_and_its_axes_are_segmented_completely(family, overrides):
    anatomy = anatomy_of(config(family, **overrides))
    model = tiny(family, **overrides)
    assert {spec.name: spec.shape for spec in anatomy.tensors} == {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters()
    }
    assert {spec.component for spec in anatomy.tensors} <= set(COMPONENTS)
    assert anatomy.layers == model.config.num_hidden_layers
    assert anatomy.units[NEURON] == matrices(model, 0)[1].shape[1]
    for spec in anatomy.tensors:
        for label, length in zip(spec.labels, spec.shape, strict=True):
            runs = list(anatomy.segments(label, length))
            assert sum(units * width for _, units, width in runs) == length
            assert all(units > 0 and width > 0 for _, units, width in runs)


@pytest.mark.parametrize("family", FAMILIES)
def test_neuron_matrices_are_those_written_down_by_hand(family):
    model = loaded(family).model
    anatomy = anatomy_of(model.config)
    for layer in range(anatomy.layers):
        assert anatomy.output_projection(layer) == output_projection(model, layer)
        input_weights, output_weight = neuron_matrices(model, anatomy, layer)
        expected_inputs, expected_output = matrices(model, layer)
        assert torch.equal(output_weight, expected_output)
        assert len(input_weights) == (2 if family in GATED else 1)
        pairs = zip(input_weights, expected_inputs, strict=True)
        assert all(torch.equal(weight, expected) for weight, expected in pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_input_axis_of_a_projection_is_that_of_its_module(family):
    """GPT-2 keeps its projections as inputs × outputs, all others the other way round."""
    model = loaded(family).model
    anatomy = anatomy_of(model.config)
    projections = {"attention": 0, "mlp": 0}
    for spec in anatomy.tensors:
        if spec.component in projections and len(spec.shape) == 2:
            module = model.get_submodule(spec.module)
            inputs = module.nx if family == "gpt2" else module.in_features
            assert anatomy.input_axis(spec) == (0 if family == "gpt2" else 1)
            assert spec.shape[anatomy.input_axis(spec)] == inputs
            projections[spec.component] += 1
    assert all(number >= 2 * anatomy.layers for number in projections.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_input_and_output_projections_are_all_projections_of_a_layer(family):
    model = loaded(family).model
    anatomy = anatomy_of(model.config)
    components = ("attention", "mlp")
    outputs = {anatomy.output_projection(0, kind) for kind in (NEURON, QUERY)}
    inputs = [{spec.module for spec in anatomy.input_projections(0, part)} for part in components]
    assert all(len(modules) >= 1 and not modules & outputs for modules in inputs)
    assert set.union(outputs, *inputs) == {
        spec.module
        for spec in anatomy.tensors
        if spec.layer == 0 and spec.component in components and len(spec.shape) == 2
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_the_norm_modules_and_only_gemma_has_post_norms(family):
    model = loaded(family).model
    anatomy = anatomy_of(model.config)
    kinds = {type(model.get_submodule(spec.module)).__name__ for spec in anatomy.norms}
    assert len(kinds) == 1
    assert kinds.pop().endswith("Norm")
    post_norms = [spec.module for spec in anatomy.norms if anatomy.is_post_norm(spec)]
    assert len(post_norms) == (2 * anatomy.layers if family in ("gemma2", "gemma3_text") else 0)


@pytest.mark.parametrize("family", GATED)
def test_norms_multiply_by_their_weight_plus_the_offset(family):
    model = loaded(family).model
    anatomy = anatomy_of(model.config)
    states = torch.randn(5, 32)
    unit = states / states.square().mean(dim=1, keepdim=True).add(model.config.rms_norm_eps).sqrt()
    for spec in anatomy.norms:
        factor = model.get_parameter(spec.name) + anatomy.family.norm_offset
        torch.testing.assert_close(model.get_submodule(spec.module)(states), unit * factor)


@settings(max_examples=50, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 1), (4, 2), (4, 4), (8, 4)]),
    width=st.integers(1, 99),
)
def test_segments_cover_axes_of_any_size(family, heads, width):
    keys = KNOWN[family].sizes
    anatomy = anatomy_of(
        config(family, **{keys[KEY_VALUE]: heads[1]} | {keys[QUERY]: heads[0], keys[NEURON]: width})
    )
    assert anatomy.units[NEURON] == width
    for spec in anatomy.tensors:
        for label, length in zip(spec.labels, spec.shape, strict=True):
            assert sum(units * size for _, units, size in anatomy.segments(label, length)) == length


def test_unknown_family_lists_the_known_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "hidden_size": 32}))
    recipe = pruning.Recipe(base=str(tmp_path), steps=[pruning.Neurons(fraction=0.2)])
    for raising in (
        lambda: family_of("t5"),
        lambda: family_of(None),
        lambda: anatomy_of(PreTrainedConfig()),
        lambda: pruning.preview(recipe),
        lambda: pruning.load(str(tmp_path)),
    ):
        with pytest.raises(pruning.ModelError, match="cannot be pruned here") as error:
            raising()
        assert all(family in str(error.value) for family in FAMILIES)


def test_unknown_tensor_of_a_known_family_is_refused():
    with pytest.raises(pruning.ModelError, match=r"model\.layers\.0\.mlp\.router\.weight"):
        family_of("llama").component("model.layers.0.mlp.router.weight")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("num_hidden_layers", 10**9, "whole number from 1 to 1,000"),
        ("num_hidden_layers", 0, "whole number from 1 to 1,000"),
        ("hidden_size", -32, "whole number from 1 to 1,000,000"),
        ("hidden_size", "32", "whole number from 1 to 1,000,000"),
        ("intermediate_size", 10**12, "whole number from 1 to 1,000,000"),
        ("intermediate_size", 48.5, "whole number from 1 to 1,000,000"),
        ("vocab_size", True, "whole number from 1 to 1,000,000"),
        ("num_attention_heads", 5, "no valid Llama model"),
        ("hidden_act", "no such function", "cannot be built: 'no such function'"),
        ("rope_parameters", {"rope_type": "no such type"}, "no such type"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(key, value, reason):
    values = json.loads((folder_of("llama") / "config.json").read_text()) | {key: value}
    with pytest.raises(pruning.ModelError, match=reason):
        build_on_meta(config_from_dict(values))


@pytest.mark.parametrize("family", FAMILIES)
def test_resize_writes_the_keys_that_the_family_reads(family):
    before = config(family)
    after = resize(before, {NEURON: 17})
    assert before.to_dict() == config(family).to_dict()
    assert matrices(build_on_meta(after), 1)[1].shape[1] == 17
    assert count(build_on_meta(after)) < count(build_on_meta(before))


def test_a_config_without_layers_is_refused():
    with pytest.raises(pruning.ModelError, match="num_hidden_layers to '0'; a whole number from 1"):
        anatomy_of(LlamaConfig(num_hidden_layers=0))
