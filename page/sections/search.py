"""Target a size: a search over combinations of cuts, its trials as they are measured, and the chosen one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import gradio as gr
import pandas as pd

from page.html import render
from page.sections.controls import draw_recipe, follow_recipe
from page.sections.events import Part, Updates, on_event, on_start
from page.sections.section import Page
from page.server.form import calibration_from, to_integer
from page.server.jobs import run_job
from page.server.look_ups import look_up
from page.server.session import job_name, visitor_of
from page.workers.messages import Done, Partial
from page.workers.tasks import SearchTask, Task
from page.workers.workbench import Visitor
from pruning import Recipe
from pruning.shape_search.search import SearchResult, Trial

COLUMNS = ["Parameters, millions", "Perplexity", "Cut"]
MAX_RATIO = 12
"""Models with more than this many times the lowest perplexity would press all others to the bottom."""


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
        plot: Quality against size.
        table: The same as rows.
        recipes: The recipe of each row.
    """

    column: gr.Column
    plot: gr.ScatterPlot
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
        plot = gr.ScatterPlot(
            x=COLUMNS[0],
            y=COLUMNS[1],
            color=COLUMNS[2],
            title="Quality against size",
            height=260,
            tooltip="all",
        )
        table = gr.Dataframe(
            headers=["Cut", "Parameters", "Perplexity"],
            interactive=False,
            label="All models tried. Click a row to use its recipe.",
            max_height=220,
            elem_id="points",
        )
    return SearchResults(column, plot, table, gr.State([]))


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
                    return {results.plot: to_frame(trials), results.table: to_rows(trials)}
                case Done(SearchResult() as result):
                    return _show_result(page, results, result, visitor)
            return {}

        yield {results.column: gr.Column(visible=True)}
        yield from job.follow(run_job(tasks, visitor, job_name(request)), show)

    def choose(
        request: gr.Request, token: gr.OAuthToken | None, recipes: Sequence[Recipe], event: gr.SelectData
    ) -> Updates:
        try:
            recipe = recipes[event.index[0]]
        except (IndexError, TypeError):
            return {page.controls.recipe: gr.skip()}
        return _use(page, recipe, visitor_of(request, token))

    on_start(
        [controls.start.click, controls.budget.submit],
        search,
        [controls.budget, *page.controls.calibration_inputs],
        [*job.outputs, results.column, results.plot, results.table, results.recipes, *_used(page)],
        job.status,
    )
    on_event([results.table.select], choose, [results.recipes], _used(page))


def _show_result(
    page: Page, results: SearchResults, result: SearchResult, visitor: Visitor
) -> dict[Part, object]:
    cuts = result.chosen.candidate.description
    line = f"Best of {result.shapes_considered:,} combinations: remove {cuts}. Press Prune to build it."
    return _use(page, result.chosen.recipe, visitor) | {
        results.plot: to_frame(result.trials, result),
        results.table: to_rows(result.trials),
        results.recipes: [trial.recipe.without_custom_text() for trial in result.trials],
        page.results.job.status: render.status(line, kind="done"),
    }


def _use(page: Page, recipe: Recipe, visitor: Visitor) -> dict[Part, object]:
    """Return the updates after which Prune follows a recipe of the search."""
    picture = draw_recipe(recipe, look_up(recipe.base, visitor))
    return follow_recipe(page.controls, recipe) | {page.results.picture: picture}


def _used(page: Page) -> list[Part]:
    panel = page.controls
    return [panel.recipe, panel.recipe_note, panel.note, page.results.picture]


def to_frame(trials: Sequence[Trial], result: SearchResult | None = None) -> pd.DataFrame:
    """Return quality against size, as rows for the plot."""
    rows = [(trial.candidate.parameters / 1e6, trial.perplexity, _series(trial, result)) for trial in trials]
    if result is not None:
        rows += [(size / 1e6, perplexity, "predicted") for size, perplexity in result.curve]
    best = min(perplexity for _, perplexity, _ in rows)
    return pd.DataFrame([row for row in rows if row[1] <= MAX_RATIO * best], columns=COLUMNS)


def _series(trial: Trial, result: SearchResult | None) -> str:
    if result is not None and trial == result.chosen:
        return "chosen"
    return f"{trial.candidate.single} alone" if trial.candidate.single else "mixed"


def to_rows(trials: Sequence[Trial]) -> list[list[str]]:
    """Return the same as rows of a table: what was cut, parameters, perplexity."""
    return [
        [trial.candidate.title, f"{trial.candidate.parameters:,}", f"{trial.perplexity:.1f}"]
        for trial in trials
    ]
