"""The drawing of the layers: areas are parameters, and what is removed is marked, in the table too."""

import re
import time
from dataclasses import replace

import pytest

from page.html.layer_map import HEIGHT, WIDTH, DrawnLayer, draw_layers, layer_table, layers_of
from pruning import Heads, Layers, Neurons
from pruning.architectures.shape import Shape
from tests.helpers.models import FAMILIES, config
from tests.page.html.samples import Page, shape

BOX = re.compile(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+z")


def outside(original, pruned):
    return [(name, original.components[name], pruned.components[name]) for name in ("embeddings", "head")]


def drawing(original, pruned, removed=None, **settings):
    layers = layers_of(original, pruned, removed)
    return draw_layers(layers, outside(original, pruned), original.parameters, **settings)


def areas(html):
    """The area of everything that is drawn, by the class of its path."""
    totals = {}
    for name, lines in re.findall(r'<path class="([^"]+)" d="([^"]*)"', html):
        boxes = BOX.findall(lines)
        assert boxes
        totals[name] = totals.get(name, 0) + sum(float(width) * float(height) for *_, width, height in boxes)
    return totals


def states(html):
    page = Page(html)
    return [name for name in page.values("class") if name.startswith("layer ")]


def with_layers(count):
    layer = DrawnLayer(0, "kept", 100, 80, (40, 40), (60, 40), (4, 4))
    return [replace(layer, number=number) for number in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_areas_are_in_proportion_to_parameters(family):
    original = Shape.of(config(family))
    drawn = areas(drawing(original, original))
    sizes = {name: size for name, size in original.components.items() if size and name != "norms"}
    assert sum(drawn.values()) == pytest.approx(WIDTH * HEIGHT, rel=0.01)
    for name, area in drawn.items():
        assert area / (WIDTH * HEIGHT) == pytest.approx(sizes[name] / sum(sizes.values()), abs=0.01)


@pytest.mark.parametrize("step", [Neurons(fraction=0.5), Heads(groups=1)])
def test_what_is_cut_has_its_own_area_in_its_component(step):
    original = shape()
    pruned = step.reshape(original)
    drawn = areas(drawing(original, pruned))
    name = "mlp" if isinstance(step, Neurons) else "attention"
    cut, size = original.components[name] - pruned.components[name], original.components[name]
    assert drawn[f"{name} cut"] / (drawn[name] + drawn[f"{name} cut"]) == pytest.approx(cut / size, abs=0.01)
    assert sum("cut" in each for each in drawn) == 1


def test_attention_is_drawn_group_by_group():
    html = draw_layers([replace(with_layers(1)[0], groups=(4, 3), attention=(40, 30))], [], 100)
    assert len(BOX.findall(re.search(r'<path class="attention" d="([^"]*)"', html)[1])) == 3
    assert len(BOX.findall(re.search(r'<path class="attention cut" d="([^"]*)"', html)[1])) == 1


def test_removed_layers_are_marked_and_the_others_are_not():
    original = shape()
    step = Layers(layers=(1,))
    html = drawing(original, step.reshape(original), step.layers, pressable=True)
    assert [name == "layer removed" for name in states(html)] == [
        number == 1 for number in range(original.anatomy.layers)
    ]
    page = Page(html)
    assert page.values("aria-pressed").count("true") == 1
    assert [label.endswith("Removed") for label in page.values("aria-label")[1:]].count(True) == 1


def test_layers_that_text_chooses_are_marked_as_undecided():
    original = shape()
    names = states(drawing(original, Layers(count=1).reshape(original)))
    assert names.count("layer undecided") == 1
    assert names[-1] == "layer undecided"


def test_the_layers_of_a_finished_model_are_those_that_remained():
    original = shape()
    pruned = Layers(layers=(0,)).reshape(original)
    finished = Shape.of(pruned.config_of(range(1, original.anatomy.layers)))
    assert finished.anatomy.layers < original.anatomy.layers
    assert layers_of(original, finished, {0}) == layers_of(original, pruned, {0})


def test_layers_are_buttons_only_if_they_can_be_pressed_and_one_takes_part_in_the_tab_order():
    roles = {
        pressable: Page(draw_layers(with_layers(3), [], 300, pressable)).values("role")
        for pressable in (True, False)
    }
    assert roles == {True: ["group"] + ["button"] * 3, False: ["group"] + ["img"] * 3}
    page = Page(draw_layers(with_layers(3), [], 300, pressable=False))
    assert page.values("aria-pressed") == []
    assert page.values("tabindex") == ["0", "-1", "-1"]


def test_a_layer_says_its_parameters_and_its_share():
    (layer,) = with_layers(1)
    assert layer.describe(400) == (
        "Layer 0: 100 parameters, 25.0% of the model. Attention 40 in 4 groups, MLP 60. 80 kept"
    )


def test_the_table_has_the_numbers_of_the_drawing():
    original = shape()
    layers = layers_of(original, Layers(layers=(1,)).reshape(original), {1})
    page = Page(layer_table(layers))
    cells = [piece for piece in page.pieces if piece[0].isdigit()]
    rows = [cells[start : start + 5] for start in range(0, len(cells), 5)]
    assert rows == [
        [
            str(layer.number),
            f"{layer.attention[0]:,}",
            str(layer.groups[0]),
            f"{layer.mlp[0]:,}",
            "0" if layer.number == 1 else f"{layer.parameters:,}",
        ]
        for layer in layers
    ]


def test_zeros_make_the_fill_fainter_and_leave_the_areas():
    faint = draw_layers(with_layers(1), [], 100, zeros=0.3)
    assert Page(faint).values("fill-opacity") == ["0.70", "0.70"]
    assert areas(faint) == areas(draw_layers(with_layers(1), [], 100))


def test_thirty_layers_are_drawn_faster_than_their_config_is_read():
    """The drawing follows a slider. What it is compared with was always fast enough to be done at each start."""
    small = Shape.of(config("llama"))

    def seconds(work):
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    drawn = min(seconds(lambda: draw_layers(with_layers(30), [], 3_000)) for _ in range(5))
    read = min(seconds(lambda: Shape.of(small.config)) for _ in range(5))
    assert drawn < 20 * read
