"""What another web site in the same browser can do to a visitor who is signed in: nothing in their name."""

import importlib.util
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from functools import partial

import pytest

from tests.helpers.browser import PAGE
from tests.helpers.serving import ARGUMENTS, ROOT, START_SECONDS
from tests.helpers.websites import BROWSER_ARGUMENTS, Pages, identity_provider, make_certificate, serve

pytestmark = pytest.mark.browser

ATTACK = """
<script>
const space = SPACE, id = FUNCTION;
const body = JSON.stringify({data: ["evil-json"], fn_index: id, session_hash: "evilsession"});
const plain = body.replaceAll("evil-json", "evil-plain");
async function attack() {
  const seen = [];
  for (const [type, text] of [["application/json", body], ["text/plain", plain]]) {
    const options = {method: "POST", credentials: "include", headers: {"content-type": type}, body: text};
    await fetch(space + "/gradio_api/queue/join", options).catch(() => seen.push("blocked"));
    await fetch(space + "/gradio_api/queue/join", {...options, mode: "no-cors",
      headers: {"content-type": "text/plain"}}).catch(() => 0);
  }
  for (const path of ["/logout", "/login/huggingface"])
    await fetch(space + path, {credentials: "include", mode: "no-cors", redirect: "manual"}).catch(() => 0);
  document.title = "over " + seen.length;
}
attack();
</script>
"""
FRAME = "<iframe id=frame src='SPACE/?__theme=light' width=1000 height=700></iframe>"
LINK = "<a id=link href='SPACE/logout'>Sign out</a>"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory, need):
    need(shutil.which("openssl"), "openssl is not installed")
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def chromium(need):
    """`chromium(profile)` starts a browser that keeps what it knows in a folder."""
    path = shutil.which("chromium")
    need(path, "Debian's chromium is not installed")
    need(importlib.util.find_spec("authlib"), "gradio[oauth] is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:

        def start(profile):
            # Only a browser that sends cookies to frames of other sites shows what the gate is for.
            preferences = profile / "Default" / "Preferences"
            preferences.parent.mkdir(parents=True)
            cookies = {"cookie_controls_mode": 0, "block_third_party_cookies": False}
            preferences.write_text(json.dumps({"profile": cookies}))
            return playwright.chromium.launch_persistent_context(
                profile,
                executable_path=path,
                args=ARGUMENTS + BROWSER_ARGUMENTS,
                ignore_https_errors=True,
            )

        yield start


@pytest.fixture(scope="module", params=["gate", "no"], ids=["with the gate", "without it"])
def space(request, certificate, tmp_path_factory, chromium):
    """A page on a Space where ada has signed in: its address, what was done there, and ada's browser."""
    folder = tmp_path_factory.mktemp("space")
    acted = folder / "acted.txt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with identity_provider(certificate) as provider:
        environment = os.environ | {
            "SYSTEM": "spaces",
            "SPACE_ID": "ada/page",
            "OAUTH_CLIENT_ID": "page",
            "OAUTH_CLIENT_SECRET": "secret",
            "OAUTH_SCOPES": "openid profile",
            "OPENID_PROVIDER_URL": provider,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GATE": request.param,
            "ACTED": str(acted),
        }
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.helpers.signing_in", *map(str, certificate), str(port)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_for(f"https://127.0.0.1:{port}", process, folder / "log.txt")
            context = chromium(folder / "profile")
            context.set_default_timeout(PAGE)
            yield Space(f"https://ada-page.test:{port}", acted, context, request.param == "gate")
            context.close()
        finally:
            process.terminate()
            process.wait(20)


class Space:
    def __init__(self, url, acted, context, has_gate):
        self.url, self.acted, self.context, self.has_gate = url, acted, context, has_gate

    def sign_in(self):
        page = self.context.new_page()
        # The address to which the button leads; a page that is still loading would lose the click.
        page.goto(f"{self.url}/login/huggingface?_target_url=/")
        page.locator("#allow").click()
        page.wait_for_url(f"{self.url}/**")
        return page

    def who_acted(self, session):
        lines = self.acted.read_text().splitlines() if self.acted.exists() else []
        return {line.split()[1] for line in lines if line.startswith(session)}


def wait_for(url, process, log):
    """Wait until a page answers."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5, context=context).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def act(page):
    """Press the button of the page, or of a frame of it, and return what it answers."""
    page.locator("#act").click()
    page.wait_for_function("() => document.querySelector('#answer textarea').value.startsWith('acted')")
    return page.locator("#answer textarea").input_value()


def test_a_visitor_who_signs_in_acts_in_their_name_and_another_site_does_not(space, certificate):
    page = space.sign_in()
    assert act(page) == "acted as ada-token"
    function = next(
        entry["id"]
        for entry in json.loads(page.evaluate("JSON.stringify(window.gradio_config)"))["dependencies"]
        if entry["api_name"] == "act"
    )
    pages = {
        "/attack": ATTACK.replace("SPACE", json.dumps(space.url)).replace("FUNCTION", str(function)),
        "/frame": FRAME.replace("SPACE", space.url),
        "/link": LINK.replace("SPACE", space.url),
    }
    with serve(partial(Pages, pages), certificate) as port:
        # The page works in a frame of another site, as the Hub shows it.
        hub = space.context.new_page()
        hub.goto(f"https://hub.test:{port}/frame")
        frame = hub.locator("#frame").element_handle().content_frame()
        assert act(frame) == "acted as ada-token"

        evil = space.context.new_page()
        evil.goto(f"https://evil.test:{port}/attack")
        evil.wait_for_function("() => document.title.startsWith('over')")
        # The queue comes to a visit that begins now after what the attack has sent.
        later = space.context.new_page()
        later.goto(space.url)
        assert act(later) == "acted as ada-token"
        # Without the gate, the attack works: what is shown below is the gate's doing.
        if not space.has_gate:
            assert "ada-token" in space.who_acted("evil")
            return
        assert space.who_acted("evil") <= {"nobody"}

        # Nor can it sign the visitor out, by a request or by a link.
        evil.goto(f"https://evil.test:{port}/link")
        evil.locator("#link").click()
        evil.wait_for_url(f"{space.url}/**")
        assert act(evil) == "acted as ada-token"
    assert space.who_acted("page") == {"ada-token"}
