"""Latency of the page in a real browser: slider to new count, Prune to the first new token."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.common import table
from benchmarks.startup import TIMEOUT, browser, served

if TYPE_CHECKING:
    from playwright.sync_api import Page

MOVES = 15
PRUNINGS = 5
SLIDER = "#neurons-fraction input[type=range]"

WATCH = """(arguments) => {
    const [event, expression] = arguments;
    const read = new Function(`return (${expression})`);
    let start = null, before = read();
    document.addEventListener(event, () => { start ??= performance.now(); }, {capture: true, once: true});
    window.measured = new Promise((resolve) => {
        const observer = new MutationObserver(() => {
            const value = read();
            if (start === null || !value || value === before) return;
            observer.disconnect();
            resolve(performance.now() - start);
        });
        observer.observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
    });
}"""
"""Runs in the page: measures from an input event to the moment when an expression has another value that is true.

Playwright's own waiting checks in every frame, so that the browser draws 60 frames per second on the processor that
prunes.
"""

COUNT = "document.querySelector('#parameters-after')?.dataset.count"
# What is pruned, as soon as that model has output anything beyond the prompt.
FIRST_TOKEN = (
    "(document.querySelector('#text-after')?.textContent.trim().length ?? 0)"
    " > document.querySelector('#prompt textarea').value.trim().length"
    " && document.querySelector('#result-heading').textContent"
)


def main() -> None:
    """Move the slider and press Prune several times, and print two tables."""
    with served() as url, browser() as chromium:
        page = chromium.new_page(viewport={"width": 1366, "height": 900})
        page.set_default_timeout(1000 * TIMEOUT)
        page.goto(url)
        page.wait_for_selector("#status:has-text('Ready')")
        page.wait_for_timeout(3000)
        slider = page.locator(SLIDER)
        # By a tenth of its length: a step of one percent may leave the width, a multiple of 32, as it is.
        moves = [
            _milliseconds(page, "keydown", COUNT, partial(slider.press, ("PageUp", "PageDown")[turn % 2]))
            for turn in range(MOVES)
        ]
        _report("Slider to new count", moves)
        prunings = []
        for turn in range(PRUNINGS + 1):
            page.goto(url)
            page.wait_for_selector("#status:has-text('Ready')")
            for _ in range(turn + 1):
                slider.press("ArrowRight")
            prunings.append(_milliseconds(page, "click", FIRST_TOKEN, lambda: page.click("#prune")))
            page.click("#stop")
            page.wait_for_selector("#status .stopped, #status .done, #status .failed")
        _report("Prune to first new token, repaired, a new recipe each time", prunings[1:])


def _report(what: str, times: list[float]) -> None:
    table(
        f"{what}: in a browser on the same machine, statistics ready",
        ["median", "worst", "of"],
        [(f"{statistics.median(times):.0f} ms", f"{max(times):.0f} ms", len(times))],
    )


def _milliseconds(page: "Page", event: str, expression: str, act: Callable[[], object]) -> float:
    """Measure the milliseconds from an input event to a changed value of an expression."""
    page.evaluate(WATCH, [event, expression])
    act()
    return page.evaluate("window.measured")
