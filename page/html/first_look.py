"""What the page shows until Gradio has drawn it: the same header and results as plain HTML, in the same places.

Gradio's scripts take a second to draw the page. The results are known before.
"""

import re
from collections.abc import Sequence

_ID = re.compile(r' id="[^"]*"')
_DARK = (
    "<script>{const theme=new URLSearchParams(location.search).get('__theme');"
    "if(theme?theme==='dark':matchMedia('(prefers-color-scheme: dark)').matches)"
    "document.body.classList.add('dark')}</script>"
)
"""Gradio does the same as soon as its scripts run."""


def first_look(header: str, tabs: Sequence[str], results: Sequence[tuple[str, str]]) -> str:
    """Render the page as it opens.

    Args:
        header: The header, as HTML.
        tabs: The names of the tabs; the first one is open.
        results: For each component of the results its name and its HTML. Ids are left out: Gradio's components have
            them.
    """
    names = "".join(f"<span>{name}</span>" for name in tabs)
    parts = "".join(
        f'<div data-part="{name}"><div class="prose">{_ID.sub("", html)}</div></div>'
        for name, html in results
    )
    return (
        f'{_DARK}<div id="first-look" class="gradio-container" aria-hidden="true" inert><div class="main">{header}'
        f'<div class="names">{names}</div><div class="results">{parts}</div></div></div>'
    )
