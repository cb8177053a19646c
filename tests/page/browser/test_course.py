"""Every lesson in a real browser on the default model: it shows what it claims."""

import pytest

from pruning.lessons import LESSONS
from tests.helpers.accessibility import problems
from tests.helpers.browser import WORK

pytestmark = [pytest.mark.browser, pytest.mark.real]


@pytest.fixture
def lesson_page(visit, page_url):
    """`lesson_page(number)` opens a lesson by its link."""

    def open_lesson(number, query=""):
        page = visit(address=f"{page_url}/?lesson={number}{query}")
        page.wait_for_selector("#lesson-see:visible")
        return page

    return open_lesson


LIVE = [lesson for lesson in LESSONS if lesson.number in (2, 9)]
"""Lessons that are also run here: a cut of neurons and one of heads. The search runs in `test_tasks.py`."""


def predict(page, lesson):
    """Choose an answer before the lesson is run."""
    page.wait_for_selector(f"#lesson-see:has-text('{lesson.title}')")
    assert lesson.prediction[0] in page.inner_text("#predict")
    page.locator("#predict label").first.click()


def check_results(page, lesson):
    """The lesson is done, has a row for each model, and says how the prediction did; then it explains."""
    assert page.inner_text("#lesson-status").startswith("Done")
    page.wait_for_selector("#notice h3")
    notice = page.inner_text("#notice")
    assert ("This run does not decide it." in notice) == (lesson.outcome is None)
    assert "not what this lesson expects" not in notice
    assert "$" not in notice
    rows = page.locator("#lesson-results tbody tr.output").count()
    made = len(lesson.runs) + len(lesson.types) + bool(lesson.budget)
    assert rows == (made + 1 if made else 0)
    assert not page.is_visible(f"text={lesson.explanation[:40]}")
    page.click("#reveal button")
    page.wait_for_selector(f"text={lesson.explanation[:40]}")


def test_every_lesson_shows_what_was_recorded(lesson_page):
    page = lesson_page(LESSONS[0].number)
    for lesson in LESSONS:
        page.click(f"#lesson-list label:has-text('{lesson.number}.') >> nth=0")
        predict(page, lesson)
        page.click("#lesson-run")
        page.wait_for_selector("#lesson-results:has-text('Recorded on')", timeout=WORK)
        check_results(page, lesson)
        assert problems(page) == []


@pytest.mark.parametrize("lesson", LIVE, ids=lambda lesson: lesson.key)
def test_a_lesson_that_is_run_live_shows_what_it_claims(lesson_page, lesson):
    page = lesson_page(lesson.number)
    predict(page, lesson)
    page.click("#lesson-run")
    page.click("#lesson-live")
    page.wait_for_function(
        "!document.querySelector('#lesson-results').innerText.includes('Recorded on')", timeout=WORK
    )
    page.wait_for_selector("#lesson-status .done, #lesson-status .failed", timeout=WORK)
    check_results(page, lesson)


def test_the_lesson_on_depth_shows_its_layers_with_their_influence(lesson_page):
    page = lesson_page(8)
    page.click("#lesson-run")
    page.wait_for_selector("#lesson-results .layers", timeout=WORK)
    assert page.locator("#lesson-results .layer").count() == 30
    assert page.locator("#lesson-results .layer.removed").count() == 9
    page.focus('#lesson-results [data-layer="0"]')
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#lesson-results .hint:has-text('Layer 1: 3.5M parameters')")
    assert "Block influence 0." in page.inner_text("#lesson-results .hint")


def test_a_lesson_opens_on_the_workbench_and_can_stand_alone(lesson_page):
    page = lesson_page(4, "&only=1")
    page.wait_for_selector("#lesson-list", state="hidden")
    page.click("#lesson-run")
    page.wait_for_selector("#open-result:visible", timeout=WORK)
    page.click("#open-result")
    page.wait_for_selector("#prune:visible")
    assert page.input_value("#neurons-fraction input[type=number]") == "20"


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1920, 1080)])
def test_a_lesson_fits_the_screen(visit, page_url, width, height):
    page = visit(width, height, address=f"{page_url}/?lesson=1")
    page.wait_for_selector("#lesson-see:visible")
    page.click("#lesson-run")
    page.wait_for_selector("#lesson-status .done", timeout=WORK)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_another_lesson_shows_nothing_of_the_one_that_runs(lesson_page):
    page = lesson_page(5)
    page.click("#lesson-run")
    page.click("#lesson-live")
    page.wait_for_selector("#lesson-status .busy", timeout=WORK)
    page.click("#lesson-list label:has-text('8.')")
    page.wait_for_selector("#lesson-see:has-text('8.')")
    page.wait_for_timeout(1500)
    assert page.inner_text("#lesson-results").strip() == ""
    assert not page.is_visible("#lesson-stop")
    assert page.is_visible("#lesson-run")
