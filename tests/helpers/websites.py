"""Web sites on loopback that a browser sees under names of their own, over TLS, and one that knows who a visitor is.

Start Chromium with `BROWSER_ARGUMENTS`, and every name leads to this machine.
"""

import json
import ssl
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

BROWSER_ARGUMENTS = ["--host-resolver-rules=MAP * 127.0.0.1", "--ignore-certificate-errors"]


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return the files of a new key and of its certificate."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=test"]
    outputs = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *outputs], check=True, capture_output=True)
    return key, certificate


@contextmanager
def serve(handler, certificate=None):
    """Serve a handler in a thread, over TLS if there is a certificate, and give its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if certificate is not None:
        key_file, certificate_file = certificate
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate_file, key_file)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class Quiet(BaseHTTPRequestHandler):
    """A handler without a log."""

    def log_message(self, *arguments):
        """Log nothing."""

    def answer(self, body, kind="text/html", status=200, **headers):
        """Answer a request."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Pages(Quiet):
    """A web site of fixed pages."""

    def __init__(self, pages, *arguments):
        self.pages = pages
        super().__init__(*arguments)

    def do_GET(self):
        """Answer with a page, or with an empty one."""
        self.answer(self.pages.get(self.path, "").encode())


class Identity(Quiet):
    """An OpenID provider at which everyone is ada, once they press a button."""

    def __init__(self, addresses, *arguments):
        self.addresses = addresses
        super().__init__(*arguments)

    def do_GET(self):
        """Describe the provider, or ask whether to sign in."""
        browser, program = self.addresses["browser"], self.addresses["program"]
        if self.path.startswith("/.well-known"):
            found = {
                "issuer": program,
                "authorization_endpoint": f"{browser}/authorize",
                "token_endpoint": f"{program}/token",
                "jwks_uri": f"{program}/keys",
            }
            self.answer(json.dumps(found).encode(), "application/json")
        elif self.path.startswith("/authorize"):
            query = parse_qs(urlsplit(self.path).query)
            action = urlencode({"to": query["redirect_uri"][0], "state": query["state"][0]})
            form = f"<form method=post action='/allow?{action}'><button id=allow>Allow</button></form>"
            self.answer(form.encode())
        else:
            self.answer(b"", status=404)

    def do_POST(self):
        """Send the browser back with a code, or give a program the token."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/allow"):
            query = parse_qs(urlsplit(self.path).query)
            to, state = query["to"][0], query["state"][0]
            code = urlencode({"code": "ada", "state": state})
            self.answer(b"", status=302, Location=f"{to}{'&' if '?' in to else '?'}{code}")
        else:
            person = {"sub": "ada", "name": "Ada", "preferred_username": "ada", "profile": "", "picture": ""}
            token = {
                "access_token": "ada-token",
                "token_type": "bearer",
                "scope": "openid",
                "expires_in": 3600,
                "userinfo": person,
            }
            self.answer(json.dumps(token).encode(), "application/json")


@contextmanager
def identity_provider(certificate):
    """Run the provider; give its address for programs."""
    addresses = {}
    handler = partial(Identity, addresses)
    with serve(handler) as program, serve(handler, certificate) as browser:
        addresses["program"] = f"http://127.0.0.1:{program}"
        addresses["browser"] = f"https://identity.test:{browser}"
        yield addresses["program"]
