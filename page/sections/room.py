"""Rooms for classes: open one, enter one by its link, and follow its teacher while the page is open.

The address of the page says in which room it is. So a page that was reloaded, or whose phone was locked, is back in it
with its next call.
"""

import time
from dataclasses import dataclass

import gradio as gr

from page.html import render
from page.sections.course import PARAMETER, CourseTab, lesson_of_link
from page.sections.events import Part, Updates, on_browser_event, on_event
from page.sections.room_board import Shown
from page.server import links
from page.server.rooms import MAX_NAME, NotOpen, RoomError, RoomFull, Visit
from page.server.session import rooms, session_of
from pruning.lessons import LESSONS

NOT_THE_TEACHERS = "This is not the link of the room's teacher. You are in the room as a student."

ENTER = f"""() => [
    window.secateur?.seat() ?? "",
    new URLSearchParams(location.search).has("{links.ROOM}") ? "enter" : "",
]"""
"""Names the tab of the browser, and has the page enter the room in its address, if there is one."""


@dataclass(frozen=True)
class OpeningPart:
    """Where a room is opened.

    Attributes:
        box: What holds the others.
        name: What the room is to be called.
        start: The button that opens it.
        status: Why it was not opened.
    """

    box: gr.Accordion
    name: gr.Textbox
    start: gr.Button
    status: gr.HTML


def build() -> OpeningPart:
    """Lay the part out, folded up."""
    with gr.Accordion("Teach a class", open=False, elem_id="class") as box:
        gr.HTML(
            render.message(
                "Open a room and give your students its link. Their pages follow your lesson and your runs, and you "
                "reveal what they predict. No names are asked for, and nothing is kept after the last page is closed."
            )
        )
        name = gr.Textbox(
            label="Name of the room",
            info="Students see it",
            max_lines=1,
            max_length=MAX_NAME,
            elem_id="room-name",
        )
        start = gr.Button("Open a room", elem_id="open-room")
        status = gr.HTML(elem_id="room-status")
    return OpeningPart(box, name, start, status)


def wire(demo: gr.Blocks, tabs: gr.Tabs, course: CourseTab, opening: OpeningPart) -> None:
    """Connect the links to rooms, the button that opens one, the calls of the pages in one, and Reveal.

    The handlers wait for nothing and are called in the page's event loop: a room takes no thread.
    """
    board = course.room
    # When this changes, the page asks for everything about its room. It is outside the tabs, so it loads at once.
    news = gr.Textbox(visible="hidden", max_length=40)

    async def open_room(request: gr.Request, name: object, chosen: object) -> Updates:
        try:
            view = rooms.open(name, session_of(request), str(chosen))
        except RoomError as error:
            return {opening.status: render.message(str(error), "warning")}
        closed: dict[Part, object] = {
            opening.box: gr.Accordion(open=False),
            opening.name: "",
            opening.status: "",
        }
        return closed | board.show(view, view.lesson, Shown(), request)

    async def call_room(
        request: gr.Request, chosen: object, prediction: object, seat: object, shown: object
    ) -> Updates:
        # Each output takes Gradio about a millisecond, even if it does not change. So this call returns what
        # changes often, and another call returns the rest.
        before = Shown.parse(shown)
        updates = visit(request, str(chosen), prediction, seat, before)
        if updates and Shown.parse(updates[board.shown]).frame != before.frame:
            return {news: f"{time.monotonic_ns()}"}
        return {part: updates[part] for part in (board.drawn, board.shown) if part in updates} or {
            news: gr.skip()
        }

    async def update_room(
        request: gr.Request, chosen: object, prediction: object, seat: object, shown: object
    ) -> Updates:
        before = Shown.parse(shown)
        if before != Shown():
            return visit(request, str(chosen), prediction, seat, before) or {board.shown: gr.skip()}
        linked = lesson_of_link(request.query_params.get(PARAMETER, "")) or LESSONS[0].key
        entered: dict[Part, object] = {tabs: gr.Tabs(selected="course"), course.chosen: linked}
        return entered | visit(request, linked, None, seat, before)

    async def reveal(
        request: gr.Request, chosen: object, prediction: object, seat: object, shown: object
    ) -> Updates:
        query = request.query_params
        try:
            rooms.reveal(query.get(links.ROOM, ""), query.get(links.TEACHER, ""))
        except RoomError:
            return {board.shown: gr.skip()}
        return await update_room(request, chosen, prediction, seat, shown)

    def visit(
        request: gr.Request, chosen: str, prediction: object, seat: object, before: Shown
    ) -> dict[Part, object]:
        query = request.query_params
        name, secret = query.get(links.ROOM, ""), query.get(links.TEACHER, "")
        said = prediction if isinstance(prediction, str) else None
        try:
            view = rooms.visit(
                Visit(session_of(request), name, secret, str(seat or ""), chosen, said, before.lesson)
            )
        except RoomError as error:
            return board.show_message(str(error), before, waits=isinstance(error, NotOpen | RoomFull))
        follows = view.lesson not in (before.lesson, chosen)
        note = NOT_THE_TEACHERS if secret and not view.is_teacher else ""
        updates = board.show(view, view.lesson if follows else chosen, before, request, note)
        return updates | ({course.chosen: view.lesson} if follows else {})

    page = [course.chosen, course.text.prediction, board.seat, board.shown]
    on_event(
        [opening.start.click, opening.name.submit],
        open_room,
        [opening.name, course.chosen],
        [opening.box, opening.name, opening.status, *board.outputs],
    )
    on_event([board.timer.tick], call_room, page, [board.drawn, board.shown, news])
    on_event([news.change], update_room, page, [tabs, course.chosen, *board.outputs])
    on_event([board.reveal.click], reveal, page, [tabs, course.chosen, *board.outputs])
    demo.load(
        None,
        None,
        [board.seat, news],
        js=ENTER,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    on_browser_event(
        [board.teachers_link.change], "(link) => window.secateur?.showRoom(link)", [board.teachers_link]
    )
