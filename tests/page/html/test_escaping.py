"""No text that a person or a model wrote can become markup, whatever it contains."""

import inspect

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from page.html import abilities, charts, layer_map, model_map, outputs, plot, render, results, room, rounding
from page.workers.messages import RoundedModels
from pruning import Neurons, Recipe
from pruning.criteria import Criterion
from pruning.evaluation.abilities import Abilities, SkillComparison
from pruning.evaluation.inspection import NextToken, TokenLoss
from pruning.evaluation.skills import SkillDifference, SkillResult
from pruning.sharing.gguf.rounded import LeftOut, RoundedPoint
from tests.page.html.samples import Page, quality, report, shape

TAGS = {
    "a",
    "article",
    "b",
    "br",
    "caption",
    "dd",
    "details",
    "div",
    "dl",
    "dt",
    "figcaption",
    "figure",
    "g",
    "h2",
    "h3",
    "i",
    "li",
    "mark",
    "ol",
    "p",
    "path",
    "polyline",
    "rect",
    "section",
    "small",
    "span",
    "summary",
    "svg",
    "table",
    "tbody",
    "td",
    "tfoot",
    "th",
    "thead",
    "tr",
    "ul",
}
ATTRIBUTES = {
    "aria-hidden",
    "aria-label",
    "aria-pressed",
    "class",
    "colspan",
    "d",
    "data-count",
    "data-layer",
    "data-rest",
    "height",
    "href",
    "id",
    "points",
    "preserveaspectratio",
    "rel",
    "role",
    "scope",
    "style",
    "tabindex",
    "target",
    "title",
    "viewbox",
    "width",
    "x",
    "y",
}


def criterion(text):
    return Criterion("a name", "a title", text, text, text, score=None, warning=text)


def token_losses(text):
    return [TokenLoss(text, (None, None)), TokenLoss(text, (1.0, 2.0))]


def show_spaces(text):
    return text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")


RECIPE = Recipe(base="tiny", steps=[Neurons(fraction=0.2)])
SKILL = SkillComparison(
    *[SkillResult(1, 0, 0.5, 0.5, 0.1, None)] * 2, difference=SkillDifference(1, None, None)
)
EVALUATED = report(quality(10.0), quality(20.0))

RENDERED = {
    abilities.abilities_panel: lambda text: abilities.abilities_panel(
        Abilities(SKILL, {text: SKILL}, no_answers=text), RECIPE
    ),
    abilities.placeholder: abilities.placeholder,
    charts.genre_plot: lambda text: charts.genre_plot([charts.GenreRow(text, 1.0, 2.0)], text),
    charts.importance_map: lambda text: charts.importance_map([[1.0]], [0.5], 0.2, text, text),
    charts.next_token_chart: lambda text: charts.next_token_chart(
        [NextToken(text, 0.5)], [NextToken(text, 0.4)]
    ),
    charts.token_loss_chart: lambda text: charts.token_loss_chart(token_losses(text)),
    model_map.cut_note: lambda text: model_map.cut_note(shape(), shape(), [text, text]),
    model_map.draw_model: lambda text: model_map.draw_model(shape(), shape(), text),
    outputs.sample: lambda text: outputs.sample(text, text),
    outputs.side_by_side: lambda text: outputs.side_by_side(text, f"{text} one {text}", f"{text} two {text}"),
    plot.plot: lambda text: plot.plot(
        [
            plot.Series(text, [(1, 2, text), (2, 3, text)], large=True),
            plot.Series(text, [(1, 2), (3, 4)], line=True),
            plot.Series(text, [(1, 2), (3, 4)], labels=[text, text]),
        ],
        plot.Axis(text, format=lambda _: text),
        plot.Axis(text, log=True),
        text,
    ),
    render.criterion_note: lambda text: render.criterion_note(criterion(text)),
    render.message: lambda text: render.message(text, link=text),
    render.recipe_note: lambda text: render.recipe_note([text, text]),
    render.status: lambda text: render.status(text, 1, 2, "busy"),
    results.lesson_table: lambda text: results.lesson_table(
        [results.LessonRow(text, EVALUATED, True, text)], text, {"code": text}
    ),
    results.measures: lambda text: results.measures(report(quality(10.0, text=text), quality(20.0)), RECIPE),
    results.measures_table: lambda text: results.measures_table([results.MeasureRow(*[text] * 6)]),
    rounding.draw_rounded: lambda text: rounding.draw_rounded(
        RoundedModels((RoundedPoint(True, text, 10, 1.5),), (LeftOut(False, (text,), text),), True)
    ),
    room.draw_room: lambda text: room.draw_room(text, [text, text], [1, 2], 3, 4, [text]),
}
"""Each function that renders text, with the same text in every place."""

WITHOUT_TEXT = {
    *(charts.influence_chart, outputs.texts_placeholder, results.genres, results.verdict),
    *(layer_map.draw_layers, layer_map.layer_table),
    *(render.distillation_result, render.pressed_layers_note, render.training_status),
}
"""Functions that render numbers and fixed words only."""

NO_HTML = {
    *(
        abilities.describe_answers,
        layer_map.layers_of,
        model_map.weights_origin,
        model_map.zeros_of,
        outputs.first_difference,
        render.format_change,
        render.format_count,
    ),
    results.changes_vocabulary,
}
"""Functions whose result is not HTML."""


@pytest.mark.parametrize("function", RENDERED, ids=lambda function: function.__name__)
@settings(deadline=None)
@given(text=st.text(min_size=1))
@example(text="<script>alert(1)</script>")
@example(text='"><img src=x onerror="alert(1)">')
@example(text="' onmouseover='alert(1)' x='")
@example(text="</p></div></section><!-- ")
@example(text="&lt;b&gt; & &quot;")
@example(text="<b>word</b> <b>word</b>")
def test_text_is_shown_as_it_is_and_never_becomes_markup(function, text):
    page = Page(RENDERED[function](text))
    assert set(page.tags) <= TAGS
    assert {name for name, _ in page.attributes} <= ATTRIBUTES
    shown = show_spaces(text) if function is charts.next_token_chart else text
    assert shown in page.text
    if function is not outputs.side_by_side:  # The word that is marked depends on the text.
        harmless = Page(RENDERED[function]("x"))
        assert page.tags == harmless.tags
        assert [name for name, _ in page.attributes] == [name for name, _ in harmless.attributes]


@settings(deadline=None)
@given(text=st.text(min_size=1))
@example(text='"><script>')
def test_text_in_an_attribute_stays_in_it(text):
    chart = plot.plot([plot.Series("x", [(1, 2, text)])], plot.Axis("x"), plot.Axis("y"), "x")
    assert Page(chart).values("title") == [f"{text}: 1.0, 2.0"]
    assert Page(render.message("See", link=text)).values("href") == [text]


def test_every_public_function_is_covered_here():
    public = {
        function
        for module in (
            abilities,
            charts,
            layer_map,
            model_map,
            outputs,
            plot,
            render,
            results,
            room,
            rounding,
        )
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public == set(RENDERED) | WITHOUT_TEXT | NO_HTML
