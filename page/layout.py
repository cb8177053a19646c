"""Where the sections of the page stand.

To add a section below the results, write its file in `page/sections/` and add its `build` to `BELOW_RESULTS`.
"""

import gradio as gr

from page.html.first_look import first_look
from page.sections import (
    address,
    controls,
    course,
    distill,
    export,
    first_visit,
    inspect,
    live,
    picture,
    press_layers,
    prune,
    recipe_box,
    results,
    room,
    search,
)
from page.sections.section import Page
from page.server import api
from page.server.blocks import Blocks
from page.server.disconnect import on_disconnect
from page.server.front_page import DESCRIPTION, NAME
from page.server.warm_up import WarmUp

BELOW_RESULTS = (distill.build, inspect.build, export.build)

TITLE = f'<header class="head"><h1>{NAME}</h1><p>{DESCRIPTION}</p></header>'
HEADER = (
    f"{TITLE}"
    # The one live region of the page: `page.js` writes each new stage of a job into it.
    '<div id="announcements" role="status" class="screen-reader-only"></div>'
)


TABS = ("Prune", "Course")
FIRST_LOOK = ("picture", "result-heading", "texts", "measures", "genres", "abilities")
"""The components that are shown before Gradio has drawn the page."""


def build_page(warm_up: WarmUp) -> gr.Blocks:
    """Lay the page out and connect its sections.

    Args:
        warm_up: The work at the start, which the first visitors see.
    """
    with Blocks(title="Secateur", analytics_enabled=False, delete_cache=(3600, 7200)) as demo:
        api.register()  # First, so that no handler of the page takes the name of one of its functions.
        gr.HTML(HEADER)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab(TABS[0], id="prune") as prune_tab, gr.Row(elem_classes="desk"):
                with gr.Column(scale=4, min_width=320, elem_classes="choices"):
                    first = controls.build_first()
                    job = results.build_job()
                    panel = controls.build(first)
                    search_controls = search.build_controls()
                    box = recipe_box.build()
                with gr.Column(scale=7, min_width=320, elem_classes="results"):
                    drawn = picture.build()
                    search_results = search.build_results()
                    pane = results.build(job, drawn)
                    sections = tuple(build() for build in BELOW_RESULTS)
            with gr.Tab(TABS[1], id="course") as lessons_tab:
                course_tab = course.build()
                following = gr.Button("Next lesson", elem_id="next-lesson")
                opening = room.build()
        address.build_footer()
        page = Page(panel, pane, sections)
        controls.wire(panel, drawn)
        press_layers.wire(panel, drawn)
        prune.wire(page)
        live.wire(page)
        pane.abilities.wire(pane.recipe, pane.report, panel.calibration.custom_text, pane.measures)
        search.wire(page, search_controls, search_results)
        recipe_box.wire(page, box)
        for section in sections:
            section.wire(page)
        course.wire(course_tab)
        first_visit.wire(demo, tabs, page, course_tab, warm_up)
        room.wire(demo, tabs, course_tab, opening)
        address.wire(demo, tabs, prune_tab, lessons_tab, course_tab, following)
        demo.unload(on_disconnect)
    return demo


def first_look_of(demo: gr.Blocks) -> str:
    """Return what a visitor sees until Gradio has drawn a page."""
    parts = {getattr(part, "elem_id", None): part for part in demo.blocks.values()}
    values = [(name, str(getattr(parts[name], "value", None) or "")) for name in FIRST_LOOK]
    return first_look(TITLE, TABS, values)
