"""A class on one page: `python -m benchmarks class`, thirty clients of one lesson and thirty of one recipe.

Also what one visitor waits for in a browser: results when the page opens, and a new answer when the slider is released.
"""
# ruff: noqa: N999  The name is the word that is typed.

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from benchmarks.client import Client, fresh_page, page_config, told
from benchmarks.common import table
from benchmarks.startup import TIMEOUT, browser
from pruning.lessons import LESSONS

if TYPE_CHECKING:
    from playwright.sync_api import Page

WITHIN = 5.0
"""Seconds within which all clients press."""
PREVIEWS = 20
RECIPE = """base: smollm2-135m
seed: {seed}
steps:
- {{step: neurons, fraction: 0.25}}
- {{step: distillation, steps: 4}}
"""
SLIDER = "#neurons-fraction input[type=range]"
RECORDED = (30, 50, 40, 60)
LIVE = (37, 57, 43, 27, 63)
ARRIVALS = 5

ARRIVAL = """() => {
    const has = (selector) => [...document.querySelectorAll(selector)].some((part) => /\\d/.test(part.textContent));
    const answers = () => [...document.querySelectorAll(".texts .text")].filter((part) => part.textContent.length > 30);
    const first = () => performance.getEntriesByName("first-contentful-paint")[0]?.startTime;
    window.arrived = new Promise((resolve) => new PerformanceObserver((list) => {
        const painted = list.getEntries().find((entry) => entry.element?.matches(".verdict"));
        if (painted && answers().length >= 2 && has("table.measures td") && has(".abilities td"))
            resolve(painted.startTime - first());
    }).observe({type: "largest-contentful-paint", buffered: true}));
    window.usable = new Promise((resolve) => {
        const watch = new MutationObserver(() => {
            if (!document.querySelector("#prune") || document.documentElement.classList.contains("loading")) return;
            watch.disconnect();
            resolve(performance.now() - first());
        });
        watch.observe(document, {subtree: true, childList: true, attributes: true});
    });
}"""
"""Runs before the page. `arrived`: milliseconds from its first paint until the sentence that sums up the numbers was
painted, with both answers, the numbers and the skills there. `usable`: the same until the controls are shown.
"""
WATCH = """(seconds) => {
    const slider = document.querySelector("#neurons-fraction input[type=range]");
    const heading = () => document.querySelector("#result-heading")?.textContent.trim() ?? "";
    const text = () => document.querySelector("#text-after")?.textContent.trim() ?? "";
    const asked = document.querySelector("#prompt textarea").value.trim();
    window.answered = new Promise((resolve) => document.addEventListener("pointerup", () => {
        const start = performance.now(), wanted = `${slider.value}% of`;
        const look = () => {
            if (heading().startsWith(wanted) && text().length > asked.length + 1) done(performance.now() - start);
        };
        const watch = new MutationObserver(look);
        const done = (value) => { watch.disconnect(); resolve(value); };
        watch.observe(document.body, {subtree: true, childList: true, characterData: true});
        setTimeout(() => done(null), 1000 * seconds);
    }, {capture: true, once: true}));
}"""
"""Waits for the release of the slider; `answered` is then the milliseconds until the first of the new answer."""
THUMB = 8
"""Pixels from the end of the slider to the middle of its thumb."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this benchmark."""
    parser.add_argument("--clients", type=int, default=30, help="how many press at the same time")
    parser.add_argument("--lesson", type=int, default=4, help="the lesson that they run")
    parser.add_argument("--parts", default="browser,lesson,recipe", help="what is measured, with commas")


def main(clients: int, lesson: int, parts: str) -> None:
    """Serve the page, and print what the class and the visitor waited for."""
    with fresh_page() as (_, url):
        for part in parts.split(","):
            if part == "browser":
                _measure_browser(url)
            else:
                asyncio.run(_measure_class(url, clients, part, LESSONS[lesson - 1].key))


def _measure_browser(url: str) -> None:
    with browser() as chromium:
        arrivals = []
        page = chromium.new_page()
        for _ in range(ARRIVALS):  # Each in a browser that knows nothing of the page.
            page.context.close()
            page = chromium.new_context(viewport={"width": 1366, "height": 768}).new_page()
            page.set_default_timeout(1000 * TIMEOUT)
            page.add_init_script(f"({ARRIVAL})()")
            page.goto(url)
            arrivals.append((page.evaluate("window.arrived"), page.evaluate("window.usable")))
            page.wait_for_selector("#parameters-after")
            page.wait_for_timeout(5000)
        recorded = [_release(page, percent) for percent in RECORDED]
        live = [_release(page, percent) for percent in LIVE]
    table(
        "One visitor, in a browser on the same machine",
        ["what", "times"],
        [
            (
                "both answers, numbers and skills after first paint, as soon as the page answers",
                _in_ms([arrivals[0][0]]),
            ),
            ("the same later", _in_ms([arrived for arrived, _ in arrivals[1:]])),
            ("controls after first paint", _in_ms([usable for _, usable in arrivals])),
            ("slider released until the answer is there, recorded", _in_ms(recorded)),
            ("slider released until the first new token, live", _in_ms(live)),
        ],
    )


