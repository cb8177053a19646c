"""Aim for a size: a search over mixes of cuts, its points as they are measured, and the one it chooses."""

from contextlib import closing

import gradio as gr
import pandas as pd

from page.html import model_map, render
from page.sections.controls import Column
from page.sections.form import calibration_from, whole
from page.sections.prune import Desk
from page.server.session import jobs, started, told, visitor_of, workbench
from pruning.architectures.shape import Shape
from pruning.errors import Cancelled
from pruning.progress import Progress
from pruning.shape_search.search import SearchResult, Trial

COLUMNS = ["Parameters, millions", "Perplexity", "Cut"]


def build(column: Column, desk: Desk, plot: gr.LinePlot, table: gr.Dataframe, section: gr.Column) -> None:
    """Lay out the choices of the search and connect them to its results."""
    found = gr.State([])
    with gr.Row():
        budget = gr.Textbox(
            "25% smaller",
            label="Aim for",
            info="Such as 30% smaller, 100M parameters, or 250MB on disk",
            max_length=40,
            elem_id="budget",
        )
    find = gr.Button("Find the best mix", elem_id="find")

    def search(request: gr.Request, token: gr.OAuthToken | None, model, text, own, tokens, seed, aim):
        name, job = started(request)
        visitor = visitor_of(request, token)
        yield {
            desk.prune: gr.Button(visible=False),
            desk.stop: gr.Button(visible=True),
            section: gr.Column(visible=True),
        }
        points: list[Trial] = []
        try:
            calibration = calibration_from(text, own, tokens)

            def work(tell):
                with closing(
                    workbench.iter_search(model, str(aim), calibration, whole(seed, "seed"), visitor, tell)
                ) as told_points:
                    for point in told_points:
                        tell(point)

            for event in job.watch(work):
                if isinstance(event, Progress):
                    yield {desk.status: render.status(event.text, event.done, event.total, "busy")}
                elif isinstance(event, Trial):
                    points.append(event)
                    yield {plot: drawn(points), table: listed(points)}
                elif isinstance(event, SearchResult):
                    yield _chosen(event, request, token)
        except Cancelled as stopped:
            yield {desk.status: render.status(str(stopped), kind="stopped")}
        except Exception as error:
            yield {desk.status: render.status(told(error), kind="failed")}
        finally:
            jobs.finish(name, job)
        yield {desk.prune: gr.Button(visible=True), desk.stop: gr.Button(visible=False)}

    def _chosen(result: SearchResult, request, token) -> dict:
        before, source = workbench.look(result.chosen.recipe.base, visitor_of(request, token))
        note, drawing = given(result.chosen.recipe, before, source)
        return {
            plot: drawn(result.trials, result),
            table: listed(result.trials),
            found: [point.recipe for point in result.trials],
            column.given: result.chosen.recipe,
            column.given_note: note,
            column.note: "",
            desk.picture: drawing,
            desk.status: render.status(
                f"Best of {result.shapes_considered:,} shapes: remove "
                f"{result.chosen.candidate.description}. Press Prune.",
                kind="done",
            ),
        }

    def pick(request: gr.Request, token: gr.OAuthToken | None, recipes, event: gr.SelectData) -> tuple:
        try:
            recipe = recipes[event.index[0]]
            before, source = workbench.look(recipe.base, visitor_of(request, token))
            note, drawing = given(recipe, before, source)
            return recipe, note, "", drawing
        except (IndexError, TypeError):
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()

    gr.on(
        [find.click, budget.submit],
        search,
        [column.model, column.text, column.own_text, column.tokens, column.seed, budget],
        [
            desk.prune,
            desk.stop,
            desk.status,
            desk.picture,
            plot,
            table,
            section,
            found,
            column.given,
            column.given_note,
            column.note,
        ],
        show_progress="minimal",
        show_progress_on=[desk.status],
        concurrency_limit=None,
        api_visibility="private",
    )
    table.select(
        pick,
        found,
        [column.given, column.given_note, column.note, desk.picture],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def given(recipe, before: Shape, source) -> tuple[str, str]:
    """The note on a recipe that is set as a whole, and the picture of its shape."""
    after = before
    for step in recipe.steps:
        after = step.reshape(after)
    note = render.recipe_note([step.describe() for step in recipe.steps])
    return note, model_map.draw_model(before, after, model_map.weights_origin(source))


def drawn(points: list[Trial], found: SearchResult | None = None) -> pd.DataFrame:
    """Quality against size, as rows for the plot."""
    rows = [(point.candidate.parameters / 1e6, point.perplexity, _series(point, found)) for point in points]
    if found is not None:
        rows += [(size / 1e6, value, "predicted") for size, value in found.curve]
    # A ruined model would press all others to the bottom.
    best = min(row[1] for row in rows)
    return pd.DataFrame([row for row in rows if row[1] <= 12 * best], columns=COLUMNS)


def _series(point: Trial, found: SearchResult | None) -> str:
    if found is not None and point is found.chosen:
        return "chosen"
    return f"{point.candidate.single} alone" if point.candidate.single else "mixed"


def listed(points: list[Trial]) -> list[list]:
    """The same for a table: what was cut, parameters, perplexity."""
    return [
        [point.candidate.title, f"{point.candidate.parameters:,}", f"{point.perplexity:.1f}"]
        for point in points
    ]
