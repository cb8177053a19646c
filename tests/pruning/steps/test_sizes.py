"""Widths that deploy: by default multiples of 32, and what was written before keeps its meaning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pruning
from pruning import Calibration, Channels, Neurons, Recipe, RecipeError
from pruning.architectures.families import CHANNEL, NEURON
from pruning.architectures.shape import Shape
from pruning.shape_search.candidates import all_candidates
from pruning.steps.sizes import LEAST_LEVELS, default_multiple, nearest_size
from tests.helpers.models import config

SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
GEMMA = {"hidden_size": 640, "intermediate_size": 2048, "num_attention_heads": 4, "num_key_value_heads": 1}


@pytest.fixture(scope="module")
def smollm2():
    return Shape.of(config("llama", head_dim=64, **SMOLLM2))


@pytest.fixture(scope="module")
def gemma():
    return Shape.of(config("gemma3_text", head_dim=256, **GEMMA))


@pytest.mark.parametrize(
    ("fraction", "width"), [(0.2, 1216), (0.21, 1216), (0.5, 768), (0.001, 1504), (0.99, 32), (0.9999, 32)]
)
def test_a_share_leaves_the_nearest_multiple_of_32_neurons(smollm2, fraction, width):
    assert Neurons(fraction=fraction).reshape(smollm2).count(NEURON) == width


def test_a_fifth_of_gemma_leaves_a_multiple_of_32(gemma):
    assert Neurons(fraction=0.2).reshape(gemma).count(NEURON) == 1632
    assert Channels(fraction=0.2).reshape(gemma).count(CHANNEL) == 512


def test_a_multiple_of_ones_own_removes_no_more_than_asked(smollm2):
    for multiple, width in ((1, 1229), (64, 1280), (256, 1280)):
        assert Neurons(fraction=0.2, multiple_of=multiple).reshape(smollm2).count(NEURON) == width


def test_a_size_is_kept_exactly(smollm2):
    assert Neurons(intermediate_size=1001).reshape(smollm2).count(NEURON) == 1001
    assert Channels(hidden_size=513).reshape(smollm2).count(CHANNEL) == 513


def test_a_hidden_size_that_is_not_possible_is_refused_with_those_that_are(smollm2):
    with pytest.raises(RecipeError, match=r"512 is not possible: .* heads, 9\. Choose 504 or 513\."):
        Channels(hidden_size=512).reshape(smollm2)
    with pytest.raises(RecipeError, match=r"5 is not possible: .* Choose 9\."):
        Channels(hidden_size=5).reshape(smollm2)


def test_a_share_of_the_channels_leaves_some_choice(smollm2):
    """A multiple of nine heads and of 32 would be half of the channels or nothing."""
    assert Channels(fraction=0.1).reshape(smollm2).count(CHANNEL) == 504


@given(
    size=st.integers(2, 20_000),
    fraction=st.floats(0, 1, exclude_min=True, exclude_max=True),
    step=st.integers(1, 9),
)
def test_the_nearest_size_is_a_possible_one(size, fraction, step):
    multiple = default_multiple(size, step)
    if size <= multiple:
        return
    kept = nearest_size(size, fraction, multiple)
    assert 0 < kept < size
    assert kept % multiple == 0
    others = range(multiple, size, multiple)
    assert (
        abs(kept - (1 - fraction) * size) <= min(abs(each - (1 - fraction) * size) for each in others) + 1e-6
    )
    assert multiple == step or size // multiple >= LEAST_LEVELS


@pytest.mark.parametrize("step", ["neurons", "channels"])
def test_a_recipe_of_release_0_1_0_keeps_its_meaning(step, smollm2):
    text = f"base: x\nsteps:\n- step: {step}\n  fraction: 0.2\n"
    (old,) = Recipe.parse(text).steps
    (new,) = Recipe.parse(f"format: 2\n{text}").steps
    assert (old.multiple_of, new.multiple_of) == (1, None)
    sizes = {"neurons": (NEURON, 1229, 1216), "channels": (CHANNEL, 468, 468)}[step]
    assert (old.reshape(smollm2).count(sizes[0]), new.reshape(smollm2).count(sizes[0])) == sizes[1:]
    assert Recipe.parse(text).digest != Recipe.parse(f"format: 2\n{text}").digest
    written = Recipe.parse(text).to_yaml()
    assert Recipe.parse(written).steps == (old,)


def test_a_size_has_one_digest_in_all_formats():
    text = "base: x\nsteps:\n- step: neurons\n  intermediate_size: 96\n"
    formats = (
        text,
        f"{text}  multiple_of: 1\n",
        f"format: 2\n{text}",
        f"format: 2\n{text}  multiple_of: 1\n",
    )
    digests = {
        Recipe.parse(each).model_copy(update={"calibration": Calibration()}).digest for each in formats
    }
    assert len(digests) == 1


def test_the_report_gives_the_exact_share(smollm2):
    shown = pruning.Preview(
        Recipe(base="x", steps=[Neurons(fraction=0.2)]), smollm2, Neurons(fraction=0.2).reshape(smollm2)
    )
    assert shown.to_dict()["sizes"] == {
        "neurons": {"before": 1536, "after": 1216, "removed": pytest.approx(320 / 1536)}
    }


def test_a_search_considers_only_widths_that_deploy(gemma):
    removed = [candidate.amounts for candidate in all_candidates(gemma)]
    assert removed
    assert all((640 - channels) % 32 == (2048 - neurons) % 32 == 0 for *_, channels, neurons in removed)
