"""What axe finds on a page as it stands."""

from axe_playwright_python.sync_playwright import Axe

GRADIO = {"color-contrast": ".cm-editor", "scrollable-region-focusable": ".cm-editor"}
"""For rules of axe, the parts of Gradio that break them: the colors and the scrolling of its code box."""

IS_OURS = """([target, part]) => {
    const element = document.querySelector(target);
    return !part || !element?.closest(part);
}"""


def problems(page):
    """Return what axe finds wrong, a line for each element, but for what is Gradio's own and not critical."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:200]}"
        for rule in found
        for node in rule["nodes"]
        if rule["impact"] == "critical"
        or page.evaluate(IS_OURS, [node["target"][0], GRADIO.get(rule["id"], "")])
    ]
