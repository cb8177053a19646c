"""A model is measured on any text and by any metric, alone or beside its base; layers and neurons as dictionaries."""

import json
import sys
from xml.etree import ElementTree

import pytest

import pruning
from pruning import Neurons, RecipeError, cli
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


@pytest.mark.parametrize(
    ("command", "drawn"), [(("importance",), "rect"), (("sweep", "--criterion", "l1,l2"), "polyline")]
)
def test_the_shell_draws_a_picture(command, drawn, tmp_path, monkeypatch, capsys):
    name, *options = command
    text = tmp_path / "text.txt"
    text.write_text(TEXT[0], encoding="utf-8")
    picture = tmp_path / "picture.svg"
    options += ["--calibration", str(text), "--tokens", "512", "--plot", str(picture), "--json"]
    monkeypatch.setattr(sys, "argv", ["secateur", name, str(folder_of("llama")), *options])
    assert cli.main() == 0
    assert json.loads(capsys.readouterr().out)
    tags = [element.tag.rpartition("}")[2] for element in ElementTree.parse(picture).iter()]
    assert tags.count(drawn) >= 2
    monkeypatch.setattr(sys, "argv", ["secateur", name, str(folder_of("llama")), "--plot", "picture.png"])
    assert cli.main() == 2
    assert "Write --plot picture.svg" in capsys.readouterr().err
