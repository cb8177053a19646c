"""Verifying: a model as it was saved passes, and everything that was changed is named."""

import json
import math
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import pruning
from pruning.cli import main
from pruning.evaluation import answers, skills
from pruning.loading.files import RECIPE_FILE
from pruning.saving.provenance import read_safetensors_metadata, write_safetensors_metadata
from pruning.sharing.verify import verify
from tests.helpers.models import folder_of
from tests.helpers.saved import content

NAMES = ["weights", "code", "recipe", "shape", "parameters"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small pruned model whose recipe names its base as a folder beside it."""
    place = tmp_path_factory.mktemp("verification")
    base = shutil.copytree(folder_of("llama"), place / "base")
    recipe = pruning.Recipe(base=str(base), steps=[pruning.Neurons(fraction=0.25, criterion="l2")])
    return pruning.run(recipe).save(place / "cut")


@pytest.fixture
def copy(saved, tmp_path, monkeypatch):
    """A copy to do damage to, where the base can be found."""
    monkeypatch.chdir(saved.parent)
    return shutil.copytree(saved, tmp_path / "cut")


def wrong(folder):
    """What does not hold of a folder, by name."""
    return {check.name: check.detail for check in verify(str(folder)).checks if check.holds is False}


def rewrite(folder, change):
    """Change tensors of a saved model and leave its metadata as it was."""
    file = folder / "model.safetensors"
    facts, tensors = read_safetensors_metadata(file), load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    write_safetensors_metadata(file, facts)


def replace_in(file, pattern, text):
    before = file.read_text()
    after = re.sub(pattern, text, before)
    assert after != before
    file.write_text(after)


def test_a_model_as_it_was_saved(copy):
    result = verify(str(copy))
    assert result.holds
    result.require()
    assert [check.name for check in result.checks[:5]] == NAMES
    assert len(result.checks) == 5 + 5
    assert all(check.holds for check in result.checks)
    assert json.loads(json.dumps(result.to_dict()))["holds"] is True


def test_a_base_out_of_reach_leaves_the_shape_open(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = verify(str(saved))
    assert result.holds
    assert [check.name for check in result.checks if check.holds is None] == ["shape"]


def test_a_card_without_measurements_leaves_perplexity_open(copy, tmp_path):
    recipe = pruning.Recipe.parse((copy / RECIPE_FILE).read_text())
    again = pruning.run(recipe, evaluate=False).save(tmp_path / "again")
    result = verify(str(again))
    assert result.holds
    assert [check.name for check in result.checks if check.holds is None] == ["perplexity"]


def test_other_weights_give_another_perplexity(copy):
    def shuffle(tensors):
        name = "model.layers.0.mlp.down_proj.weight"
        tensors[name] = tensors[name].flip(1)

    rewrite(copy, shuffle)
    assert all(name.startswith("perplexity") for name in wrong(copy))
    with pytest.raises(
        pruning.ModelError, match="is not what its recipe and card claim: perplexity, "
    ) as error:
        verify(str(copy)).require()
    assert "\n" not in str(error.value)


def test_another_recipe(copy):
    replace_in(copy / RECIPE_FILE, "seed: 0", "seed: 1")
    assert wrong(copy).keys() == {"recipe"}


def test_weights_of_another_recipe(copy):
    write_safetensors_metadata(copy / "model.safetensors", {"recipe": "0" * 16})
    assert "model.safetensors names recipe 0000" in wrong(copy)["recipe"]


def test_a_card_with_other_numbers(copy):
    replace_in(copy / "README.md", r"(\n +value: )(\d+)", r"\g<1>1\2")
    replace_in(copy / "README.md", r"(\n  parameters: )(\d+)", r"\g<1>1\2")
    found = wrong(copy)
    assert "parameters" in found
    assert len(found) == 1 + 5


@pytest.fixture
def short_panels(monkeypatch):
    """Eight questions and eight items, which take a second."""
    for module in (answers, skills):
        items = module.panel("reported")[:8]
        monkeypatch.setattr(module, "panel", lambda _split, items=items: items)


@pytest.fixture
def questioned(short_panels, tmp_path):
    """A saved model that was asked the bundled questions, as its base was."""
    base = pruning.load(str(folder_of("llama")))
    steps = pruning.Neurons(fraction=0.25, criterion="l2", repair=False)
    pruned = pruning.run(base, steps=steps, evaluate=False, metrics=("answers", "skills"))
    return pruned.save(tmp_path / "questioned")


def test_what_a_card_says_of_questions_is_asked_again(questioned):
    checks = {check.name: check.holds for check in verify(str(questioned)).checks}
    assert checks["good answers"] is True
    assert checks["skills"] is True


def test_better_answers_and_skills_on_the_card_do_not_hold(questioned):
    replace_in(questioned / "README.md", r"(type: (?:good_answers|accuracy)\n +value: )[\d.]+", r"\g<1>0.99")
    assert wrong(questioned).keys() >= {"good answers", "skills"}


def test_questions_of_another_version_are_not_compared(questioned):
    replace_in(questioned / "README.md", r"(type: secateur-\w+\n +revision: )\w+", r"\g<1>0123456789abcdef")
    names = {check.name for check in verify(str(questioned)).checks}
    assert not names & {"good answers", "skills"}


def test_a_model_of_another_shape(saved, copy, tmp_path):
    steps = [pruning.Neurons(fraction=0.5, criterion="l2")]
    recipe = pruning.Recipe(base=str(saved.parent / "base"), steps=steps)
    other = pruning.run(recipe, evaluate=False).save(tmp_path / "other")
    for name in (RECIPE_FILE, "README.md"):
        shutil.copy(copy / name, other / name)
    found = wrong(other)
    assert "24 of neuron, but the recipe leads to 36" in found["shape"]
    assert found.keys() >= {"recipe", "shape", "parameters"}


@pytest.fixture
def shell(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pruning", *map(str, arguments)])
        status = main()
        return status, *capsys.readouterr()

    return run


def test_the_shell_prints_every_check(copy, shell):
    status, out, _ = shell("verify", copy)
    assert status == 0
    assert len(out.splitlines()) == 10
    status, out, _ = shell("verify", copy, "--json")
    assert status == 0
    assert [check["name"] for check in json.loads(out)["checks"]][:5] == NAMES


def damaged(folder):
    def spoil(tensors):
        tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = math.nan

    rewrite(folder, spoil)


def truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damaged, "not finite"),
        (truncated, "damaged"),
        (lambda folder: (folder / RECIPE_FILE).unlink(), "has no recipe.yaml"),
        (lambda folder: (folder / RECIPE_FILE).write_text("steps"), "mapping"),
        (lambda folder: (folder / RECIPE_FILE).write_bytes(b"\xff"), "cannot be read"),
        (lambda folder: (folder / "README.md").unlink(), "README.md"),
        (lambda folder: replace_in(folder / RECIPE_FILE, "seed: 0", "seed: 1"), "recipe: "),
        (shutil.rmtree, "is not a model"),
    ],
)
def test_what_does_not_hold_is_one_line_and_status_2(copy, shell, harm, message):
    harm(copy)
    status, out, err = shell("verify", copy, "--json")
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("Error: ")


@pytest.fixture
def published(hub, monkeypatch, tmp_path):
    """A model pruned from one on the Hub, and published there."""
    monkeypatch.setenv("HF_TOKEN", "ada-token")
    hub.add_model("ada/tiny", content(folder_of("qwen2")))
    recipe = pruning.Recipe(
        base="ada/tiny", calibration=pruning.Calibration(tokens=600), steps=[pruning.Neurons(fraction=0.25)]
    )
    pruned = pruning.run(recipe)
    pruning.publish(pruned, "ada/cut")
    return pruned


def test_a_published_model_is_verified_where_it_is(published, shell):
    status, out, err = shell("verify", "ada/cut", "--json")
    assert status == 0, err
    assert all(check["holds"] for check in json.loads(out)["checks"])


def test_a_published_model_makes_itself_again(hub, published, shell, tmp_path):
    status, _, err = shell("prune", "--recipe", "ada/cut", "--output", tmp_path / "again", "--no-evaluate")
    assert status == 0, err
    files = hub.repos["ada/cut"].files
    for name in ("model.safetensors", "config.json", RECIPE_FILE):
        assert (tmp_path / "again" / name).read_bytes() == files[name], name
    again = pruning.load(str(tmp_path / "again")).model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in published.model.state_dict().items())


def test_a_saved_model_makes_itself_again(copy, shell, tmp_path):
    status, _, err = shell("prune", "--recipe", copy, "--output", tmp_path / "again", "--no-evaluate")
    assert status == 0, err
    assert content(tmp_path / "again")["model.safetensors"] == content(copy)["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ada/tiny", "has no recipe.yaml"),
        ("ada/none", "shows no model"),
        ("FOLDER", "has no recipe.yaml"),
        ("a b c", "is not a model"),
    ],
)
def test_models_that_carry_no_recipe(published, shell, tmp_path, name, message):
    name = folder_of("llama") if name == "FOLDER" else name
    status, out, err = shell("prune", "--recipe", name, "--output", tmp_path / "out")
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_recipe_out_of_reach(shell, tmp_path):
    status, _, err = shell("prune", "--recipe", "ada/cut", "--output", tmp_path / "out")
    assert status == 2
    assert "cannot be reached" in err.splitlines()[-1]
