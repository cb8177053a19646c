"""What is derived for families of the table is what the table says; other types come out right without a line."""

import json

import pytest
import torch
from transformers import AutoConfig

import pruning
from pruning.architectures import lookup
from pruning.architectures.anatomy import anatomy_of, anatomy_with
from pruning.architectures.config import build_on_meta
from pruning.architectures.derive import derive
from pruning.architectures.families import EXPERT, LAYER, NEURON
from pruning.architectures.families import FAMILIES as TABLE
from pruning.architectures.probe import default_config, probe_config
from pruning.architectures.resize import resize
from pruning.architectures.shape import Shape
from pruning.architectures.tiny_model import random_model
from pruning.repair.reconstruction import reconstruct
from pruning.surgery import cut
from pruning.text.tokens import Windows
from tests.helpers.models import FAMILIES, config, save_type, tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_derived_is_what_the_table_says(family):
    base = config(family)
    derived, written = derive(base), TABLE[family]
    names = {spec.name for spec in anatomy_with(base, written).tensors}
    for name in names:
        ours, theirs = derived.component(name), written.component(name)
        assert ours[:2] == theirs[:2], name
        if not {"query head", "key/value head"} & set(written.unprunable):
            assert ours[2] == theirs[2], name
    assert derived.layers == written.layers
    assert derived.output_projections == dict(written.output_projections)
    assert derived.norm_offset == written.norm_offset
    assert derived.post_norms == written.post_norms
    assert {kind: derived.sizes[kind] for kind in (NEURON, LAYER)} == {
        kind: written.sizes[kind] for kind in (NEURON, LAYER)
    }


@pytest.mark.parametrize(
    "name", ["smollm3", "qwen3_5_text", "olmo2", "mixtral", "gemma4_text", "bart", "lfm2"]
)
def test_a_real_config_has_the_anatomy_of_its_model(name):
    """The labels come from a small model, and fit every tensor of the large one."""
    base = default_config(name)
    anatomy = anatomy_of(base)
    model = build_on_meta(base)
    assert {spec.name: spec.shape for spec in anatomy.tensors} == {
        key: tuple(values.shape) for key, values in model.named_parameters()
    }
    for spec in anatomy.tensors:
        for label, length in zip(spec.labels, spec.shape, strict=True):
            assert sum(units * width for _, units, width in anatomy.segments(label, length)) == length
    assert Shape(anatomy).parameters == sum(values.numel() for values in model.parameters())


def test_a_family_is_derived_once_for_a_config_and_the_model_that_is_built_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lookup.derive, "_DERIVED", {})
    config = probe_config(default_config("glm4"))
    lookup._derived.cache_clear()
    family = lookup.family_for(config)
    model = random_model(config)
    model.save_pretrained(tmp_path)
    assert lookup.family_for(model.config) is family
    assert lookup.family_for(AutoConfig.from_pretrained(tmp_path)) is family
    assert lookup._derived.cache_info().misses == 1


def test_saved_buffers_follow_their_layer():
    """A mixture's corrections of its router's choice belong to a layer, and move with it."""
    small = probe_config(default_config("deepseek_v3"))
    model, anatomy = random_model(small), anatomy_of(small)
    assert any(spec.labels == (EXPERT,) for spec in anatomy.buffers)
    kept = [0, *range(2, anatomy.layers)]
    shape = Shape(anatomy).resized(LAYER, len(kept))
    shorter = cut(model, shape, {LAYER: [torch.tensor(kept)]})
    for new, old in enumerate(kept):
        before = dict(model.model.layers[old].named_buffers())
        after = dict(shorter.model.layers[new].named_buffers())
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("name", "values", "kept", "key", "expected"),
    [
        ("smollm3", {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 1]}, [0, 2, 3], "no_rope_layers", [1, 1, 1]),
        ("gpt_neo", {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}, [1, 2, 3], "attention_layers",
         ["local", "global", "local"]),
        ("deepseek_v3", {"num_hidden_layers": 4, "first_k_dense_replace": 2}, [0, 2, 3], "first_k_dense_replace", 1),
        ("lfm2", {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}, [0, 3], "layer_types",
         ["conv", "full_attention"]),
    ],
)  # fmt: skip
def test_what_depends_on_the_number_of_a_layer_follows(name, values, kept, key, expected):
    base = probe_config(default_config(name), **values)
    resized = resize(base, {LAYER: len(kept)}, kept)
    assert getattr(resized, key) == expected


