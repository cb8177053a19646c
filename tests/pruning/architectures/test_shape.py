"""Counting from the config alone agrees with the models that transformers builds."""

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, LlamaConfig

from pruning import Neurons, Recipe, RecipeError, preview
from pruning.architectures.config import build_on_meta
from pruning.architectures.families import NEURON
from pruning.architectures.shape import Shape
from tests.helpers.models import FAMILIES, config, count

LLAMA_1B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=True,
)
LLAMA_3B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)
DISTILGPT2 = GPT2Config(n_layer=6)


@pytest.mark.parametrize(
    ("config", "before", "fraction", "after", "width"),
    [
        (DISTILGPT2, 81_912_576, 0.2, 76_305_600, 2464),
        (LLAMA_1B, 1_235_814_400, 0.2, 1_075_382_272, 6560),
        (LLAMA_1B, 1_235_814_400, 0.4, 914_950_144, 4928),
        (LLAMA_3B, 3_212_749_824, 0.2, 2_791_615_488, 6560),
        (LLAMA_3B, 3_212_749_824, 0.4, 2_370_481_152, 4928),
        (LLAMA_3B, 3_212_749_824, 0.6, 1_941_089_280, 3264),
    ],
)
def test_preview_counts_known_models_without_allocating_their_weights(
    tmp_path, config, before, fraction, after, width
):
    config.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    memory = psutil.Process().memory_info().rss
    shown = preview(Recipe(base=str(tmp_path), steps=[Neurons(fraction=fraction)]))
    assert psutil.Process().memory_info().rss - memory < 100e6
    parameters = shown.to_dict()["parameters"]
    assert (parameters["before"], parameters["after"]) == (before, after)
    assert shown.after.count(NEURON) == width


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    size=st.one_of(
        st.builds(lambda value: {"fraction": value}, st.floats(0, 1, exclude_min=True, exclude_max=True)),
        st.builds(lambda value: {"width": value}, st.integers(1, 60)),
    ),
    multiple=st.integers(1, 24),
    tied=st.booleans(),
)
def test_every_possible_cut_is_counted_as_transformers_builds_it(family, size, multiple, tied):
    before = Shape.of(config(family, tie_word_embeddings=tied))
    neurons = before.count(NEURON)
    step = Neurons(**size, multiple_of=multiple)
    requested = size.get("width", neurons - int(size.get("fraction", 0) * neurons))
    if -(-requested // multiple) * multiple >= neurons:
        with pytest.raises(RecipeError, match="removes none"):
            step.reshape(before)
        return
    after = step.reshape(before)
    assert after.count(NEURON) % multiple == 0
    assert after.count(NEURON) < neurons
    assert after.parameters == sum(after.components.values()) == count(build_on_meta(after.config))
    assert before.count(NEURON) == neurons


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_embeddings_are_counted_once(family):
    tied = Shape.of(config(family, tie_word_embeddings=True))
    untied = Shape.of(config(family, tie_word_embeddings=False))
    assert tied.components["head"] == 0
    assert untied.parameters - tied.parameters == untied.components["head"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_neurons_changes_only_the_mlp(family):
    before = Shape.of(config(family))
    after = before.resized(NEURON, 10)
    changed = {name for name, size in after.components.items() if size != before.components[name]}
    assert changed == {"mlp"}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layers_and_what_is_outside_them_add_up_to_the_model(name):
    shape = Shape.of(config(name))
    layers = [shape.layer_components(layer) for layer in range(shape.anatomy.layers)]
    for component in ("attention", "mlp"):
        assert sum(layer[component] for layer in layers) == shape.components[component]
    half = shape.resized(NEURON, shape.count(NEURON) // 2)
    assert half.layer_components(0)["mlp"] < layers[0]["mlp"]
