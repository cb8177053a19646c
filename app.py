"""Launch the page: `python app.py`."""

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

    from page.launch import launch  # noqa: PLC0415  # After the environment is set.

    launch()


if __name__ == "__main__":
    main()
