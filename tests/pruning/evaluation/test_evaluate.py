"""A model is measured on any text and by any metric, alone or beside its base; layers and neurons as dictionaries."""

import json
import sys
from xml.etree import ElementTree

import pytest

import pruning
from pruning import Neurons, RecipeError, cli
from pruning.evaluation.plot import save_plot
from pruning.text.passages import passage
from tests.helpers.models import folder_of, loaded

TEXT = [passage("story", "heldout")[:3000]]


def parameters(model):
    return sum(values.numel() for values in model.model.parameters())


def test_functions_and_named_metrics_stand_beside_the_bases():
    base = loaded("llama")
    pruned = pruning.prune(base, steps=Neurons(fraction=0.25, criterion="l1"))
    result = pruning.evaluate(pruned, on=TEXT, metrics=["perplexity", parameters], against=base, tokens=512)
    assert result["parameters"]["base"] == parameters(base)
    assert result["parameters"]["difference"] == parameters(pruned) - parameters(base) < 0
    assert result["perplexity"] > 1
    assert result["against"]["perplexity"]["ratio"] == pytest.approx(
        result["perplexity"] / result["against"]["perplexity"]["base"]
    )
    alone = pruning.evaluate(pruned, on=TEXT, metrics=[parameters, "perplexity"], tokens=512)
    assert alone["parameters"] == parameters(pruned)
    assert alone["perplexity"] == result["perplexity"]


def test_without_more_it_is_the_quality_by_genre():
    assert pruning.evaluate(loaded("llama"), tokens=100).genres.keys() == {
        "encyclopedia", "story", "code", "dialogue", "documentation"
    }  # fmt: skip


def test_a_metric_that_fails_is_named():
    def broken(_model):
        raise ValueError("no\nway")

    with pytest.raises(RecipeError, match=r"^The metric broken failed: ValueError: no way\."):
        pruning.evaluate(loaded("llama"), metrics=broken)
    with pytest.raises(RecipeError, match="There is no metric 'bleu'"):
        pruning.evaluate(loaded("llama"), metrics=["bleu"])


def test_importance_is_a_plain_dictionary():
    base = loaded("llama")
    layers = pruning.layer_importance(base, TEXT)
    assert list(layers) == [0, 1, 2]
    assert all(type(value) is float and 0 < value < 2 for value in layers.values())
    neurons = pruning.neuron_importance(base, TEXT, criterion="l1")
    assert {len(row) for row in neurons.values()} == {48}
    assert json.loads(json.dumps(neurons))["0"] == neurons[0]
    pruned = pruning.prune(base, steps=Neurons(intermediate_size=24, criterion="l1"))
    best = sorted(range(48), key=neurons[1].__getitem__)[-24:]
    assert pruned.kept["neurons"][1] == sorted(best)


def drawn_by(command, picture, monkeypatch, *options):
    """Run a command that draws a picture of a small model, and return its exit code."""
    arguments = ["secateur", command, str(folder_of("llama")), *options, "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", arguments)
    return cli.main()


@pytest.mark.parametrize(
    ("command", "marks"), [(("importance",), "patch"), (("sweep", "--criterion", "l1,l2"), "line2d")]
)
def test_the_shell_draws_a_picture(command, marks, tmp_path, monkeypatch, capsys):
    name, *options = command
    text = tmp_path / "text.txt"
    text.write_text(TEXT[0], encoding="utf-8")
    options += ["--calibration", str(text), "--tokens", "512", "--json"]
    assert drawn_by(name, tmp_path / "picture.svg", monkeypatch, *options) == 0
    assert json.loads(capsys.readouterr().out)
    ids = [element.get("id", "") for element in ElementTree.parse(tmp_path / "picture.svg").iter()]
    assert len([each for each in ids if each.startswith(marks)]) >= 2


def test_a_picture_is_of_the_kind_that_its_name_says(tmp_path, monkeypatch, capsys):
    points = {"$x$": [(1.0, 2.0), (2.0, float("nan")), (3.0, 4.0)], "none": []}
    for suffix, begins in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        save_plot(tmp_path / f"picture.{suffix}", "$title", points, "x", "y")
        assert (tmp_path / f"picture.{suffix}").read_bytes().startswith(begins)
    assert drawn_by("importance", "picture.gif", monkeypatch) == 2
    assert "Write --plot picture.png" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert drawn_by("importance", "picture.png", monkeypatch) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
