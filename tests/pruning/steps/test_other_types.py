"""Model types that the table of families has no line for: one for each structure that the others lack."""

import json

import pytest

import pruning
from pruning import Channels, Distillation, Heads, Layers, Neurons, Reconstruction, Vocabulary, Weights
from tests.helpers.models import count, save_type

TEXT = pruning.Calibration(text="general", tokens=320, window=32)
TRAINED = Distillation(steps=1, batch=2, text="story")

APART = {
    "mamba": [Layers(count=1)],  # Neurons that do not write straight into the residual stream.
    "mamba2": [Layers(count=1), Weights(fraction=0.5)],  # No attention at all, and a limit that is infinite.
    "gemma3n_text": [Layers(count=1)],  # Four residual streams, and a size for each layer.
    "jamba": [Weights(fraction=0.5)],  # Parts that are called by keywords.
    "mixtral": [Layers(count=1), Channels(fraction=0.3)],  # Experts.
    "aria_text": [Channels(fraction=0.3)],  # Experts beside an MLP, and a router of a class of its own.
    "gpt_oss": [Weights(fraction=0.5)],  # Experts with biases.
    "mpt": [TRAINED],  # A context of another name.
    "bart": [TRAINED],  # A decoder of two halves, with learned positions.
    "blenderbot": [Neurons(fraction=0.3)],  # Fewer layers in its cache than in its decoder.
    "falcon_h1": [Reconstruction(epochs=1)],  # Attention and recurrence in each layer.
}


@pytest.mark.parametrize(
    ("name", "step"),
    [pytest.param(name, step, id=f"{name}-{step.step}") for name, steps in APART.items() for step in steps],
)
def test_a_step_with_its_defaults_prunes_and_saves(name, step, tmp_path):
    base = pruning.load(save_type(tmp_path / "base", name))
    pruned = pruning.prune(base, steps=step, calibration=TEXT)
    pruned.save(tmp_path / "out")
    again = pruning.load(str(tmp_path / "out"))
    assert count(again.model) == count(pruned.model) == pruned.report.after.parameters


@pytest.mark.parametrize(
    ("name", "step", "says"),
    [
        (
            "gemma3n_text",
            Vocabulary(fraction=0.1),
            "embed_tokens_per_layer.weight has .* entries for 320 tokens",
        ),
        (
            "jetmoe",
            Neurons(fraction=0.3, criterion="activation", repair=False),
            "Choose a criterion that reads no text",
        ),
        ("deepseek_v3", Heads(groups=1, criterion="weights"), "layers without one. Choose contribution"),
        ("gemma3n_text", Heads(queries=1, criterion="weights"), "layers without one. Choose contribution"),
        ("bloom", Neurons(fraction=0.3), "no key of its config counts MLP neurons"),
    ],
)
def test_what_cannot_be_removed_is_a_sentence(name, step, says, tmp_path):
    base = pruning.load(save_type(tmp_path / "base", name))
    with pytest.raises(pruning.RecipeError, match=says):
        pruning.prune(base, steps=step, calibration=TEXT)


@pytest.mark.parametrize("written", [{"__float__": "Infinity"}, float("inf")], ids=["tagged", "plain"])
def test_a_limit_that_is_infinite_is_read_as_transformers_writes_it(written, tmp_path):
    folder = save_type(tmp_path / "base", "mamba2")
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"time_step_limit": [0.0, written]}))
    assert tuple(pruning.load(folder).model.config.time_step_limit) == (0.0, float("inf"))