def _release(page: "Page", percent: int) -> float | None:
    """Drag the slider to a percentage with the mouse, and return what passes until the answer is there."""
    slider = page.locator(SLIDER)
    box = slider.bounding_box()
    assert box is not None
    now, low, high = (float(slider.evaluate(f"part => part.{name}")) for name in ("value", "min", "max"))
    width, height = box["width"] - 2 * THUMB, box["y"] + box["height"] / 2

    def place(value: float) -> float:
        return box["x"] + THUMB + width * (value - low) / (high - low)

    page.evaluate(WATCH, 120)
    page.mouse.move(place(now), height)
    page.mouse.down()
    page.mouse.move(place(percent), height, steps=5)
    page.wait_for_timeout(100)
    page.mouse.up()
    taken = page.evaluate("window.answered")
    page.wait_for_selector("#status .done, #status .failed, #status .stopped")
    page.wait_for_timeout(1000)
    return taken


def _in_ms(times: list[float | None]) -> str:
    return ", ".join("none" if each is None else f"{each:.0f} ms" for each in times)


async def _measure_class(url: str, clients: int, part: str, lesson: str) -> None:
    config = await page_config(url)

    async def run_lesson(client: Client, live: bool) -> str:
        return await client.queued("run_lesson_live" if live else "run", lesson_list=lesson)

    async def call(client: Client, seed: int) -> str:
        return await client.api("prune", recipe=RECIPE.format(seed=seed))

    seed = random.randrange(2**31)
    rows = []
    if part == "lesson":
        rows.append(
            ("one client, live", *await _press(url, config, 1, lambda client: run_lesson(client, True)))
        )
        rows.append(
            (
                f"{clients} clients, live",
                *await _press(url, config, clients, lambda client: run_lesson(client, True)),
            )
        )
        rows.append(
            (
                f"{clients} clients, recorded",
                *await _press(url, config, clients, lambda c: run_lesson(c, False)),
            )
        )
        title = f"Lesson {lesson}, pressed within {WITHIN:g} s"
    else:
        await _press(url, config, 1, lambda client: call(client, seed))
        rows.append(("one caller", *await _press(url, config, 1, lambda client: call(client, seed + 1))))
        rows.append(
            (
                f"{clients} callers, not recorded",
                *await _press(url, config, clients, lambda c: call(c, seed + 2), 0),
            )
        )
        rows.append(
            (
                f"{clients} callers, recorded",
                *await _press(url, config, clients, lambda c: call(c, seed + 2), 0),
            )
        )
        title = "API calls at the same time: neurons, then four steps of distillation"
    table(title, ["who", "served", "first", "last", "from the first press", "previews meanwhile"], rows)


async def _press(
    url: str, config: dict, count: int, act: Callable[[Client], Awaitable[str]], within: float = WITHIN
) -> tuple[str, str, str, str, str]:
    """Let clients press within some seconds; return how many were served, how long that took, and previews."""
    clients = [
        Client(url, config, f"127.0.{number // 250 + 1}.{number % 250 + 1}", timeout=120)
        for number in range(count)
    ]
    start, done = time.perf_counter(), asyncio.Event()

    async def press(client: Client) -> tuple[bool, float, float]:
        await asyncio.sleep(random.uniform(0, within) if count > 1 else 0)
        pressed = time.perf_counter()
        end = told(await act(client))
        now = time.perf_counter()
        return end.startswith("done"), now - pressed, now - start

    async def look() -> list[float]:
        times = []
        async with Client(url, config, "127.9.9.9") as client:
            while not done.is_set():
                begun = time.perf_counter()
                await client.direct("show_shape", neurons_fraction=random.randrange(1, 90))
                times.append(time.perf_counter() - begun)
                await asyncio.sleep(0.25)
        return times

    looking = asyncio.create_task(look())
    results = await asyncio.gather(*(press(client) for client in clients))
    done.set()
    previews = sorted(await looking)
    for client in clients:
        await client.http.aclose()
    times = [taken for served, taken, _ in results if served] or [float("nan")]
    slow = previews[int(0.95 * (len(previews) - 1))] if previews else float("nan")
    return (
        f"{sum(served for served, *_ in results)} of {count}",
        f"{min(times):.1f} s",
        f"{max(times):.1f} s",
        f"{max(end for *_, end in results):.1f} s",
        f"median {1000 * statistics.median(previews or [0]):.0f} ms, 95% within {1000 * slow:.0f} ms",
    )
