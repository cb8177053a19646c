"""A class: its teacher opens a room and reveals, and its students' pages follow."""

import inspect
from urllib.parse import parse_qs, urlsplit

import pytest

from page.html.room import draw_room
from page.sections.room_board import Shown
from page.server.rooms import Rooms
from pruning.lessons import LESSONS
from tests.page.html.samples import Page

FIRST, SECOND = LESSONS[0], LESSONS[1]
MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def rooms(monkeypatch):
    fresh = Rooms()
    for place in ("room", "course"):
        monkeypatch.setattr(f"page.sections.{place}.rooms", fresh)
    return fresh


class Tab:
    """A page in a browser, with what its components say."""

    def __init__(self, handler, request, query=""):
        self._handler, self.request = handler, request
        self.request.query_params = {name: values[-1] for name, values in parse_qs(query).items()}
        self.lesson, self.prediction, self.shown = FIRST.key, None, ""

    def ask(self, name, *values):
        (updates,) = self._handler(name)(self.request, *values)
        self.lesson = updates.get("lesson-list", self.lesson)
        if isinstance(updates.get("room-shown"), str):
            self.shown = updates["room-shown"]
        return updates

    def enter(self):
        return self.ask("update_room", self.lesson, self.prediction, "", "")

    def call(self, name="call_room"):
        """Call as the timer does, and once more if there is news."""
        values = self.prediction, "", self.shown
        updates = self.ask(name, self.lesson, *values)
        is_news = isinstance(updates.get("textbox"), str)
        return self.ask("update_room", self.lesson, *values) if is_news else updates


@pytest.fixture
def teacher(handler, request_of):
    """The teacher's page, with a room that is open."""
    tab = Tab(handler, request_of())
    opened = tab.ask("open_room", "7b", FIRST.key)
    tab.request.query_params = {
        name: values[-1] for name, values in parse_qs(urlsplit(opened["teachers-link"]).query).items()
    }
    return tab


@pytest.fixture
def student(handler, request_of, teacher):
    """A student's page that has entered."""
    tab = Tab(handler, request_of(), "room=7b")
    tab.enter()
    return tab


def says_nothing(updates):
    return set(updates) == {"textbox"}


def test_opening_a_room_gives_a_link_for_students_and_a_secret_one(handler, request_of):
    opened = Tab(handler, request_of()).ask("open_room", MARKUP, FIRST.key)
    students, teachers = (
        parse_qs(urlsplit(opened[name]).query) for name in ("students-link", "teachers-link")
    )
    assert students == {"room": [MARKUP]}
    assert teachers["room"] == [MARKUP]
    assert len(teachers["teacher"][0]) >= 43
    assert opened["room"].visible
    assert opened["room-reveal"].visible
    assert MARKUP not in opened["room-board"]
    assert MARKUP in Page(opened["room-board"]).text


def test_a_name_that_cannot_be_used_is_said_beside_the_button(handler, request_of):
    refused = Tab(handler, request_of()).ask("open_room", "", FIRST.key)
    assert set(refused) == {"room-status"}
    assert "1 to 40 letters" in refused["room-status"]


def test_a_student_sees_the_count_and_then_the_bars(teacher, student):
    student.prediction = FIRST.prediction[1][2]
    seen = student.call()
    assert set(seen) == {"room-board", "room-shown"}
    assert "1 prediction from the class. 1 student in the room now." in Page(seen["room-board"]).text
    assert "100%" not in seen["room-board"]
    assert "1 prediction" in Page(teacher.call()["room-board"]).text
    revealed = teacher.call("reveal")
    assert not revealed["room-reveal"].visible
    assert "1 (100%)" in student.call()["room-board"]


def test_a_student_gets_neither_the_button_nor_the_links(student):
    entered = student.enter()
    assert not entered["room-reveal"].visible
    assert not entered["room-links"].visible
    assert not {"students-link", "teachers-link"} & set(entered)


def test_a_call_changes_nothing_if_nothing_changed(teacher, student):
    teacher.call()
    assert says_nothing(student.call())
    assert says_nothing(student.call())
    assert says_nothing(teacher.call())


