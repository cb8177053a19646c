"""What axe finds on a page as it stands."""

from axe_playwright_python.base import AXE_SCRIPT

GRADIO = {"color-contrast": ".cm-editor", "scrollable-region-focusable": ".cm-editor"}
"""For rules of axe, the parts of Gradio that break them: the colors and the scrolling of its code box."""

IS_OURS = """([target, part]) => {
    const element = document.querySelector(target);
    return !part || !element?.closest(part);
}"""


COLOR_RULES = ("color-contrast", "link-in-text-block")
"""The rules of axe that read colors, and so depend on the theme (`cat.color`, but for what axe leaves out)."""


def problems(page, theme="light"):
    """Return what axe finds wrong, a line for each element, but for what is Gradio's own and not critical.

    All rules are checked in the light theme. In another, the elements are the same ones, and only the rules on colors
    can find more.
    """
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(AXE_SCRIPT)
    only = {} if theme == "light" else {"runOnly": {"type": "rule", "values": COLOR_RULES}}
    found = page.evaluate("options => axe.run(options)", {"resultTypes": ["violations"]} | only)["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:200]}"
        for rule in found
        for node in rule["nodes"]
        if rule["impact"] == "critical"
        or page.evaluate(IS_OURS, [node["target"][0], GRADIO.get(rule["id"], "")])
    ]
