"""A teacher and a student in two real browsers: predict, count, reveal, follow, reload, leave."""

from urllib.parse import parse_qs, urlsplit

import pytest

from pruning.lessons import LESSONS
from tests.helpers.browser import WORK, unfold

pytestmark = [pytest.mark.browser, pytest.mark.real]

MARKUP = "<img src=x onerror=alert(1)>"


def query(page):
    return {name: values[-1] for name, values in parse_qs(urlsplit(page.url).query).items()}


@pytest.fixture
def open_room(visit, page_url):
    """`open_room(name)` opens a room on the first lesson; it returns the teacher's page and the students' link."""

    def open_page(name):
        page = visit(address=f"{page_url}/?lesson=1")
        page.wait_for_selector("#lesson-see:visible")
        assert not page.is_visible("#room")
        unfold(page, "class")
        page.fill("#room-name :is(input, textarea)", name)
        page.click("#open-room")
        page.wait_for_selector("#room-reveal:visible")
        return page, page.input_value("#students-link :is(input, textarea)")

    return open_page


def says(page, text):
    page.wait_for_selector(f"#room-board:has-text('{text}')")


WIDE_BAR = "document.querySelector('#room-board .plot span').getBoundingClientRect().width > 50"


def test_a_class_predicts_and_its_teacher_reveals(visit, open_room):
    teacher, link = open_room(MARKUP)
    student = visit(390, 844, address=link)
    says(student, "0 predictions from the class. 1 student")
    for page in (teacher, student):
        assert MARKUP in page.inner_text("#room-board")
        assert page.locator("#room-board img").count() == 0
        assert query(page)["room"] == MARKUP
    student.click("#predict label >> nth=2")
    says(teacher, "1 prediction from the class. 1 student")
    student.click("#predict label >> nth=0")
    guesser = visit(address=f"{link}&teacher={'A' * 43}")
    says(guesser, "You are in the room as a student")
    for page in (teacher, student, guesser):
        assert "%" not in page.inner_text("#room-board")
    assert not student.is_visible("#room-reveal")
    assert not guesser.is_visible("#room-reveal")
    assert "teacher" not in query(student)
    says(teacher, "1 prediction from the class. 2 students")
    teacher.click("#room-reveal")
    for page in (teacher, student, guesser):
        says(page, "1 (100%)")
        page.wait_for_function(WIDE_BAR)  # Bars grow.
    assert "1 prediction from" in student.inner_text("#announcements")
    assert student.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_students_follow_the_teacher_and_nothing_is_left_of_the_class(visit, open_room):
    teacher, link = open_room("7b")
    student = visit(address=link)
    student.click("#predict label >> nth=0")
    says(teacher, "1 prediction from the class")
    student.reload()
    says(student, "1 prediction from the class. 1 student")
    student.click("#predict label >> nth=1")
    teacher.click(f"#lesson-list label:has-text('{LESSONS[1].title}')")
    student.wait_for_selector(f"#lesson-see:has-text('{LESSONS[1].title}')")
    assert query(student)["lesson"] == "2"
    teacher.click("#lesson-run")
    for page in (teacher, student):
        page.wait_for_selector("#lesson-results:has-text('Recorded on')", timeout=WORK)
    teacher.reload()
    teacher.wait_for_selector("#room-reveal:visible")
    teacher.wait_for_selector(f"#lesson-see:has-text('{LESSONS[1].title}')")
    teacher.click(f"#lesson-list label:has-text('{LESSONS[0].title}')")
    says(teacher, "1 prediction from the class. 1 student")
    for page in (teacher, student):
        page.context.close()
    late = visit()
    late.wait_for_timeout(2000)
    late.goto(link)
    says(late, "The room 7b is not open yet.")