def test_a_student_follows_the_teacher_and_may_look_elsewhere(teacher, student):
    teacher.lesson = SECOND.key
    teacher.call()
    assert student.call()["lesson-list"] == SECOND.key
    assert says_nothing(student.call())
    student.lesson = FIRST.key
    looked = student.call()
    assert "lesson-list" not in looked
    assert f"The class is at another lesson: 2. {SECOND.title}." in Page(looked["room-board"]).text
    assert SECOND.prediction[0] in Page(looked["room-board"]).text
    teacher.lesson = LESSONS[2].key
    teacher.call()
    assert student.call()["lesson-list"] == LESSONS[2].key


def test_a_student_who_comes_late_is_taken_to_the_lesson(handler, request_of, teacher):
    teacher.lesson = SECOND.key
    teacher.call()
    entered = Tab(handler, request_of(), "room=7b&lesson=5").enter()
    assert entered["tabs"].selected == "course"
    assert entered["lesson-list"] == SECOND.key
    assert "room-started" not in entered


def test_a_student_runs_what_the_teacher_runs(rooms, teacher, student):
    rooms.note_run(teacher.request.session_hash, FIRST.key, live=False)
    first = student.call()["room-started"]
    assert "room-started" not in student.call()
    rooms.note_run(teacher.request.session_hash, FIRST.key, live=True)
    second = student.call()["room-started"]
    assert first != second
    assert (first.endswith("live"), second.endswith("live")) == (False, True)
    assert "room-started" not in teacher.call()


def test_the_lesson_of_a_link_waits_for_the_rooms(handler, request_of):
    tab = Tab(handler, request_of(), "room=7b&lesson=5")
    assert set(tab.ask("show_linked_lesson")) == {"tabs"}


def test_a_run_of_another_lesson_is_followed_once_that_lesson_is_open(rooms, teacher, student):
    teacher.lesson = SECOND.key
    teacher.call()
    rooms.note_run(teacher.request.session_hash, SECOND.key, live=False)
    assert "room-started" not in student.call()
    assert "room-started" in student.call()
    assert says_nothing(student.call())


def test_a_guessed_link_is_a_students_and_says_so(handler, request_of, teacher):
    guesser = Tab(handler, request_of(), f"room=7b&teacher={'A' * 43}")
    entered = guesser.enter()
    assert "You are in the room as a student." in entered["room-board"]
    assert not entered["room-reveal"].visible
    guesser.call("reveal")
    assert "%)" not in guesser.call().get("room-board", "")
    assert "%)" not in teacher.call()["room-board"]


def test_a_page_waits_for_a_room_that_is_not_open(handler, request_of):
    early = Tab(handler, request_of(), "room=9c")
    waiting = early.enter()
    assert "The room 9c is not open yet." in waiting["room-board"]
    assert waiting["timer"].active
    assert says_nothing(early.call())
    Tab(handler, request_of()).ask("open_room", "9c", SECOND.key)
    assert early.call()["lesson-list"] == SECOND.key


def test_a_link_with_a_bad_name_opens_its_lesson_and_does_not_call(handler, request_of):
    entered = Tab(handler, request_of(), f"room={'x' * 41}&lesson=2").enter()
    assert entered["lesson-list"] == SECOND.key
    assert "1 to 40 letters" in entered["room-board"]
    assert not entered["timer"].active


@pytest.mark.parametrize(
    "text", [None, "", "x", "a b c d", f"a b {FIRST.key} -1", f"a b {FIRST.key} {'9' * 99}", "a b c d e"]
)
def test_what_a_page_shows_is_read_with_care(text):
    read = Shown.parse(text)
    assert (read.lesson, read.run) == ("", 0)
    assert Shown.parse(str(Shown("abc", "def", FIRST.key, 3))) == Shown("abc", "def", FIRST.key, 3)


def test_the_handlers_of_a_room_take_neither_a_thread_nor_a_place_in_the_queue(demo):
    names = {"update_room", "open_room", "call_room", "reveal"}
    found = [function for function in demo.fns.values() if function.api_name in names]
    assert {function.api_name for function in found} == names
    for function in found:
        assert inspect.iscoroutinefunction(function.fn)
        assert function.queue is False
        assert function.api_visibility == "private"


def test_the_bars_have_their_places_before_they_are_revealed():
    hidden, revealed = (Page(draw_room("7b", ["One", "Two"], counts, 4, 5)) for counts in (None, [3, 1]))
    assert hidden.tags == revealed.tags
    assert hidden.values("style") == ["width:0.0%", "width:0.0%"]
    assert revealed.values("style") == ["width:75.0%", "width:25.0%"]
    assert "3 (75%)" in revealed.text
