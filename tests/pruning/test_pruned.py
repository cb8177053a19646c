"""What a pruned model says of itself: what was kept, and a short description."""

import pytest
import torch

import pruning
from pruning import Calibration, Channels, Heads, Layers, Neurons, Vocabulary
from tests.helpers.models import loaded, matrices


def test_kept_numbers_are_those_of_the_base_after_several_cuts():
    base = loaded("llama")
    steps = [
        Neurons(intermediate_size=40, criterion="l2"),
        Layers(layers=(1,), repair=False),
        Neurons(intermediate_size=24, criterion="l2"),
        Heads(groups=1, criterion="weights", repair=False),
    ]
    pruned = pruning.prune(base, steps=steps)
    kept = pruned.kept
    assert kept["layers"] == [0, 2]
    assert kept["neurons"].keys() == kept["heads"].keys() == {0, 2}
    assert {len(heads) for heads in kept["key_value_heads"].values()} == {1}
    for number, layer in enumerate(kept["layers"]):
        wanted = torch.tensor(kept["neurons"][layer])
        for before, after in zip(
            matrices(base.model, layer)[0], matrices(pruned.model, number)[0], strict=True
        ):
            assert torch.equal(before[wanted], after)


def test_channels_and_tokens_are_one_list():
    base = loaded("llama")
    text = Calibration(text="story", tokens=600, window=128)
    steps = [Vocabulary(vocab_size=300), Channels(hidden_size=16, repair=False)]
    pruned = pruning.prune(base, steps=steps, calibration=text)
    # The norms are scaled, the embeddings are not.
    rows = base.model.get_input_embeddings().weight[pruned.kept["tokens"]][:, pruned.kept["channels"]]
    assert torch.equal(pruned.model.get_input_embeddings().weight, rows)


@pytest.mark.parametrize(
    "value",
    [
        lambda: loaded("llama"),
        lambda: pruning.prune(loaded("llama"), steps=Neurons(fraction=0.5, criterion="l2")),
        lambda: pruning.preview(loaded("llama"), steps=Neurons(fraction=0.5)),
    ],
    ids=["loaded", "pruned", "preview"],
)
def test_descriptions_are_one_short_line(value):
    text = repr(value())
    assert len(text) < 200
    assert "parameters" in text
    assert "\n" not in text


def test_a_saved_model_names_what_was_removed(tmp_path):
    base = loaded("llama")
    steps = [
        Layers(layers=(1,), repair=False),
        Heads(groups=1, criterion="weights", repair=False),
        Channels(hidden_size=16, repair=False),
    ]
    pruned = pruning.prune(base, steps=steps, calibration=Calibration(text="story", tokens=600, window=128))
    folder = pruned.save(tmp_path / "out")
    recipe = pruning.Recipe.load(folder / "recipe.yaml")
    layers, *heads, channels = recipe.removed
    assert layers == "layers 1"
    gone = set(range(4)) - set(pruned.kept["heads"][0])
    assert f"query heads {min(gone)}-{max(gone)} of layer 0" in heads
    assert len(heads) == 4
    assert channels.startswith("channels ")
    card = (folder / "README.md").read_text()
    assert all(line in card for line in recipe.removed)
    assert recipe.kept_layers == (0, 2)
    assert recipe.model_copy(update={"removed": None}).digest == recipe.digest
    assert pruning.load(folder).source.kept_layers == (0, 2)
