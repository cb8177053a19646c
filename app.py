"""The page: its parts put together. Every number and every model comes from `pruning/`."""

import logging
import os
import threading
from collections.abc import Iterator

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Two texts are written at once: threads that spin while they wait would starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import gradio as gr

from page.html import outputs, render
from page.html.theme import HEAD, THEME
from page.sections import controls, course
from page.sections import distill as teaching
from page.sections import export as taking
from page.sections import inspect as looking
from page.sections import prune as working
from page.sections import search as aiming
from page.sections.form import CONTROLS
from page.server import api, links
from page.server.middleware import closed_to_others
from page.server.session import LINE, ON_SPACE, left, log, told, visitor_of, workbench
from pruning import Neurons, PruningError, Recipe, catalog
from pruning.progress import Progress
from pruning.runtime import configure

ready, shape_known = threading.Event(), threading.Event()
preparing: list[Progress] = []


def default_recipe() -> Recipe:
    return Recipe(base=catalog.DEFAULT_MODEL, steps=[Neurons(fraction=0.2)])


def warm_up() -> None:
    """Load, calibrate and measure the default model, so that the first visitor need not wait."""

    def report(progress: Progress) -> None:
        preparing[:] = [progress]

    try:
        visitor = visitor_of(None, None)
        workbench.base(catalog.DEFAULT_MODEL, visitor, progress=report)
        shape_known.set()
        workbench.prepare(default_recipe(), visitor, report)
    except PruningError as error:
        log.warning("the default model is not ready: %s", error)
    except Exception:
        log.exception("warming up failed")
    finally:
        shape_known.set()
        ready.set()


def first_look(request: gr.Request, token: gr.OAuthToken | None) -> Iterator[dict]:
    """What a visitor finds: the default model or the recipe of the link, or what it is still waiting for."""
    note = ""
    while not ready.wait(timeout=0.5):
        shown = preparing[-1] if preparing else Progress("Loading the model")
        note = render.status(shown.text, shown.done, shown.total, "busy")
        if shape_known.is_set():
            break
        yield {desk.status: note}
    drawn, count, *_ = controls.show_shape(
        request, token, catalog.DEFAULT_MODEL, *(control.start for control in CONTROLS)
    )
    sliders = [v for control, v in zip(CONTROLS, column.values, strict=True) if control.slides]
    yield {
        desk.picture: drawn,
        column.note: count,
        desk.status: render.status("Ready. Move the slider, then press Prune."),
        **dict(zip(sliders, controls.fit_sliders(catalog.DEFAULT_MODEL, request, token), strict=True)),
    }
    if value := request.query_params.get(links.PARAMETER):
        yield opened(lambda: links.decode(value), request, token)


def opened(read, request: gr.Request, token: gr.OAuthToken | None) -> dict:
    """Set the page to a recipe."""
    try:
        recipe = read()
        before, source = workbench.look(recipe.base, visitor_of(request, token))
        _, drawn = aiming.given(recipe, before, source)
        values, note = controls.opening(recipe, before)
        return {
            **dict(zip(column.opened, values, strict=True)),
            column.note: note,
            desk.picture: drawn,
            desk.status: render.status("The recipe is set. Press Prune."),
        }
    except Exception as error:
        return {desk.status: render.status(told(error), kind="failed")}


def open_written(text, request: gr.Request, token: gr.OAuthToken | None) -> dict:
    """Set the page to a recipe that was pasted."""
    return opened(lambda: links.read(text), request, token)


def open_result(recipe, request: gr.Request, token: gr.OAuthToken | None) -> dict:
    """Take the recipe of a lesson to the Prune tab."""
    if not isinstance(recipe, Recipe):
        return {tabs: gr.skip()}
    return {tabs: gr.Tabs(selected="prune")} | opened(lambda: recipe, request, token)


def open_lesson(request: gr.Request) -> tuple:
    """The lesson that the link names, if it names one."""
    key = course.key_of(request.query_params.get(course.PARAMETER, ""))
    return (gr.Tabs(selected="course"), key) if key else (gr.skip(), gr.skip())


