"""What the browser tests share: how long they wait, in milliseconds, and how they unfold a part of the page."""

PAGE = 60_000
WORK = 400_000
"""On a busy machine, where the work of other tests goes on beside it."""

TWO_FRAMES = "() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))"


def unfold(page, name):
    """Open an accordion for the first time, and wait until it takes input.

    Gradio creates its controls as it opens. One frame later, it sets them to their first values.
    """
    page.click(f"#{name} button")
    page.wait_for_selector(f"#{name} button.open")
    page.evaluate(TWO_FRAMES)
