"""What a page that is in a room shows of its class, below the prediction of the lesson."""

from dataclasses import dataclass
from zlib import crc32

import gradio as gr

from page.html import render
from page.html.room import draw_room
from page.sections.events import Part
from page.server import links
from page.server.rooms import CALL_SECONDS, WAITING_SECONDS, View
from pruning.lessons import BY_KEY

LIVE = "live"


@dataclass(frozen=True)
class Shown:
    """What of its room a page shows, as the page itself says with each call.

    Attributes:
        digest: Tells what it shows from anything else.
        frame: Tells from anything else what of that is not in the drawing.
        lesson: The lesson that the room followed then; empty if it showed no room.
        run: Which run of the teacher's it has followed.
    """

    digest: str = ""
    frame: str = ""
    lesson: str = ""
    run: int = 0

    @classmethod
    def parse(cls, text: object) -> "Shown":
        """Read what `str` wrote; anything else is nothing shown."""
        match str(text).split(" "):
            case [digest, frame, lesson, run] if lesson in BY_KEY and run.isdecimal() and len(run) < 10:
                return cls(digest, frame, lesson, int(run))
            case [digest, frame]:
                return cls(digest, frame)
        return cls()

    def __str__(self) -> str:
        room = f" {self.lesson} {self.run}" if self.lesson else ""
        return f"{self.digest} {self.frame}{room}"


@dataclass(frozen=True)
class RoomBoard:
    """The components that a class has on the page.

    Attributes:
        column: All that is seen of them, hidden outside of rooms.
        drawn: The question, the count and the bars.
        reveal: The teacher's button that shows the bars.
        links: The teacher's part with both links.
        students_link: The address for the class.
        teachers_link: The teacher's own, with the secret.
        shown: What the page shows of its room, as `Shown` writes it.
        seat: What the tab of the browser is called.
        started: Changes when the teacher runs the lesson; ends with "live" for a live run.
        timer: Has the page call while it is in a room.
    """

    column: gr.Column
    drawn: gr.HTML
    reveal: gr.Button
    links: gr.Column
    students_link: gr.Textbox
    teachers_link: gr.Textbox
    shown: gr.Textbox
    seat: gr.Textbox
    started: gr.Textbox
    timer: gr.Timer

    @property
    def outputs(self) -> list[Part]:
        """What `show` and `show_message` change."""
        teachers: list[Part] = [self.reveal, self.links, self.students_link, self.teachers_link]
        return [self.column, self.drawn, *teachers, self.shown, self.started, self.timer]

    def show(
        self, view: View, chosen: str, before: Shown, request: gr.Request, note: str = ""
    ) -> dict[Part, object]:
        """Return what a page shows of its room; nothing if it shows that already.

        Args:
            view: What it may show.
            chosen: The lesson that it shows.
            before: What it has shown so far.
            request: Its request.
            note: A sentence for this page alone.
        """
        lesson = BY_KEY[view.lesson]
        question, options = lesson.prediction
        is_elsewhere = chosen != view.lesson
        notes = [note] if note else []
        if is_elsewhere:
            notes += [f"The class is at another lesson: {lesson.number}. {lesson.title}.", question]
        # Where another lesson opens first, the next call follows the run.
        has_moved = before.lesson not in ("", view.lesson)
        run = before.run if has_moved else view.run
        frame = _digest(view.is_teacher, view.counts is None, view.seconds, view.lesson, run)
        shown = Shown(_digest(view, view.is_teacher, notes), frame, view.lesson, run)
        if shown == before:
            return {}
        updates: dict[Part, object] = {
            self.column: gr.Column(visible=True),
            self.drawn: draw_room(view.name, options, view.counts, view.answers, view.students, notes),
            self.reveal: gr.Button(visible=view.is_teacher and view.counts is None),
            self.links: gr.Column(visible=view.is_teacher),
            self.shown: str(shown),
            self.timer: gr.Timer(view.seconds, active=True),
        }
        if view.is_teacher:
            updates[self.students_link] = links.room_link(request, view.name)
            updates[self.teachers_link] = links.room_link(request, view.name, view.secret)
        elif before.lesson == view.lesson and view.run > before.run and not is_elsewhere:
            updates[self.started] = f"{view.run} {LIVE if view.live else 'recorded'}"
        return updates

    def show_message(self, text: str, before: Shown, waits: bool) -> dict[Part, object]:
        """Return a sentence in place of the room; nothing if it is shown already.

        Args:
            text: The sentence.
            before: What the page has shown so far.
            waits: Whether the page calls again.
        """
        shown = Shown(_digest(text), _digest(text))
        if shown == before:
            return {}
        return {
            self.column: gr.Column(visible=True),
            self.drawn: render.message(text, "note" if waits else "warning"),
            self.reveal: gr.Button(visible=False),
            self.links: gr.Column(visible=False),
            self.shown: str(shown),
            self.timer: gr.Timer(WAITING_SECONDS, active=waits),
        }


def _digest(*values: object) -> str:
    return f"{crc32(repr(values).encode()):x}"


def build() -> RoomBoard:
    """Lay the components out, hidden."""
    with gr.Column(visible=False, elem_id="room") as column:
        drawn = gr.HTML(elem_id="room-board")
        reveal = gr.Button("Reveal the predictions", visible=False, elem_id="room-reveal")
        with gr.Column(visible=False, elem_id="room-links") as both:
            students = gr.Textbox(
                label="Link for your students", interactive=False, buttons=["copy"], elem_id="students-link"
            )
            with gr.Accordion("Your own link: keep it secret", open=False):
                teachers = gr.Textbox(
                    label="Teacher's link",
                    info="Opens this room as its teacher, also on another day",
                    interactive=False,
                    buttons=["copy"],
                    elem_id="teachers-link",
                )
    shown = gr.Textbox(visible="hidden", max_length=80, elem_id="room-shown")
    seat = gr.Textbox(visible="hidden", max_length=64, elem_id="room-seat")
    started = gr.Textbox(visible="hidden", elem_id="room-started")
    timer = gr.Timer(CALL_SECONDS, active=False)
    return RoomBoard(column, drawn, reveal, both, students, teachers, shown, seat, started, timer)
