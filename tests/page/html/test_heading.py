"""The heading of the results says what was removed, and when that was recorded."""

import json
import re
from datetime import date
from html import unescape

import pytest

from page.html.heading import describe_cut, heading
from pruning import Distillation, Heads, Layers, Neurons, Recipe, Weights


def recipe(*steps):
    return Recipe(base="smollm2-135m", steps=steps)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([Neurons(fraction=0.2)], "20% of the MLP neurons removed"),
        ([Neurons(fraction=0.125)], "12.5% of the MLP neurons removed"),
        ([Layers(layers=(4, 5))], "Layers 4, 5 removed"),
        (
            [Heads(groups=1), Neurons(fraction=0.2)],
            "1 key/value group of every layer and 20% of the MLP neurons removed",
        ),
        ([Weights(fraction=0.5)], "50% of the weights of attention and MLP, set to zero"),
        ([Neurons(fraction=0.2), Distillation(steps=4)], "20% of the MLP neurons removed, then 4 steps of"),
    ],
)
def test_it_says_what_was_removed(steps, text):
    assert describe_cut(recipe(*steps)).startswith(text)
    assert text in unescape(heading(recipe(*steps)))


def test_it_says_when_results_were_recorded():
    assert "Recorded on 5 January 2026." in heading(recipe(Neurons(fraction=0.2)), (), date(2026, 1, 5))
    assert "Recorded" not in heading(recipe(Neurons(fraction=0.2)))


def test_the_settings_stand_in_it_whatever_they_are():
    settings = ["</div><script>'\"&", 20, 0.7, None, True, "Größe\n"]
    html = heading(recipe(Neurons(fraction=0.2)), settings)
    assert "<script>" not in html
    (written,) = re.findall('data-settings="([^"]*)"', html)
    assert json.loads(unescape(written)) == settings
