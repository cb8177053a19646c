"""The model map shows every component, what is cut from it, and both sizes."""

from pathlib import Path

import pytest

from page.html import model_map
from pruning import Layers, Neurons, Weights
from pruning.architectures.families import COMPONENTS
from pruning.loading.source import Source
from tests.page.html.samples import Page, shape


def widths(page):
    return [float(style.removeprefix("width:").removesuffix("%")) for style in page.values("style")]


def test_every_component_and_unit_has_a_title():
    assert tuple(model_map.COMPONENT_TITLES) == COMPONENTS
    assert set(model_map.UNIT_TITLES) == set(shape().anatomy.units)


def test_an_uncut_model_shows_no_removed_part():
    original = shape()
    page = Page(model_map.draw_model(original, original))
    classes = page.values("class")
    assert "removed" not in classes
    assert classes.count("kept") == sum(bool(size) for size in original.components.values())
    assert "±0.0%" in page.pieces


def test_a_cut_is_hatched_in_its_component_alone():
    original = shape()
    pruned = Neurons(fraction=0.5).reshape(original)
    page = Page(model_map.draw_model(original, pruned))
    assert page.values("class").count("removed") == 1
    before, after = original.components["mlp"], pruned.components["mlp"]
    assert f"MLP: {before:,} → {after:,}" in page.values("title")
    assert page.values("data-count") == [str(original.parameters), str(pruned.parameters)]
    summary = f"Original model: {original.parameters:,} parameters; pruned model: {pruned.parameters:,}"
    assert page.values("aria-label") == [summary]
    assert summary in page.pieces


def test_the_parts_fill_the_bar():
    original = shape()
    page = Page(model_map.draw_model(original, Neurons(fraction=0.5).reshape(original)))
    parts = widths(page)
    kept = page.values("class").count("kept")
    # Each component has its own width and those of what it contains, which fill it.
    assert sum(parts) == pytest.approx(100 + 100 * kept, abs=0.01 * len(parts))


def test_the_origin_is_below_the_map():
    source = Source("a", "owner/a", "0123456789abcdef", None, "the Hub", Path("folder"))
    line = model_map.weights_origin(source)
    assert line == "Weights: the Hub; revision 0123456789ab."
    assert Page(model_map.draw_model(shape(), shape(), line)).pieces[-1] == line


def test_the_revision_of_a_package_is_not_shortened():
    source = Source("a", None, "pypi:some-package==0.1.2", None, "a package", Path("folder"))
    assert model_map.weights_origin(source).endswith("revision pypi:some-package==0.1.2.")
    assert model_map.weights_origin(Source("a", None, None, None, "a folder", Path("f"))).endswith(
        "revision ."
    )


def test_the_note_counts_what_is_cut():
    original = shape()
    pruned = Layers(count=1).reshape(Neurons(fraction=0.5).reshape(original))
    neurons, layers = original.count("neuron"), original.count("layer")
    assert Page(model_map.cut_note(original, pruned, ["half of the weights"])).text == (
        f"Cut: {neurons // 2} of {neurons} MLP neurons in every layer; 1 of {layers} layers; "
        "half of the weights."
    )


def test_the_note_names_cuts_that_leave_the_shape_as_it_is():
    step = Weights(fraction=0.5)
    assert step.reshape(shape()) == shape()
    assert step.describe() in Page(model_map.cut_note(shape(), shape(), [step.describe()])).text


def test_the_note_says_what_to_do_if_nothing_is_cut():
    page = Page(model_map.cut_note(shape(), shape()))
    assert page.text == "Nothing is cut yet: move the slider."
