"""Take the README's picture: the page after a cut, on the offline weights."""

import os
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.helpers.serving import ARGUMENTS, ROOT, serve

PICTURE = ROOT / "docs" / "page.png"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        process, url = serve({}, Path(folder) / "log.txt")
        try:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1280, "height": 900}, device_scale_factor=1.5)
            page.set_default_timeout(300_000)
            page.goto(url)
            page.wait_for_selector("#parameters-after")
            page.click("#prune")
            page.wait_for_selector("#status .done")
            page.wait_for_timeout(500)
            PICTURE.parent.mkdir(exist_ok=True)
            page.screenshot(path=PICTURE)
            browser.close()
        finally:
            process.terminate()
    print(os.path.relpath(PICTURE))


if __name__ == "__main__":
    main()
