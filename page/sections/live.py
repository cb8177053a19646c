"""What happens by itself: a slider that is released prunes, and results fade when the settings are others."""

from collections.abc import AsyncIterator

import gradio as gr

from page.sections.events import Updates, on_browser_event, on_start
from page.sections.prune import compared_parts, inputs, outputs, prune_and_watch
from page.sections.section import Page

DELAY = 600
"""Milliseconds after the last key or step of a slider, until it counts as set."""
PRESSED = 1_000
"""Milliseconds after Prune or Stop in which nothing prunes by itself: leaving a field releases its slider."""
BLINK = 20
"""Milliseconds after a release, until it is known whether the settings are others."""


def _press_after(milliseconds: int) -> str:
    """Return a script that prunes after a while as the sliders say then, if the results are of other settings.

    The button that it presses is not seen. Pressing it prunes, unless others wait.
    """
    return f"""() => {{
    clearTimeout(window.secateurLive);
    window.secateurLive = setTimeout(() => {{
        const results = document.querySelector("#result-heading [data-settings]");
        if (results && !document.body.hasAttribute("data-changed")) return;
        if (Date.now() - (window.secateurPressed ?? 0) < {PRESSED}) return;
        document.querySelector("#prune-live")?.click();
    }}, {milliseconds});
    return [];
}}"""


FORGET = "() => { clearTimeout(window.secateurLive); window.secateurPressed = Date.now(); return []; }"
COMPARE = """(value) => {{
    window.secateur.compareSetting({place}, value);
    return [];
}}"""
"""Tells the script of the page what one control says, which marks the page if the results are of other settings.

Asking for all of them at every change would keep a slow browser busy for a tenth of a second.
"""


def wire(page: Page) -> None:
    """Connect the sliders, and compare the settings whenever one changes."""
    panel, pane = page.controls, page.results
    button = gr.Button(visible="hidden", elem_id="prune-live")
    sliders = [value for _, value in panel.sliders if isinstance(value, gr.Slider)]

    async def prune_live(
        request: gr.Request, token: gr.OAuthToken | None, *values: object
    ) -> AsyncIterator[Updates]:
        async for updates in prune_and_watch(page, values, request, token, waits=False):
            yield updates

    on_start([button.click], prune_live, inputs(page), outputs(page), "multiple")
    assert pane.job.start is not None
    assert pane.job.stop is not None
    on_browser_event([slider.release for slider in sliders], _press_after(BLINK))
    # Keys and typed numbers release nothing.
    on_browser_event([slider.input for slider in sliders], _press_after(DELAY))
    on_browser_event([pane.job.start.click, pane.job.stop.click], FORGET)
    for place, part in enumerate(compared_parts(page)):
        # Every control has this event, but not every component.
        if hasattr(part, "change"):
            on_browser_event([part.change], COMPARE.format(place=place), [part])
