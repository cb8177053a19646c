"""The address and the title of the window follow the tab and the lesson; the links at the foot of the page."""

import json
import os
from html import escape

import gradio as gr

from page.html import render
from page.sections.course import PARAMETER, CourseTab, lesson_of_link
from page.sections.events import Updates, on_event
from pruning.lessons import LESSONS

LICENSE = "https://www.apache.org/licenses/LICENSE-2.0"
PRIVACY = (
    "Prompts and texts of your own are used for your answers alone and deleted after your visit. The page loads "
    "nothing from other hosts and counts no visits."
)


def wire(
    demo: gr.Blocks, tabs: gr.Tabs, prune: gr.Tab, course: gr.Tab, lessons: CourseTab, following: gr.Button
) -> None:
    """Connect the tabs and the list of lessons to the address, and the button to the next lesson.

    Args:
        demo: The page.
        tabs: Its tabs.
        prune: The tab on which models are pruned.
        course: The tab of the course.
        lessons: What stands on that tab.
        following: The button that opens the next lesson.
    """
    titles = json.dumps({lesson.key: f"{lesson.number}. {lesson.title}" for lesson in LESSONS})
    show = f"(key) => window.secateur?.showLesson(parseInt(key), ({titles})[key])"
    prune.select(None, js="() => window.secateur?.showPrune()", api_visibility="private")
    course.select(None, [lessons.chosen], js=show, api_visibility="private")
    lessons.chosen.change(None, [lessons.chosen], js=show, api_visibility="private")

    def show_unknown_lesson(request: gr.Request) -> Updates:
        asked = request.query_params.get(PARAMETER)
        if not asked or lesson_of_link(asked) is not None:
            return {tabs: gr.skip()}
        line = f"Lesson {asked[:20]!r} does not exist. The course has lessons 1 to {len(LESSONS)}; this is the first."
        return {tabs: gr.Tabs(selected="course"), lessons.status: render.status(line, kind="stopped")}

    on_event([demo.load], show_unknown_lesson, outputs=[tabs, lessons.status])
    on_event([following.click], next_lesson, [lessons.chosen], [lessons.chosen])


def next_lesson(key: object) -> object:
    """Return the key of the lesson after another one; the last one is followed by the first."""
    keys = [lesson.key for lesson in LESSONS]
    return keys[(keys.index(key) + 1) % len(keys)] if key in keys else keys[0]


def build_footer() -> None:
    """Lay out the links at the foot of the page."""
    links = {"License: Apache 2.0": LICENSE, "API": "?view=api"}
    if space := os.environ.get("SPACE_ID"):
        links = {"Source": f"https://huggingface.co/spaces/{space}/tree/main"} | links
    items = "".join(f'<a href="{escape(address)}">{name}</a>' for name, address in links.items())
    gr.HTML(
        f'<footer class="foot">{items}<details><summary>Privacy</summary><p>{PRIVACY}</p></details></footer>'
    )
