"""Look closer: next words, loss word by word, importance layer by layer, quality against size."""

from collections.abc import Iterator
from contextlib import closing

import gradio as gr
import pandas as pd

from page.html import charts, render
from page.sections.controls import Column
from page.sections.form import calibration_from, whole
from page.server.session import jobs, started, told, visitor_of, workbench
from pruning import Recipe
from pruning.criteria import CRITERIA, DEFAULT_CRITERION
from pruning.errors import Cancelled, RecipeError
from pruning.evaluation.inspection import LONGEST_TEXT, losses_by_token, next_tokens
from pruning.formatting import format_number
from pruning.progress import Progress

FIRST_TEXT = (
    "The old lighthouse stood at the end of the pier. Every evening the keeper climbed its ninety-nine "
    "steps, lit the lamp, and watched the ships pass on their way to the harbour."
)
RANKING = [(entry.title, name) for name, entry in CRITERIA.items() if not entry.gated_only]
CURVE = ["Parameters, millions", "Perplexity", "Importance"]


def build(column: Column, made: gr.State) -> gr.Column:
    """Lay the section out; it opens with the first results. `made`: the recipe of the results shown."""
    with gr.Column(visible=False, elem_id="closer") as section:
        gr.HTML("<h2>Look closer</h2>")
        with gr.Tabs():
            with gr.Tab("Next word"):
                prompt = gr.Textbox(
                    "Paris is the capital of", label="Text so far", max_length=2_000, elem_id="next-prompt"
                )
                next_button = gr.Button("Show the ten likeliest next words", elem_id="next")
                next_words = gr.HTML(elem_id="next-words", min_height=60)
            with gr.Tab("Word by word"):
                text = gr.Textbox(
                    FIRST_TEXT, label="Text", lines=3, max_length=LONGEST_TEXT, elem_id="loss-text"
                )
                loss_button = gr.Button("Show where the models lose", elem_id="losses")
                losses = gr.HTML(elem_id="loss-words", min_height=60)
            with gr.Tab("Importance"):
                with gr.Row():
                    one = gr.Dropdown(
                        RANKING, value=DEFAULT_CRITERION, label="Importance of a neuron", min_width=160
                    )
                    other = gr.Dropdown(RANKING, value="peak_to_peak", label="Compared with", min_width=160)
                importance_button = gr.Button("Draw every layer", elem_id="importance")
                importance = gr.HTML(elem_id="importance-map", min_height=60)
            with gr.Tab("Layers"):
                layers_button = gr.Button("Measure how much each layer changes", elem_id="influence")
                layers = gr.BarPlot(
                    x="Layer", y="Block influence", visible=False, height=240, sort="x", tooltip="all"
                )
                layers_table = gr.HTML(elem_id="influence-table")
            with gr.Tab("Quality against size"):
                gr.HTML(
                    '<p class="note">Cuts a growing share of the MLP neurons, ranked in two ways, and '
                    "measures each model on held-out text.</p>"
                )
                with gr.Row():
                    first = gr.Dropdown(RANKING, value=DEFAULT_CRITERION, label="Importance", min_width=160)
                    second = gr.Dropdown(RANKING, value="peak_to_peak", label="Compared with", min_width=160)
                curve_button = gr.Button("Draw the curve", elem_id="sweep")
                curve = gr.LinePlot(
                    x=CURVE[0],
                    y=CURVE[1],
                    color=CURVE[2],
                    height=280,
                    visible=False,
                    tooltip="all",
                    elem_id="sweep-plot",
                )
                rows = gr.Dataframe(
                    headers=["Cut", "Importance", "Parameters", "Perplexity"],
                    interactive=False,
                    visible=False,
                    max_height=240,
                    label="The same as a table; press a row to take its recipe",
                    elem_id="sweep-rows",
                )
                recipes = gr.State([])
        status = gr.HTML(elem_id="closer-status", min_height=40)

    def looked(request: gr.Request, token: gr.OAuthToken | None, work) -> Iterator[tuple[object, str]]:
        """Run `work(visitor, tell)` in its turn; yield each result with a status line."""
        name, job = started(request, "look")
        visitor = visitor_of(request, token)
        try:
            for event in job.watch(lambda tell: work(visitor, tell)):
                if isinstance(event, Progress):
                    yield None, render.status(event.text, event.done, event.total, "busy")
                elif isinstance(event, tuple):
                    yield event[0], ""
                else:
                    yield event, gr.skip()
        except Cancelled as stopped:
            yield None, render.status(str(stopped), kind="stopped")
        except Exception as error:
            yield None, render.status(told(error), kind="failed")
        finally:
            jobs.finish(name, job)

    def show_next(request: gr.Request, token: gr.OAuthToken | None, recipe, prompt) -> Iterator[dict]:
        def work(visitor, tell):
            base, pruned = workbench.pair(_made(recipe), visitor, tell)
            return charts.next_token_chart(next_tokens(base, prompt), next_tokens(pruned, prompt))

        for shown, line in looked(request, token, work):
            yield {status: line} | ({next_words: shown} if shown else {})

    def show_losses(request: gr.Request, token: gr.OAuthToken | None, recipe, text) -> Iterator[dict]:
        def work(visitor, tell):
            return charts.token_loss_chart(
                losses_by_token(workbench.pair(_made(recipe), visitor, tell), text)
            )

        for shown, line in looked(request, token, work):
            yield {status: line} | ({losses: shown} if shown else {})

    def show_importance(request: gr.Request, token: gr.OAuthToken | None, *values) -> Iterator[dict]:
        *chosen, one, other, percent = values

        def work(visitor, tell):
            model, calibration, seed = _chosen(*chosen)
            share = _share(percent)
            return charts.importance_map(
                *workbench.importances(model, (one, other), share, calibration, seed, visitor, tell),
                share,
                CRITERIA[one].title,
                CRITERIA[other].title,
            )

        for shown, line in looked(request, token, work):
            yield {status: line} | ({importance: shown} if shown else {})

    def show_layers(request: gr.Request, token: gr.OAuthToken | None, *chosen) -> Iterator[dict]:
        def work(visitor, tell):
            model, calibration, seed = _chosen(*chosen)
            return workbench.influences(model, calibration, seed, visitor, tell)

        for shown, line in looked(request, token, work):
            if shown:
                frame = pd.DataFrame({"Layer": range(len(shown)), "Block influence": shown})
                yield {
                    status: line,
                    layers: gr.BarPlot(frame, visible=True),
                    layers_table: charts.influence_table(shown),
                }
            else:
                yield {status: line}

    def show_curve(request: gr.Request, token: gr.OAuthToken | None, *values) -> Iterator[dict]:
        *chosen, one, other = values
        points: list = []

        def work(visitor, tell):
            model, calibration, seed = _chosen(*chosen)
            with closing(
                workbench.iter_sweep(model, dict.fromkeys((one, other)), calibration, seed, visitor, tell)
            ) as told_points:
                for point in told_points:
                    tell([point])

        for shown, line in looked(request, token, work):
            points += shown or []
            if not points:
                yield {status: line}
                continue
            frame = pd.DataFrame(
                [(p.parameters / 1e6, p.perplexity, CRITERIA[p.criterion].title) for p in points],
                columns=CURVE,
            )
            yield {
                status: line,
                curve: gr.LinePlot(frame, visible=True),
                rows: gr.Dataframe(
                    [
                        [
                            f"{p.fraction:.0%}",
                            CRITERIA[p.criterion].title,
                            f"{p.parameters:,}",
                            format_number(p.perplexity),
                        ]
                        for p in points
                    ],
                    visible=True,
                ),
                recipes: [p.recipe for p in points],
            }

    def take_row(recipes, event: gr.SelectData) -> tuple:
        try:
            recipe = recipes[event.index[0]]
        except (IndexError, TypeError):
            return gr.skip(), gr.skip()
        return recipe, render.recipe_note([step.describe() for step in recipe.steps])

    queued = {
        "show_progress": "hidden",
        "concurrency_limit": None,
        "api_visibility": "private",
    }
    source = [column.model, column.text, column.own_text, column.tokens, column.seed]
    gr.on([next_button.click, prompt.submit], show_next, [made, prompt], [status, next_words], **queued)
    loss_button.click(show_losses, [made, text], [status, losses], **queued)
    importance_button.click(
        show_importance, [*source, one, other, column.values[0]], [status, importance], **queued
    )
    layers_button.click(show_layers, source, [status, layers, layers_table], **queued)
    curve_button.click(show_curve, [*source, first, second], [status, curve, rows, recipes], **queued)
    rows.select(
        take_row,
        recipes,
        [column.given, column.given_note],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return section


def _made(recipe: Recipe | None) -> Recipe:
    if recipe is None:
        raise RecipeError("There is nothing to look at yet: press Prune first.")
    return recipe


def _chosen(model, text, own, tokens, seed) -> tuple:
    return model, calibration_from(text, own, tokens), whole(seed, "seed")


def _share(percent) -> float:
    return percent / 100 if isinstance(percent, int | float) and 0 < percent < 100 else 0.2
