"""Inspect: next words, loss word by word, importance by layer, quality against size, and fewer bits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import gradio as gr

from page.html import charts
from page.html.plot import Axis, Series, plot
from page.sections.controls import follow_recipe
from page.sections.events import JobPanel, Part, Updates, on_event, on_start
from page.sections.rounding import RoundingPart, build_rounding
from page.sections.section import Page
from page.server.form import CONTINUE, FIRST_PROMPTS, MAIN, calibration_from, recipe_to_inspect, to_integer
from page.server.jobs import run_job
from page.server.session import job_name, visitor_of
from page.workers.messages import Done, ImportanceMap, LayerInfluences, NextTokens, Partial, PrunedSummary
from page.workers.tasks import (
    ImportanceTask,
    InfluenceTask,
    NextTokensTask,
    SweepTask,
    Task,
    TokenLossTask,
)
from pruning import Calibration, Recipe
from pruning.criteria import CRITERIA, DEFAULT_CRITERION
from pruning.evaluation.inspection import LONGEST_TEXT
from pruning.formatting import format_number
from pruning.shape_search.sweep import SweepPoint

KIND = "inspect"
FIRST_TEXT = (
    "The old lighthouse stood at the end of the pier. Every evening the keeper climbed its ninety-nine "
    "steps, lit the lamp, and watched the ships pass on their way to the harbor."
)
FIRST_FRACTION = 0.2
OTHER_CRITERION = "peak_to_peak"
SIZE = Axis("Parameters, millions", format=lambda value: f"{value:,.0f}")
QUALITY = Axis("Perplexity on held-out calibration text (lower is better)", log=True)


@dataclass(frozen=True)
class NextTokensPart:
    """The likeliest next words of both models."""

    prompt: gr.Textbox
    start: gr.Button
    table: gr.HTML


@dataclass(frozen=True)
class TokenLossPart:
    """What each word of a text costs both models."""

    text: gr.Textbox
    start: gr.Button
    chart: gr.HTML


@dataclass(frozen=True)
class ImportancePart:
    """The importance of neurons by layer, under two criteria."""

    criterion: gr.Dropdown
    other: gr.Dropdown
    start: gr.Button
    chart: gr.HTML


@dataclass(frozen=True)
class InfluencePart:
    """How much each layer changes its input."""

    start: gr.Button
    chart: gr.HTML


@dataclass(frozen=True)
class SweepPart:
    """Quality against size under two criteria. `recipes`: the recipe of each row of the table."""

    criterion: gr.Dropdown
    other: gr.Dropdown
    start: gr.Button
    chart: gr.HTML
    table: gr.Dataframe
    recipes: gr.State


@dataclass(frozen=True)
class InspectSection:
    """The components of the section."""

    column: gr.Column
    status: gr.HTML
    next_tokens: NextTokensPart
    token_loss: TokenLossPart
    importance: ImportancePart
    influence: InfluencePart
    sweep: SweepPart
    rounding: RoundingPart

    @property
    def result_outputs(self) -> Sequence[Part]:
        """The column, which is shown with the first results."""
        return [self.column]

    def show_result(self, _pruned: PrunedSummary, _request: gr.Request) -> Updates:
        """Show the section."""
        return {self.column: gr.Column(visible=True)}

    def wire(self, page: Page) -> None:
        """Connect each part of the section."""
        self._wire_next_tokens(page)
        self._wire_token_loss(page)
        self._wire_importance(page)
        self._wire_influence(page)
        self._wire_sweep(page)
        self.rounding.wire(page, self.status, self._follow)

    def _follow(
        self,
        request: gr.Request,
        token: gr.OAuthToken | None,
        plan: Callable[[], Task],
        show: Callable[[object], Updates],
    ) -> Iterator[Updates]:
        """Run a task, and show its result. The status line is empty at the end."""

        def show_event(event: Partial | Done) -> Updates:
            updates = show(event.value)
            return {self.status: "", **updates} if isinstance(event, Done) else updates

        events = run_job(lambda: [plan()], visitor_of(request, token), job_name(request, KIND))
        yield from JobPanel(self.status).follow(events, show_event)

    def _wire_next_tokens(self, page: Page) -> None:
        part = self.next_tokens

        def show_next_tokens(
            request: gr.Request,
            token: gr.OAuthToken | None,
            recipe: Recipe | None,
            custom_text: object,
            prompt: str,
        ) -> Iterator[Updates]:
            def show(value: object) -> Updates:
                assert isinstance(value, NextTokens)
                return {part.table: charts.next_token_chart(value.before, value.after)}

            def plan() -> Task:
                return NextTokensTask(recipe_to_inspect(recipe, custom_text), prompt)

            yield from self._follow(request, token, plan, show)

        inputs = [page.results.recipe, page.controls.calibration.custom_text, part.prompt]
        triggers = [part.start.click, part.prompt.submit]
        on_start(triggers, show_next_tokens, inputs, [self.status, part.table])

    def _wire_token_loss(self, page: Page) -> None:
        part = self.token_loss

        def show_token_losses(
            request: gr.Request,
            token: gr.OAuthToken | None,
            recipe: Recipe | None,
            custom_text: object,
            text: str,
        ) -> Iterator[Updates]:
            def show(value: object) -> Updates:
                assert isinstance(value, list)
                return {part.chart: charts.token_loss_chart(value)}

            def plan() -> Task:
                return TokenLossTask(recipe_to_inspect(recipe, custom_text), text)

            yield from self._follow(request, token, plan, show)

        inputs = [page.results.recipe, page.controls.calibration.custom_text, part.text]
        on_start([part.start.click], show_token_losses, inputs, [self.status, part.chart])

    def _wire_importance(self, page: Page) -> None:
        part = self.importance

        def show_importance(
            request: gr.Request,
            token: gr.OAuthToken | None,
            one: str,
            other: str,
            percent: object,
            model: str,
            *calibration: object,
        ) -> Iterator[Updates]:
            def plan() -> Task:
                text, seed = _calibration(*calibration)
                return ImportanceTask(model, (one, other), _fraction(percent), text, seed)

            def show(value: object) -> Updates:
                assert isinstance(value, ImportanceMap)
                return {part.chart: draw_importance(value)}

            yield from self._follow(request, token, plan, show)

        controls = page.controls
        percent = controls.value_of(f"{MAIN}-fraction")
        inputs = [part.criterion, part.other, percent, *controls.calibration_inputs]
        on_start([part.start.click], show_importance, inputs, [self.status, part.chart])

    def _wire_influence(self, page: Page) -> None:
        part = self.influence

        def show_influences(
            request: gr.Request, token: gr.OAuthToken | None, model: str, *calibration: object
        ) -> Iterator[Updates]:
            def show(value: object) -> Updates:
                assert isinstance(value, LayerInfluences)
                return {part.chart: charts.influence_chart(value.values)}

            def plan() -> Task:
                return InfluenceTask(model, *_calibration(*calibration))

            yield from self._follow(request, token, plan, show)

        outputs = [self.status, part.chart]
        on_start([part.start.click], show_influences, page.controls.calibration_inputs, outputs)
        # The drawing shows these values for its own layers.
        on_event([page.controls.model.change], forget_influences, outputs=[part.chart])

    def _wire_sweep(self, page: Page) -> None:
        part = self.sweep

        def show_sweep(
            request: gr.Request,
            token: gr.OAuthToken | None,
            one: str,
            other: str,
            model: str,
            *calibration: object,
        ) -> Iterator[Updates]:
            points: list[SweepPoint] = []

            def show(value: object) -> Updates:
                if not isinstance(value, SweepPoint):
                    return {}
                points.append(value)
                return {
                    part.chart: gr.HTML(draw_sweep(points, (one, other)), visible=True),
                    part.table: gr.Dataframe(_rows(points), visible=True),
                    part.recipes: [point.recipe.without_custom_text() for point in points],
                }

            def plan() -> Task:
                return SweepTask(model, tuple(dict.fromkeys((one, other))), *_calibration(*calibration))

            yield from self._follow(request, token, plan, show)

        def choose(recipes: Sequence[Recipe], event: gr.SelectData) -> Updates:
            try:
                recipe = recipes[event.index[0]]
            except (IndexError, TypeError):
                return {controls.recipe: gr.skip()}
            return follow_recipe(controls, recipe)

        controls = page.controls
        inputs = [part.criterion, part.other, *controls.calibration_inputs]
        on_start([part.start.click], show_sweep, inputs, [self.status, part.chart, part.table, part.recipes])
        outputs = [controls.recipe, controls.recipe_note, controls.note]
        on_event([part.table.select], choose, [part.recipes], outputs)


def forget_influences() -> str:
    """Return an empty chart: another model was chosen."""
    return ""


def build() -> InspectSection:
    """Lay the section out."""
    with gr.Column(visible=False, elem_id="inspect") as column:
        gr.HTML("<h2>Inspect</h2>")
        with gr.Tabs():
            with gr.Tab("Next word"):
                next_tokens = _build_next_tokens()
            with gr.Tab("Word by word"):
                token_loss = _build_token_loss()
            with gr.Tab("Importance"):
                importance = _build_importance()
            with gr.Tab("Layers"):
                influence = _build_influence()
            with gr.Tab("Quality against size"):
                sweep = _build_sweep()
            with gr.Tab("Prune or quantize?"):
                rounding = build_rounding()
        status = gr.HTML(elem_id="inspect-status", min_height=40)
    return InspectSection(column, status, next_tokens, token_loss, importance, influence, sweep, rounding)


def _build_next_tokens() -> NextTokensPart:
    prompt = gr.Textbox(FIRST_PROMPTS[CONTINUE], label="Text so far", max_length=2_000, elem_id="next-prompt")
    start = gr.Button("Show the ten likeliest next words", elem_id="next")
    return NextTokensPart(prompt, start, gr.HTML(elem_id="next-words", min_height=60))


def _build_token_loss() -> TokenLossPart:
    text = gr.Textbox(FIRST_TEXT, label="Text", lines=3, max_length=LONGEST_TEXT, elem_id="loss-text")
    start = gr.Button("Compare word by word", elem_id="losses")
    return TokenLossPart(text, start, gr.HTML(elem_id="loss-words", min_height=60))


def _build_importance() -> ImportancePart:
    criterion, other = _build_criteria("Importance of a neuron")
    start = gr.Button("Show importance by layer", elem_id="importance")
    return ImportancePart(criterion, other, start, gr.HTML(elem_id="importance-map", min_height=60))


def _build_influence() -> InfluencePart:
    start = gr.Button("Measure how much each layer changes its input", elem_id="influence")
    return InfluencePart(start, gr.HTML(elem_id="influence-chart"))


def _build_sweep() -> SweepPart:
    gr.HTML(
        '<p class="note">Cuts a growing share of the MLP neurons, ranked in two ways, and measures each '
        "model on held-out text.</p>"
    )
    criterion, other = _build_criteria("Importance")
    start = gr.Button("Draw the curve", elem_id="sweep")
    chart = gr.HTML(visible=False, min_height=370, elem_id="sweep-plot")
    table = gr.Dataframe(
        headers=["Cut", "Importance", "Parameters", "Perplexity"],
        interactive=False,
        visible=False,
        max_height=240,
        label="The same as a table. Click a row to use its recipe.",
        elem_id="sweep-rows",
    )
    return SweepPart(criterion, other, start, chart, table, gr.State([]))


def _build_criteria(label: str) -> tuple[gr.Dropdown, gr.Dropdown]:
    titles: list[tuple[str, str | int | float]] = [
        (criterion.title, name) for name, criterion in CRITERIA.items() if not criterion.gated_only
    ]
    with gr.Row():
        one = gr.Dropdown(titles, value=DEFAULT_CRITERION, label=label, min_width=240)
        other = gr.Dropdown(titles, value=OTHER_CRITERION, label="Compared with", min_width=240)
    return one, other


def draw_importance(scores: ImportanceMap) -> str:
    """Return the chart of an importance map."""
    titles = (CRITERIA[name].title for name in scores.criteria)
    return charts.importance_map(scores.rows, scores.shared, scores.fraction, *titles)


def draw_sweep(points: Sequence[SweepPoint], criteria: Sequence[str]) -> str:
    """Draw quality against size: for each criterion its models, joined by a line.

    Args:
        points: The models measured so far.
        criteria: The criteria that are compared.
    """
    one, *others = (
        Series(CRITERIA[criterion].title, [_point(point) for point in points if point.criterion == criterion])
        for criterion in dict.fromkeys(criteria)
    )
    # The second color is the original's in every chart; a sweep does not measure it.
    return plot([one, Series("original", ()), *others], SIZE, QUALITY, "Quality against size")


def _point(point: SweepPoint) -> tuple[float, float, str]:
    title = CRITERIA[point.criterion].title
    return point.parameters / 1e6, point.perplexity, f"{title}, {point.fraction:.0%} removed"


def _rows(points: Sequence[SweepPoint]) -> list[list[str]]:
    return [
        [
            f"{point.fraction:.0%}",
            CRITERIA[point.criterion].title,
            f"{point.parameters:,}",
            format_number(point.perplexity),
        ]
        for point in points
    ]


def _calibration(text: object, custom_text: object, tokens: object, seed: object) -> tuple[Calibration, int]:
    return calibration_from(text, custom_text, tokens), to_integer(seed, "seed")


def _fraction(percent: object) -> float:
    return percent / 100 if isinstance(percent, int | float) and 0 < percent < 100 else FIRST_FRACTION