def save(folder, name, **values):
    """Save a small model of a type that the table does not list, and a tokenizer that fits it."""
    words = tokenizer()
    small = probe_config(
        default_config(name), vocab_size=len(words), eos_token_id=1, bos_token_id=0, **values
    )
    random_model(small).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("smollm3", [pruning.Neurons(fraction=0.25), pruning.Heads(groups=1), pruning.Layers(layers=(1,))]),
        ("olmo2", [pruning.Neurons(fraction=0.25), pruning.Layers(count=1, method="last")]),
        ("qwen3_5_text", [pruning.Neurons(fraction=0.25), pruning.Vocabulary(fraction=0.1)]),
    ],
)  # fmt: skip
def test_a_type_without_a_line_is_pruned_and_saved(name, steps, tmp_path):
    folder = save(tmp_path / "base", name)
    pruned = pruning.run(pruning.Recipe(base=str(folder), steps=steps), evaluate=False)
    pruned.save(tmp_path / "out")
    assert pruned.report.after.parameters < pruned.report.before.parameters
    assert pruning.load(str(tmp_path / "out")).model.config.model_type == name


def reconstructed(name):
    """The result of reconstructing a small model of a type on a few random tokens."""
    small = random_model(probe_config(default_config(name)))
    fitting, other, heldout = torch.randint(4, 20, (3, 24))
    return reconstruct(small, small, Windows((fitting, other), (heldout,)), epochs=1)


@pytest.mark.parametrize("name", ["dots1", "mixtral", "qwen3_moe"])
def test_a_mixture_that_lost_some_of_its_heads_can_lose_more(name, tmp_path):
    """With three heads and three groups, the small model that tries out its experts had three and two."""
    sizes = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16}
    folder = save_type(tmp_path / "base", name, **sizes)
    step = pruning.Heads(groups=1, repair=False)
    pruned = pruning.run(pruning.Recipe(base=str(folder), steps=[step]), evaluate=False)
    assert pruned.model.config.num_attention_heads == 2


@pytest.mark.parametrize(
    "name", ["mamba", "mamba2", "bamba", "jamba", "recurrent_gemma", "mixtral", "openai-gpt"]
)
def test_layers_without_an_mlp_or_attention_of_their_own_are_reconstructed(name):
    assert reconstructed(name).layers


@pytest.mark.parametrize("name", ["gemma3n_text", "deepseek_v4"])
def test_several_residual_streams_are_not_reconstructed(name):
    with pytest.raises(pruning.RecipeError, match="Reconstruction follows one residual stream"):
        reconstructed(name)


def test_code_that_a_config_names_stays_unrun_where_transformers_knows_the_type(tmp_path):
    folder = save(tmp_path / "base", "phi3")
    values = json.loads((folder / "config.json").read_text())
    values["auto_map"] = {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "modeling_phi3.py").write_text("raise SystemExit('code was run')\n")
    step = pruning.Neurons(fraction=0.25, criterion="l2", repair=False)
    pruned = pruning.run(pruning.Recipe(base=str(folder), steps=[step]), evaluate=False)
    pruned.save(tmp_path / "out")
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_type_that_nothing_is_derived_for_is_refused_with_the_reason():
    with pytest.raises(pruning.ModelError, match="only the text half, gemma3_text"):
        derive(default_config("gemma3"))
