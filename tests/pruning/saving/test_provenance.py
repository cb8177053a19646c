"""The same recipe gives the same file, which says where it came from."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import pruning
from pruning.loading.files import RECIPE_FILE
from pruning.saving.provenance import LIBRARIES, read_safetensors_metadata, write_safetensors_metadata
from tests.helpers.models import folder_of

ROOT = Path(__file__).parents[3]
FACTS = {"base_model", "base_revision", "recipe", "secateur", *LIBRARIES}


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A model of two layers, cut and repaired by the same recipe in two processes."""
    place = tmp_path_factory.mktemp("twice")
    recipe = pruning.Recipe(
        base=str(folder_of("qwen2")),
        calibration=pruning.Calibration(tokens=600),
        steps=[pruning.Neurons(fraction=0.25), pruning.Heads(groups=1)],
    )
    (place / RECIPE_FILE).write_text(recipe.to_yaml(), encoding="utf-8")
    folders = [place / "first" / "cut", place / "second" / "cut"]
    command = [sys.executable, "-m", "pruning", "prune", "--recipe"]
    running = [
        subprocess.Popen(
            [*command, place / RECIPE_FILE, "--output", folder, "--no-evaluate"],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed, "SECATEUR_CACHE": str(place / seed)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder, seed in zip(folders, "12", strict=True)
    ]
    for process in running:
        _, complaint = process.communicate()
        assert process.returncode == 0, complaint
    return folders


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_same_recipe_gives_the_same_files_in_two_processes(twice):
    first, second = twice
    names = {path.name for path in first.iterdir()}
    assert {path.name for path in second.iterdir()} == names >= {"model.safetensors", RECIPE_FILE}
    different = {name for name in names if digest(first / name) != digest(second / name)}
    assert different <= {"README.md"}
    cards = [(folder / "README.md").read_text().splitlines() for folder in twice]
    assert all(line == other or line.startswith("made: 20") for line, other in zip(*cards, strict=True))


def test_the_weights_say_where_they_came_from(twice):
    recipe = pruning.Recipe.parse((twice[0] / RECIPE_FILE).read_text())
    with safe_open(twice[0] / "model.safetensors", framework="pt") as tensors:
        told = tensors.metadata()
    assert told.keys() == FACTS | {"format"}
    assert told["recipe"] == recipe.digest
    assert told["base_revision"] == recipe.revision == pruning.load(str(folder_of("qwen2"))).source.revision
    assert told["base_model"] == folder_of("qwen2").name
    assert told["torch"] == torch.__version__


def test_the_card_says_it_too_and_when(twice):
    card = (twice[0] / "README.md").read_text()
    for name, value in read_safetensors_metadata(twice[0] / "model.safetensors").items():
        assert name == "format" or f"{name}: {value}\n" in card
    assert "\nmade: 20" in card


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=4),
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
)
def test_stamping_leaves_the_tensors_as_they_are(tmp_path_factory, facts, sizes):
    facts = {f"fact {name}".encode("utf-8", "replace").decode(): text for name, text in facts.items()}
    facts = {name: text.encode("utf-8", "replace").decode() for name, text in facts.items()}
    file = tmp_path_factory.mktemp("stamp") / "model.safetensors"
    before = {f"{index}": torch.rand(size, 3) for index, size in enumerate(sizes)}
    save_file(before, file, metadata={"format": "pt"})
    write_safetensors_metadata(file, facts)
    assert read_safetensors_metadata(file) == facts | {"format": "pt"}
    assert list(read_safetensors_metadata(file)) == sorted(read_safetensors_metadata(file))
    with safe_open(file, framework="pt") as tensors:
        assert tensors.metadata() == facts | {"format": "pt"}
        assert {name: tensors.get_tensor(name).tolist() for name in tensors.keys()} == {  # noqa: SIM118
            name: tensor.tolist() for name, tensor in before.items()
        }
    assert [path.name for path in file.parent.iterdir()] == [file.name]
