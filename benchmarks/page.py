"""The page in a real browser: slider to new count, Prune to the first new token."""

import statistics

from playwright.sync_api import Page

from benchmarks.common import table
from benchmarks.starting import PATIENCE, browser, served

MOVES = 15
PRUNINGS = 5
SLIDER = "#neurons-fraction input[type=range]"

WATCH = """(arguments) => {
    const [event, shown] = arguments;
    const read = new Function(`return (${shown})`);
    window.measured = null;
    let start = null, before = read();
    document.addEventListener(event, () => { start ??= performance.now(); }, {capture: true, once: true});
    const observer = new MutationObserver(() => {
        if (start === null || read() === before) return;
        window.measured = performance.now() - start;
        observer.disconnect();
    });
    observer.observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
}"""
"""Measured in the page itself: from a person's event to the moment when what is shown changes."""

COUNT = "document.querySelector('#parameters-after')?.dataset.count"
# What the pruned model says beyond the prompt; nothing while it says nothing.
FIRST_TOKEN = (
    "(document.querySelector('#text-after')?.innerText.trim().length ?? 0)"
    " > document.querySelector('#prompt textarea').value.trim().length"
)


def main() -> None:
    with served() as url, browser() as chromium:
        page = chromium.new_page(viewport={"width": 1366, "height": 900})
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(url)
        page.wait_for_selector("#status:has-text('Ready')")
        page.wait_for_timeout(3000)
        slider = page.locator(SLIDER)
        moves = [_measured(page, "keydown", COUNT, lambda: slider.press("ArrowRight")) for _ in range(MOVES)]
        _report("Slider to new count", moves)
        prunings = []
        for turn in range(PRUNINGS + 1):
            page.reload()
            page.wait_for_selector("#status:has-text('Ready')")
            for _ in range(turn + 1):
                _measured(page, "keydown", COUNT, lambda: slider.press("ArrowRight"))
            prunings.append(_measured(page, "click", FIRST_TOKEN, lambda: page.click("#prune")))
            page.click("#stop")
            page.wait_for_selector("#status .stopped, #status .done, #status .failed")
        _report("Prune to first new token, repaired, a new recipe each time", prunings[1:])


def _report(what: str, times: list[float]) -> None:
    table(
        f"{what}: in a browser on the same machine, statistics ready",
        ["median", "worst", "of"],
        [(f"{statistics.median(times):.0f} ms", f"{max(times):.0f} ms", len(times))],
    )


def _measured(page: Page, event: str, shown: str, act) -> float:
    """Milliseconds from a person's event to the moment when what the expression says has changed."""
    page.evaluate(WATCH, [event, shown])
    act()
    page.wait_for_function("window.measured !== null")
    return page.evaluate("window.measured")
