"""Launch the page: `python app.py`."""

import gc
import logging
import os


def main() -> None:
    """Set up the process, then build and serve the page."""
    # Gradio reads the first when it is imported, and OpenMP the second when torch is, so both are set before
    # the page is. Two texts are generated at the same time: threads that spin while they wait would starve
    # each other.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for noisy in ("httpx", "httpx2", "mcp"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    launch()


def launch() -> None:
    """Build the page, and serve it until the process ends."""
    # Workers are forked from a server that imports what they need while the page imports what it needs.
    from page.workers import fork_server  # noqa: PLC0415

    fork_server.start()
    # The process is set up before the page is imported, which takes memory.
    from pruning.runtime import configure  # noqa: PLC0415

    configure()

    from starlette.middleware import Middleware  # noqa: PLC0415

    from page.html.theme import FAVICON, HEAD, PREVIEW, THEME  # noqa: PLC0415
    from page.layout import build_page, first_look_of  # noqa: PLC0415
    from page.server.audience import MAX_SESSIONS  # noqa: PLC0415
    from page.server.front_page import FrontPage  # noqa: PLC0415
    from page.server.health import Health  # noqa: PLC0415
    from page.server.middleware import request_middleware  # noqa: PLC0415
    from page.server.session import QUEUE_SIZE, SITE, pools  # noqa: PLC0415
    from page.server.warm_up import WarmUp  # noqa: PLC0415

    warm_up = WarmUp()
    warm_up.start()
    demo = build_page(warm_up)
    # Everything built so far lives as long as the page. Every visitor would wait while a collection scans it.
    gc.collect()
    gc.freeze()
    # Each job waits in its own queue; this is only a bound on all of them together.
    demo.queue(max_size=10 * QUEUE_SIZE, api_open=False).launch(
        theme=THEME,
        favicon_path=FAVICON,
        server_name=SITE.host,
        server_port=None if SITE.host is None else int(os.environ.get("PORT", "7860")),
        share=False,
        ssr_mode=False,
        footer_links=[],
        show_error=True,
        mcp_server=True,
        # A place for everyone who watches a job; watching takes no thread.
        max_threads=2 * MAX_SESSIONS,
        state_session_capacity=MAX_SESSIONS + MAX_SESSIONS // 4,
        enable_monitoring=False,
        app_kwargs={
            "middleware": [
                Middleware(Health, pools=pools),
                Middleware(FrontPage, head=HEAD, first_look=first_look_of(demo), picture=PREVIEW),
                *request_middleware(demo),
            ]
        },
    )


if __name__ == "__main__":
    main()
