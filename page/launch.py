"""Serve the page."""

import os

from page.html.theme import HEAD, THEME
from page.layout import build_page
from page.server.middleware import request_middleware
from page.server.session import ON_SPACE, QUEUE_SIZE
from page.server.warm_up import WarmUp
from pruning.runtime import configure


def launch() -> None:
    """Build the page, and serve it until the process ends."""
    configure()
    warm_up = WarmUp()
    warm_up.start()
    demo = build_page(warm_up)
    # Each job waits in its own queue; this is only a bound on all of them together.
    demo.queue(max_size=10 * QUEUE_SIZE, api_open=False).launch(
        theme=THEME,
        head=HEAD,
        server_name=None if ON_SPACE else "127.0.0.1",
        server_port=None if ON_SPACE else int(os.environ.get("PORT", "7860")),
        ssr_mode=False,
        footer_links=[],
        show_error=True,
        mcp_server=True,
        max_threads=4 * QUEUE_SIZE,
        enable_monitoring=False,
        app_kwargs={"middleware": request_middleware(demo)},
    )
