"""The page, served as `python app.py` serves it, and a real browser in front of it."""

import shutil
import subprocess

import pytest

from tests.helpers.browser import PAGE, WORK
from tests.helpers.hub import CLIENT_ENV, LoopbackHub
from tests.helpers.serving import ARGUMENTS, page_cache, serve


@pytest.fixture(scope="module")
def served_hub():
    with LoopbackHub() as hub:
        hub.add_user("ada-token", "ada", orgs=["acme"])
        yield hub


@pytest.fixture(scope="module")
def page_url(smollm2, user_cache, served_hub, tmp_path_factory):
    """The page on the offline weights, signed in to a Hub on loopback."""
    home = tmp_path_factory.mktemp("page")
    environment = CLIENT_ENV | {
        "HF_ENDPOINT": served_hub.url,
        "HF_HOME": str(home / "hf"),
        "HF_TOKEN": "ada-token",
        "GRADIO_TEMP_DIR": str(home / "gradio"),
        "SECATEUR_CACHE": page_cache(home, user_cache),
    }
    process, url = serve(environment, home / "log.txt")
    yield url
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
    assert "Traceback" not in (home / "log.txt").read_text()


@pytest.fixture(scope="module")
def browser(need):
    """Start a browser. While Playwright runs, its thread has an event loop and can have no other: it ends
    with the file of its tests."""
    chromium = shutil.which("chromium")
    need(chromium, "Debian's chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, page_url):
    """`visit(width, height)` opens the page, or another address of it, and waits until it has drawn the
    model."""
    contexts = []

    def open_page(width=1366, height=900, address=page_url, script=None, **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        if script is not None:
            page.add_init_script(script)
        page.set_default_timeout(PAGE)
        page.goto(address)
        page.wait_for_selector("#parameters-after", state="attached", timeout=WORK)
        return page

    yield open_page
    for context in contexts:
        context.close()
