"""Target a size: a search over combinations of cuts, its trials as they are measured, and the chosen one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import gradio as gr

from page.html import render
from page.html.plot import Axis, Series, plot
from page.sections.controls import follow_recipe
from page.sections.events import Part, Updates, on_event, on_start
from page.sections.picture import draw_steps
from page.sections.section import Page
from page.server.form import calibration_from, to_integer
from page.server.jobs import run_job
from page.server.look_ups import look_up
from page.server.session import job_name, visitor_of
from page.workers.messages import Done, Partial
from page.workers.tasks import SearchTask, Task
from page.workers.workbench import Visitor
from pruning import Recipe
from pruning.formatting import format_number
from pruning.shape_search.candidates import PRUNABLE_UNITS
from pruning.shape_search.search import SearchResult, Trial
from pruning.text.likelihood import perplexity_of

SIZE = Axis("Parameters, millions", format=lambda value: f"{value:,.0f}")
QUALITY = Axis("Perplexity on held-out calibration text (lower is better)", log=True)


@dataclass(frozen=True)
class SearchControls:
    """What to search for, in the left column."""

    budget: gr.Textbox
    start: gr.Button


@dataclass(frozen=True)
class SearchResults:
    """What was tried, in the right column.

    Attributes:
        column: Holds the others; it is shown with the first search.
        chart: Quality against size.
        table: The same as rows.
        recipes: The recipe of each row.
    """

    column: gr.Column
    chart: gr.HTML
    table: gr.Dataframe
    recipes: gr.State


def build_controls() -> SearchControls:
    """Lay out the choices of the search."""
    with gr.Accordion("Target a size", open=False, elem_id="target"):
        with gr.Row():
            budget = gr.Textbox(
                "25% smaller",
                label="Target size",
                info="Such as 30% smaller, 100M parameters, or 250MB on disk",
                max_length=40,
                elem_id="budget",
            )
        start = gr.Button("Search (takes a few minutes)", elem_id="search")
    return SearchControls(budget, start)


def build_results() -> SearchResults:
    """Lay out the trials."""
    with gr.Column(visible=False, elem_id="curve") as column:
        chart = gr.HTML(elem_id="trials", min_height=380)
        table = gr.Dataframe(
            headers=["Removed", "Parameters", "Perplexity", "Ratio"],
            type="array",
            interactive=False,
            label="All models tried. Click a row to use its recipe.",
            max_height=220,
            elem_id="points",
        )
    return SearchResults(column, chart, table, gr.State([]))


def wire(page: Page, controls: SearchControls, results: SearchResults) -> None:
    """Connect the search. It shares its buttons and its status line with Prune."""
    job = page.results.job

    def search(
        request: gr.Request,
        token: gr.OAuthToken | None,
        budget: object,
        model: str,
        text: object,
        custom_text: object,
        tokens: object,
        seed: object,
    ) -> Iterator[Updates]:
        visitor = visitor_of(request, token)
        trials: list[Trial] = []

        def tasks() -> list[Task]:
            calibration = calibration_from(text, custom_text, tokens)
            return [SearchTask(model, str(budget), calibration, to_integer(seed, "seed"))]

        def show(event: Partial | Done) -> Updates:
            match event:
                case Partial(Trial() as trial):
                    trials.append(trial)
                    return {results.chart: draw_trials(trials), results.table: to_rows(trials)}
                case Done(SearchResult() as result):
                    return _show_result(page, results, result, visitor)
            return {}

        yield {results.column: gr.Column(visible=True), results.chart: WAITING, results.table: []}
        yield from job.follow(run_job(tasks, visitor, job_name(request)), show)

    def choose(
        request: gr.Request,
        token: gr.OAuthToken | None,
        recipes: Sequence[Recipe | None],
        event: gr.SelectData,
    ) -> Updates:
        try:
            recipe = recipes[event.index[0]]
        except (IndexError, TypeError):
            recipe = None
        if recipe is None:  # The original model has no recipe.
            return {page.controls.recipe: gr.skip()}
        return _use(page, recipe, visitor_of(request, token))

    on_start(
        [controls.start.click, controls.budget.submit],
        search,
        [controls.budget, *page.controls.calibration_inputs],
        [*job.outputs, results.column, results.chart, results.table, results.recipes, *_used(page)],
    )
    on_event([results.table.select], choose, [results.recipes], _used(page))


def _show_result(
    page: Page, results: SearchResults, result: SearchResult, visitor: Visitor
) -> dict[Part, object]:
    cuts, size = (
        result.chosen.candidate.description,
        look_up(result.chosen.recipe.base, visitor).shape.parameters,
    )
    line = f"Best of {result.shapes_considered:,} combinations: remove {cuts}. Press Prune to build it."
    return _use(page, result.chosen.recipe, visitor) | {
        results.chart: draw_trials(result.trials, result, size),
        results.table: to_rows(result.trials, result, size),
        results.recipes: [None, *(trial.recipe.without_custom_text() for trial in result.trials)],
        page.results.job.status: render.status(line, kind="done"),
    }


def _use(page: Page, recipe: Recipe, visitor: Visitor) -> dict[Part, object]:
    """Return the updates after which Prune follows a recipe of the search."""
    picture = draw_steps(look_up(recipe.base, visitor), recipe.steps)
    return follow_recipe(page.controls, recipe) | {page.results.picture: picture}


def _used(page: Page) -> list[Part]:
    panel = page.controls
    return [panel.recipe, panel.recipe_note, panel.note, page.results.picture]


def draw_trials(trials: Sequence[Trial], result: SearchResult | None = None, size: int = 0) -> str:
    """Draw quality against size: every trial, and once there is a result the chosen one, the base and the forecast.

    Args:
        trials: What was tried.
        result: The result; None while the search runs.
        size: The parameters of the base.
    """
    kinds: dict[str, list[tuple[float, float, str]]] = {title: [] for title in _KINDS}
    for trial in trials:
        kind = f"{trial.candidate.single} alone" if trial.candidate.single else MIXED
        kinds.setdefault(kind, []).append(_point(trial))
    chosen = [] if result is None else [_point(result.chosen)]
    original = [] if result is None else [(size / 1e6, perplexity_of(result.base_loss), "Original model")]
    # The forecast of models smaller than any that was tried would leave no room for those.
    least = min((trial.candidate.parameters for trial in trials), default=0)
    curve = [] if result is None else result.curve
    forecast = [(size / 1e6, perplexity) for size, perplexity in curve if size >= least]
    series = [
        Series("chosen", chosen, large=True),
        Series("original", original, large=True),
        *(Series(kind, points) for kind, points in kinds.items()),
        Series("predicted", forecast, line=True),
    ]
    return plot(series, SIZE, QUALITY, "Quality against size")


WAITING = (
    '<p class="note">Each model that the search tries appears here, and below as a row of the table.</p>'
)

MIXED = "several kinds"
_KINDS = (MIXED, *(f"{unit.title} alone" for unit in PRUNABLE_UNITS))


def _point(trial: Trial) -> tuple[float, float, str]:
    return trial.candidate.parameters / 1e6, trial.perplexity, trial.title


def to_rows(trials: Sequence[Trial], result: SearchResult | None = None, size: int = 0) -> list[list[str]]:
    """Return the same as rows of a table: what was removed, parameters, perplexity, and its ratio to the original's.

    Args:
        trials: What was tried.
        result: The result; None while the search runs.
        size: The parameters of the base.
    """
    base = None if result is None else perplexity_of(result.base_loss)
    rows = [
        [
            trial.title,
            f"{trial.candidate.parameters:,}",
            format_number(trial.perplexity),
            "" if base is None else f"× {format_number(trial.perplexity / base, 2)}",
        ]
        for trial in trials
    ]
    if result is None or base is None:
        return rows
    return [["Nothing (original model)", f"{size:,}", format_number(base), ""], *rows]