with gr.Blocks(title="Secateur", analytics_enabled=False, delete_cache=(3600, 7200)) as demo:
    api.offer()  # First, so that its functions have their own names.
    made = gr.State(None)
    gr.HTML(
        '<header class="head"><h1>Secateur</h1><p>Cut parts out of a real language model, and read '
        "what it still says.</p></header>"
    )
    with gr.Tabs(elem_id="tabs") as tabs:
        with gr.Tab("Prune", id="prune"), gr.Row(elem_classes="desk"):
            with gr.Column(scale=4, min_width=320, elem_classes="choices"):
                column = controls.build()
                prune_button = gr.Button("Prune", variant="primary", elem_id="prune")
                stop_button = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
                status = gr.HTML(render.status(), elem_id="status", min_height=44)
                aim = gr.Accordion("Aim for a size", open=False, elem_id="aim")
                with gr.Accordion("Start from a recipe", open=False, elem_id="from-recipe"):
                    written = gr.Textbox(
                        label="Recipe",
                        info="In YAML or JSON, as every result here carries one",
                        lines=6,
                        max_lines=14,
                        max_length=links.LONGEST,
                        elem_id="recipe-text",
                    )
                    use = gr.Button("Use this recipe", elem_id="use-recipe")
            with gr.Column(scale=7, min_width=320, elem_classes="results"):
                picture = gr.HTML(elem_id="picture", min_height=230)
                with gr.Column(visible=False, elem_id="curve") as curve:
                    plot = gr.ScatterPlot(
                        x=aiming.COLUMNS[0],
                        y=aiming.COLUMNS[1],
                        color=aiming.COLUMNS[2],
                        title="Quality against size",
                        height=260,
                        tooltip="all",
                    )
                    points = gr.Dataframe(
                        headers=["Cut", "Parameters", "Perplexity"],
                        interactive=False,
                        label="Every model that was tried; press a row to take its recipe",
                        max_height=220,
                        elem_id="points",
                    )
                texts = gr.HTML(outputs.text_pair_placeholder(), elem_id="texts", min_height=180)
                measures = gr.HTML(elem_id="measures", min_height=150)
                genres = gr.HTML(elem_id="genres", min_height=190)
                teach, lesson = teaching.build(column, made)
                closer = looking.build(column, made)
                take = taking.build(made)
        with gr.Tab("Course", id="course"):
            lessons = course.build()
    desk = working.Desk(
        prune_button,
        stop_button,
        status,
        picture,
        texts,
        measures,
        genres,
        made,
        take.recipe_code,
        take.python_code,
        take.link,
        (teach, closer, take.section),
        take.stale,
    )
    controls.wire(column, picture)
    working.wire(column, desk)
    teaching.wire(column, desk, lesson)
    with aim:
        aiming.build(column, desk, plot, points, curve)
    set_by_recipe = [*column.opened, column.note, picture, status]
    use.click(
        open_written,
        written,
        set_by_recipe,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    demo.load(
        first_look,
        None,
        set_by_recipe,
        show_progress="hidden",
        concurrency_limit=None,
        api_visibility="private",
    )
    course.wire(lessons)
    lessons.open.click(
        open_result,
        lessons.recipe,
        [tabs, *set_by_recipe],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    demo.load(
        open_lesson,
        None,
        [tabs, lessons.chosen],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    demo.unload(left)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for noisy in ("httpx", "httpx2", "mcp"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    configure()
    threading.Thread(target=warm_up, daemon=True).start()
    # Who may wait is for the lines to say: here is only a bound on everything together.
    demo.queue(max_size=10 * LINE, api_open=False).launch(
        theme=THEME,
        head=HEAD,
        server_name=None if ON_SPACE else "127.0.0.1",
        server_port=int(os.environ.get("PORT", 7860)) if not ON_SPACE else None,
        ssr_mode=False,
        footer_links=[],
        show_error=True,
        mcp_server=True,
        max_threads=4 * LINE,
        enable_monitoring=False,
        app_kwargs={"middleware": closed_to_others(demo)},
    )


if __name__ == "__main__":
    main()
