"""Rooms: who is in them, what is counted, who may reveal it, and when nothing is left of them."""

import pytest

from page.server import rooms as module
from page.server.disconnect import on_disconnect
from page.server.rooms import (
    ABSENT_SECONDS,
    CALL_SECONDS,
    MAX_NAME,
    MAX_PAGES,
    MAX_ROOMS,
    NotOpen,
    RoomError,
    RoomFull,
    Rooms,
    Visit,
    check_name,
)
from pruning.lessons import LESSONS
from tests.helpers.clock import Clock

FIRST, SECOND = LESSONS[0].key, LESSONS[1].key
OPTIONS = LESSONS[0].prediction[1]


def seat(number):
    return f"seat-{number:012}"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def listening():
    return set()


@pytest.fixture
def rooms(clock, listening):
    return Rooms(lambda: listening, clock)


@pytest.fixture
def secret(rooms):
    """The secret of the room `physics`, whose teacher's session is `teacher`."""
    return rooms.open("physics", "teacher", FIRST).secret


def student(rooms, session="student", **said):
    return rooms.visit(Visit(session, "physics", lesson=said.pop("lesson", FIRST), **said))


def teacher(rooms, secret, session="teacher", **said):
    return rooms.visit(Visit(session, "physics", secret, **said))


def test_a_student_sees_how_many_have_answered_and_the_bars_once_they_are_revealed(rooms, secret):
    student(rooms, "ada", prediction=OPTIONS[0])
    student(rooms, "bob", prediction=OPTIONS[2])
    before = student(rooms, "cy")
    assert (before.students, before.answers, before.counts, before.is_teacher) == (3, 2, None, False)
    assert teacher(rooms, secret).counts is None
    rooms.reveal("physics", secret)
    assert student(rooms, "cy").counts == (1, 0, 1)
    assert teacher(rooms, secret).counts == (1, 0, 1)


@pytest.mark.usefixtures("secret")
def test_a_second_prediction_replaces_the_first(rooms):
    student(rooms, prediction=OPTIONS[0])
    assert student(rooms, prediction=OPTIONS[1]).answers == 1
    assert student(rooms, prediction=None).answers == 1


def test_a_reload_is_another_session_and_the_same_voter(rooms, secret):
    student(rooms, "first", seat=seat(1), prediction=OPTIONS[0])
    rooms.leave("first")
    assert student(rooms, "second").answers == 1
    student(rooms, "second", seat=seat(1), prediction=OPTIONS[1])
    rooms.reveal("physics", secret)
    assert student(rooms, "third").counts == (0, 1, 0)


@pytest.mark.usefixtures("secret")
def test_ten_thousand_predictions_of_one_page_are_one(rooms):
    for number in range(10_000):
        view = student(rooms, seat=seat(number), prediction=OPTIONS[number % 3])
    assert view.answers == 1


@pytest.mark.usefixtures("secret")
def test_a_page_that_goes_to_another_room_and_back_predicts_once(rooms):
    for number in range(10):
        assert student(rooms, seat=seat(number), prediction=OPTIONS[0]).answers == 1
        rooms.open(f"room {number}", "student", FIRST)


@pytest.mark.usefixtures("secret")
def test_ten_thousand_pages_leave_as_many_predictions_as_fit(rooms):
    for number in range(10_000):
        student(rooms, f"session{number}", seat=seat(number), prediction=OPTIONS[0])
        rooms.leave(f"session{number}")
    view = student(rooms)
    assert (view.answers, view.students) == (MAX_PAGES, 1)
    assert sum(len(said) for room in rooms._rooms.values() for said in room.predictions.values()) == MAX_PAGES


@pytest.mark.usefixtures("secret")
def test_what_is_no_answer_to_the_rooms_question_is_not_counted(rooms):
    student(rooms, prediction="<b>anything</b>")
    assert student(rooms, lesson=SECOND, prediction=LESSONS[1].prediction[1][0]).answers == 0


def test_what_a_teachers_page_predicts_is_not_counted(rooms, secret):
    view = teacher(rooms, secret, lesson=FIRST, prediction=OPTIONS[0])
    assert (view.answers, view.students) == (0, 0)


@pytest.mark.parametrize("guess", ["", "x", "guessed-guessed-guessed", "ß" * 30, "\x00" * 43, "A" * 43])
def test_a_guessed_link_makes_a_student_of_its_visitor(rooms, secret, guess):
    assert guess != secret
    view = rooms.visit(Visit("guesser", "physics", guess, lesson=SECOND, room_lesson=FIRST))
    assert (view.is_teacher, view.secret, view.lesson) == (False, "", FIRST)
    rooms.reveal("physics", guess)
    rooms.note_run("guesser", FIRST, live=False)
    seen = student(rooms)
    assert (seen.counts, seen.run) == (None, 0)


def test_a_secret_is_long_and_not_shown_where_values_are_logged(rooms, secret):
    assert len(secret) >= 43
    assert secret not in repr([rooms._rooms, teacher(rooms, secret), Visit("session", "physics", secret)])


def test_pages_follow_the_lesson_of_a_teacher_and_nobody_elses(rooms, secret):
    student(rooms, lesson=SECOND, room_lesson=FIRST)
    assert student(rooms).lesson == FIRST
    teacher(rooms, secret, lesson=SECOND, room_lesson=FIRST)
    assert student(rooms).lesson == SECOND


