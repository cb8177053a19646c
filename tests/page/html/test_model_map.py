"""The model map shows every component, what is cut from it, and both sizes."""

from dataclasses import replace

import pytest

from page.html import model_map
from pruning import Layers, Neurons, Weights
from pruning.architectures.families import COMPONENTS
from tests.helpers.models import loaded
from tests.page.html.samples import Page, shape


def widths(page):
    return [float(style.removeprefix("width:").removesuffix("%")) for style in page.values("style")]


def source(revision):
    return replace(loaded("llama").source, origin="the Hub", revision=revision)


def test_every_component_and_unit_has_a_title():
    assert tuple(model_map.COMPONENT_TITLES) == COMPONENTS
    assert set(model_map.UNIT_TITLES) == set(shape().anatomy.units)


def test_an_uncut_model_shows_no_removed_part():
    original = shape()
    page = Page(model_map.draw_model(original, original))
    classes = page.values("class")
    assert "removed" not in classes
    assert classes.count("kept") == sum(bool(size) for size in original.components.values())
    assert "nothing removed" in page.pieces
    assert "±0.0%" not in page.text


def test_the_original_alone_has_one_count_and_nothing_after_it():
    page = Page(model_map.draw_model(shape(), None))
    assert page.values("data-count") == [str(shape().parameters)]
    assert "→" not in page.text


@pytest.mark.parametrize(("step", "share"), [(Weights(fraction=0.3), 0.3), (Weights(pattern="2:4"), 0.5)])
def test_zeros_thin_out_attention_and_mlp_and_leave_the_size(step, share):
    assert model_map.zeros_of([Neurons(fraction=0.2), step]) == share
    assert model_map.zeros_of([Neurons(fraction=0.2)]) == model_map.zeros_of([]) == 0
    page = Page(model_map.draw_model(shape(), shape(), zeros=share))
    assert page.values("class").count("kept sparse") == 2
    assert sum(f"--zeros:{share:.3f}" in style for style in page.values("style")) == 2
    assert f"{share:.0%} of the weights are zero" in page.text


def test_a_cut_is_hatched_in_its_component_alone():
    original = shape()
    pruned = Neurons(fraction=0.5).reshape(original)
    page = Page(model_map.draw_model(original, pruned))
    assert page.values("class").count("removed") == 1
    before, after = original.components["mlp"], pruned.components["mlp"]
    assert f"MLP: {before:,} → {after:,}" in page.values("title")
    assert page.values("data-count") == [str(original.parameters), str(pruned.parameters)]
    assert page.values("id") == ["parameters-before", "parameters-after"]
    summary = f"Original model: {original.parameters:,} parameters; pruned model: {pruned.parameters:,}"
    assert summary in page.values("aria-label")
    assert summary in page.pieces


def test_the_parts_fill_the_bar():
    original = shape()
    page = Page(model_map.draw_model(original, Neurons(fraction=0.5).reshape(original)))
    parts = widths(page)
    kept = page.values("class").count("kept")
    # Each component has its own width and those of what it contains, which fill it.
    assert sum(parts) == pytest.approx(100 + 100 * kept, abs=0.01 * len(parts))


def test_the_parts_and_the_origin_are_explained_below_the_map_and_not_in_titles_alone():
    line = model_map.weights_origin(source("0123456789abcdef"))
    assert line == "The Hub, revision 0123456789ab."
    page = Page(model_map.draw_model(shape(), shape(), line))
    assert page.pieces[-1] == line
    for name, size in shape().components.items():
        assert (model_map.COMPONENT_TITLES[name][1] in page.pieces) is bool(size)


@pytest.mark.parametrize("revision", [None, "pypi:some-package==0.1.2"])
def test_a_package_whose_version_is_part_of_the_origin_shows_no_revision(revision):
    assert model_map.weights_origin(source(revision)) == "The Hub."


def test_the_note_counts_what_is_cut():
    original = shape()
    pruned = Layers(count=1).reshape(Neurons(fraction=0.5).reshape(original))
    neurons, layers = original.count("neuron"), original.count("layer")
    assert Page(model_map.cut_note(original, pruned, ["half of the weights"])).text == (
        f"Removes {neurons // 2} of the {neurons} MLP neurons in each layer; 1 of the {layers} layers; "
        "half of the weights."
    )


def test_the_note_names_layers_that_the_visitor_chose():
    original = shape()
    note = model_map.cut_note(original, Layers(layers=(1, 0)).reshape(original), removed=(1, 0))
    assert "layers (0, 1)." in Page(note).text


def test_the_drawing_stands_beside_the_bar_with_a_hint_and_a_table():
    original = shape()
    page = Page(model_map.draw_model(original, Layers(count=1).reshape(original), pressable=True))
    assert {"drawing", "bar"} <= set(page.values("class"))
    (hint,) = page.values("data-rest")
    assert hint.startswith("Press a layer to remove it. Calibration chooses the layers")
    assert hint in page.pieces
    assert "Parameters by layer" in page.pieces


def test_the_note_names_cuts_that_leave_the_shape_as_it_is():
    step = Weights(fraction=0.5)
    assert step.reshape(shape()) == shape()
    assert step.describe() in Page(model_map.cut_note(shape(), shape(), [step.describe()])).text


def test_the_note_says_what_to_do_if_nothing_is_cut():
    page = Page(model_map.cut_note(shape(), shape()))
    assert page.text == "Nothing is removed yet: move the slider."
