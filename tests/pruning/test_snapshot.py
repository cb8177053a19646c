"""A pruned model in a folder, for another process of the same program."""

import pytest

from pruning import Layers, Neurons, Recipe, Vocabulary, pipeline
from pruning.snapshot import REST, WEIGHTS, read_snapshot, snapshot_bytes, write_snapshot
from tests.helpers import models

RECIPES = {
    "neurons": (Neurons(fraction=0.25),),
    "layers": (Layers(count=1),),
    "vocabulary": (Vocabulary(fraction=0.1),),
}


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("steps", RECIPES.values(), ids=RECIPES)
def test_a_snapshot_is_read_back_as_it_was(family, steps, tmp_path):
    base = models.loaded(family)
    made = pipeline.prune(Recipe(base="base", steps=steps), base)
    write_snapshot(made, tmp_path)
    found = read_snapshot(tmp_path, base)
    values = made.model.state_dict()
    assert found.model.state_dict().keys() == values.keys()
    assert all((value == values[name]).all() for name, value in found.model.state_dict().items())
    assert (found.recipe, found.report, found.layers) == (made.recipe, made.report, made.layers)
    assert found.tokenizer("the old man").input_ids == made.tokenizer("the old man").input_ids
    files = (tmp_path / WEIGHTS).stat().st_size
    assert files == pytest.approx(snapshot_bytes(made), rel=0.1, abs=20_000)


@pytest.mark.parametrize("name", [REST, WEIGHTS])
@pytest.mark.parametrize("change", ["removed", "cut short"])
def test_a_snapshot_that_is_not_whole_is_none(name, change, tmp_path):
    base = models.loaded("llama")
    write_snapshot(pipeline.prune(Recipe(base="base", steps=RECIPES["neurons"]), base), tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    file.unlink()
    if change == "cut short":
        file.write_bytes(content[: len(content) // 2])
    assert read_snapshot(tmp_path, base) is None