def test_of_two_pages_of_the_teacher_the_one_that_moved_is_followed(rooms, secret):
    teacher(rooms, secret, lesson=SECOND, room_lesson=FIRST)
    phone = teacher(rooms, secret, "phone", lesson=FIRST, room_lesson=FIRST)
    assert phone.lesson == teacher(rooms, secret, lesson=SECOND, room_lesson=SECOND).lesson == SECOND


def test_each_lesson_keeps_its_predictions_while_the_room_is_open(rooms, secret):
    student(rooms, prediction=OPTIONS[0])
    rooms.reveal("physics", secret)
    assert teacher(rooms, secret, lesson=SECOND, room_lesson=FIRST).counts is None
    assert teacher(rooms, secret, lesson=FIRST, room_lesson=SECOND).counts == (1, 0, 0)


def test_the_pages_are_told_of_a_run_of_the_teachers_lesson_alone(rooms, secret):
    student(rooms)
    rooms.note_run("student", FIRST, live=True)
    rooms.note_run("teacher", SECOND, live=True)
    rooms.note_run("stranger", FIRST, live=True)
    assert student(rooms).run == 0
    rooms.note_run("teacher", FIRST, live=True)
    first = student(rooms)
    rooms.note_run("teacher", FIRST, live=False)
    second = student(rooms)
    assert second.run > first.run > 0
    assert (first.live, second.live) == (True, False)
    assert teacher(rooms, secret).run == second.run


def test_a_room_is_removed_with_its_last_page(rooms, secret):
    student(rooms, prediction=OPTIONS[0])
    rooms.leave("teacher")
    assert student(rooms).answers == 1
    rooms.leave("student")
    assert len(rooms) == 0
    with pytest.raises(NotOpen, match="physics is not open yet"):
        student(rooms)
    assert teacher(rooms, secret).answers == 0


def test_a_teachers_link_opens_its_room_again_with_the_same_secret(rooms, secret):
    rooms.leave("teacher")
    again = teacher(rooms, secret, lesson=SECOND)
    assert (again.secret, again.lesson) == (secret, SECOND)
    assert student(rooms).lesson == SECOND


def test_a_session_that_ends_leaves_its_room(monkeypatch):
    left = []
    monkeypatch.setattr("page.server.disconnect.rooms.leave", left.append)
    on_disconnect(type("Request", (), {"session_hash": "ada"}))
    assert left == ["ada"]


def test_a_page_that_neither_calls_nor_listens_is_taken_out(rooms, secret, clock, listening):
    student(rooms, "locked")
    student(rooms, "hidden")
    listening.add("hidden")
    clock.now += ABSENT_SECONDS + 1
    assert teacher(rooms, secret).students == 1
    listening.clear()
    clock.now += ABSENT_SECONDS + 1
    rooms.open("another", "somebody", FIRST)
    assert len(rooms) == 1


def test_a_session_is_in_one_room(rooms, secret):
    student(rooms)
    rooms.open("chemistry", "student", FIRST)
    assert teacher(rooms, secret).students == 0
    rooms.visit(Visit("student", "physics"))
    assert len(rooms) == 1


def test_rooms_are_bounded_in_number(rooms):
    for number in range(MAX_ROOMS):
        rooms.open(f"room {number}", f"teacher{number}", FIRST)
    with pytest.raises(RoomFull, match=f"{MAX_ROOMS} rooms are open"):
        rooms.open("one more", "late", FIRST)
    with pytest.raises(RoomFull):
        rooms.visit(Visit("late", "one more", "A" * 43))
    rooms.leave("teacher7")
    rooms.open("one more", "late", FIRST)


@pytest.mark.usefixtures("secret")
def test_rooms_are_bounded_in_pages(rooms):
    for number in range(MAX_PAGES - 1):
        student(rooms, f"student{number}")
    with pytest.raises(RoomFull, match="The room physics is full"):
        student(rooms, "late", prediction=OPTIONS[0])
    assert student(rooms, "student0").answers == 0
    rooms.leave("student1")
    student(rooms, "late")


def test_many_pages_call_less_often(rooms):
    views = [rooms.open("room 0", "teacher0", FIRST)]
    for number in range(1, 101):
        views.append(rooms.visit(Visit(f"student{number}", "room 0")))
    assert views[29].seconds == CALL_SECONDS
    assert views[-1].seconds * module.CALLS_PER_SECOND >= 101


def test_a_name_is_used_once_in_any_case_and_spacing(rooms, secret):
    with pytest.raises(RoomError, match="open already"):
        rooms.open("  PHYSICS ", "other", FIRST)
    rooms.open("7b\u00a0 Caf\u0065\u0301", "other", FIRST)
    assert rooms.visit(Visit("student", "7B caf\u00e9")).name == "7b Caf\u00e9"
    assert teacher(rooms, secret).students == 0


@pytest.mark.parametrize(
    "name", ["", "  ", "x" * (MAX_NAME + 1), "a\x00b", "a\u202eb", "a\u200bb", "a\ud800", None, 5, ["a"]]
)
def test_a_name_that_cannot_be_read_is_refused(rooms, name):
    with pytest.raises(RoomError, match=f"1 to {MAX_NAME} letters"):
        rooms.open(name, "teacher", FIRST)
    assert len(rooms) == 0


def test_markup_in_a_name_is_text():
    assert check_name("<img src=x onerror=alert(1)>") == "<img src=x onerror=alert(1)>"
