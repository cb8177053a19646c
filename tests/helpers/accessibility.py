"""What axe finds on a page as it stands."""

from axe_playwright_python.base import AXE_SCRIPT

GRADIO = {"color-contrast": ".cm-editor", "scrollable-region-focusable": ".cm-editor"}
"""For rules of axe, the parts of Gradio that break them: the colors and the scrolling of its code box."""

IS_OURS = """([target, part]) => {
    const element = document.querySelector(target);
    return !part || !element?.closest(part);
}"""


SHOW = """async (theme) => {
    document.body.classList.toggle("dark", theme === "dark");
    await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
    await Promise.all(document.getAnimations().filter((each) => each instanceof CSSTransition).map(
        (each) => each.finished.catch(() => null)));
}"""
"""Shows the page in a theme, as Gradio does, and waits until its colors have faded to those of the theme."""

COLOR_RULES = ("color-contrast", "link-in-text-block")
"""The rules of axe that read colors, and so depend on the theme (`cat.color`, but for what axe leaves out)."""


def problems(page):
    """Return what axe finds wrong in the light and the dark theme, a line for each element.

    What is Gradio's own and not critical is left out. All rules are checked in the light theme. In the dark one, the
    elements are the same ones, and only the rules on colors can find more.
    """
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(AXE_SCRIPT)
    found = _found(page, {})
    page.evaluate(SHOW, "dark")
    found += [f"dark: {line}" for line in _found(page, {"runOnly": {"type": "rule", "values": COLOR_RULES}})]
    page.evaluate(SHOW, "light")
    return found


def _found(page, only):
    found = page.evaluate("options => axe.run(options)", {"resultTypes": ["violations"]} | only)["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:200]}"
        for rule in found
        for node in rule["nodes"]
        if rule["impact"] == "critical"
        or page.evaluate(IS_OURS, [node["target"][0], GRADIO.get(rule["id"], "")])
    ]
