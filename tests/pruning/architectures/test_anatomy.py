"""What is known of each family fits the models that transformers builds."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, PreTrainedConfig

import pruning
from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.config import build_on_meta, config_from_dict, resize
from pruning.architectures.families import COMPONENTS, KEY_VALUE, NEURON, QUERY, family_of
from pruning.architectures.families import FAMILIES as KNOWN
from pruning.surgery import neuron_matrices
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


def test_every_family_is_tested():
    assert set(KNOWN) == set(FAMILIES)
    assert [name for name, family in KNOWN.items() if family.gated] == GATED


@pytest.mark.parametrize(("family", "overrides"), VARIANTS)
def test_every_tensor_is_known_and_tiled(family, overrides):
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
def test_neuron_matrices_are_the_ones_written_down_by_hand(family):
    model = loaded(family).model
    anatomy = anatomy_of(model.config)
    for layer in range(anatomy.layers):
        assert anatomy.output_projection(layer) == output_projection(model, layer)
        reads, write = neuron_matrices(model, anatomy, layer)
        expected, written = matrices(model, layer)
        assert torch.equal(write, written)
        assert len(reads) == len(expected) == (2 if family in GATED else 1)
        assert all(torch.equal(read, wanted) for read, wanted in zip(reads, expected, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_projections_know_their_inputs(family):
    """GPT-2 keeps its projections as inputs × outputs, everyone else the other way round."""
    model = loaded(family).model
    anatomy = anatomy_of(model.config)
    found = {"attention": 0, "mlp": 0}
    for spec in anatomy.tensors:
        if spec.component in found and len(spec.shape) == 2:
            module = model.get_submodule(spec.module)
            inputs = module.nx if family == "gpt2" else module.in_features
            assert anatomy.input_axis(spec) == (0 if family == "gpt2" else 1)
            assert spec.shape[anatomy.input_axis(spec)] == inputs
            found[spec.component] += 1
    assert all(count >= 2 * anatomy.layers for count in found.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_and_what_reads_behind_them(family):
    model = loaded(family).model
    anatomy = anatomy_of(model.config)
    writes = {anatomy.output_projection(0, kind) for kind in (NEURON, QUERY)}
    for part in ("attention", "mlp"):
        modules = {spec.module for spec in anatomy.input_projections(0, part)}
        assert modules
        assert not modules & writes
    everything = {
        spec.module for part in ("attention", "mlp") for spec in anatomy.input_projections(0, part)
    } | writes
    assert everything == {
        spec.module
        for spec in anatomy.tensors
        if spec.layer == 0 and spec.component in ("attention", "mlp") and len(spec.shape) == 2
    }
    kinds = {type(model.get_submodule(spec.module)).__name__ for spec in anatomy.norms}
    assert len(kinds) == 1
    assert kinds.pop().endswith("Norm")
    closing = [spec.module for spec in anatomy.norms if anatomy.is_post_norm(spec)]
    assert len(closing) == (2 * anatomy.layers if family in ("gemma2", "gemma3_text") else 0)


@pytest.mark.parametrize("family", GATED)
def test_norms_multiply_by_their_weight_and_their_offset(family):
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
def test_segments_tile_any_size(family, heads, width):
    keys = KNOWN[family].sizes
    anatomy = anatomy_of(
        config(family, **{keys[KEY_VALUE]: heads[1]} | {keys[QUERY]: heads[0], keys[NEURON]: width})
    )
    assert anatomy.units[NEURON] == width
    for spec in anatomy.tensors:
        for label, length in zip(spec.labels, spec.shape, strict=True):
            assert sum(units * size for _, units, size in anatomy.segments(label, length)) == length


def test_unknown_family_lists_the_known_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 32}))
    recipe = pruning.Recipe(base=str(tmp_path), steps=[pruning.Neurons(fraction=0.2)])
    for raising in (
        lambda: family_of("bert"),
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
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 0),
        ("hidden_size", -32),
        ("hidden_size", "32"),
        ("intermediate_size", 10**12),
        ("intermediate_size", 48.5),
        ("vocab_size", True),
        ("num_attention_heads", 5),
        ("hidden_act", "no such function"),
        ("rope_parameters", {"rope_type": "no such type"}),
    ],
)
def test_senseless_config_is_refused(key, value):
    values = json.loads((folder_of("llama") / "config.json").read_text()) | {key: value}
    with pytest.raises(pruning.ModelError):
        build_on_meta(config_from_dict(values))


@pytest.mark.parametrize("family", FAMILIES)
def test_resize_writes_the_keys_that_the_family_reads(family):
    before = config(family)
    after = resize(before, {NEURON: 17})
    assert before.to_dict() == config(family).to_dict()
    assert matrices(build_on_meta(after), 1)[1].shape[1] == 17
    assert count(build_on_meta(after)) < count(build_on_meta(before))


def test_config_needs_layers():
    with pytest.raises(pruning.ModelError):
        anatomy_of(LlamaConfig(num_hidden_layers=0))
