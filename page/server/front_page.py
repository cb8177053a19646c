"""The HTML page that Gradio serves, with our own head: style, icon, title, and what a shared link shows.

Gradio writes a preview of its own, and adds a given head only after its scripts have run.
"""

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from urllib.parse import parse_qsl

from starlette.responses import FileResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from page.server import links
from pruning.errors import PruningError
from pruning.lessons import LESSONS

NAME = "Secateur"
DESCRIPTION = "Cut parts out of a real language model and see what it can still say."
PICTURE = "/preview.png"
PICTURE_SIZE = 1200, 630
LARGEST_PAGE = 4_000_000
LESSON = re.compile(r"0*(\d{1,2})(?:-[\w-]*)?")

_GRADIOS = re.compile(rb'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>')
_TITLE = re.compile(rb"<title>.*?</title>", re.DOTALL)


class FrontPage:
    """Puts a head into the page, and serves the picture that previews of its links show."""

    def __init__(self, app: ASGIApp, head: str, picture: Path) -> None:
        self._app, self._head, self._picture = app, head.encode(), picture

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
        elif scope["path"] == PICTURE:
            await FileResponse(self._picture)(scope, receive, send)
        elif scope["path"] == "/":
            await self._app(scope, receive, _Rewriter(send, self._head, scope))
        else:
            await self._app(scope, receive, send)


class _Rewriter:
    """Sends a page of HTML with another head, and anything else as it is."""

    def __init__(self, send: Send, head: bytes, scope: Scope) -> None:
        self._send, self._head, self._scope = send, head, scope
        self._start: Message | None = None
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_html(message):
            self._start = message
        elif self._start is None or message["type"] != "http.response.body":
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body") or len(self._body) > LARGEST_PAGE:
                start, body = self._start, self._rewrite(bytes(self._body))
                self._start = None
                headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
                if not message.get("more_body"):
                    headers.append((b"content-length", str(len(body)).encode()))
                await self._send({**start, "headers": headers})
                await self._send({**message, "body": body})

    def _rewrite(self, page: bytes) -> bytes:
        title, description = describe(dict(parse_qsl(self._scope["query_string"].decode("latin-1"))))
        heading = _encode(escape(title if title == NAME else f"{title} · {NAME}"))
        page = _TITLE.sub(lambda _: b"<title>" + heading + b"</title>", _GRADIOS.sub(b"", page), count=1)
        tags = _encode(preview_tags(title, description, _origin(self._scope)))
        return page.replace(b"</head>", tags + self._head + b"</head>", 1)


def _encode(text: str) -> bytes:
    return text.encode(errors="replace")  # A recipe of a link may hold half a character.


def _is_html(message: Message) -> bool:
    headers = {name.lower(): value for name, value in message.get("headers", [])}
    plain = b"content-encoding" not in headers
    return plain and headers.get(b"content-type", b"").startswith(b"text/html")


def _origin(scope: Scope) -> str:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    host = headers.get("x-forwarded-host") or headers.get("host", "")
    scheme = (headers.get("x-forwarded-proto") or str(scope.get("scheme"))).split(",")[0].strip()
    return f"{'https' if scheme == 'https' else 'http'}://{host.split(',')[0].strip()}"


def describe(parameters: Mapping[str, str]) -> tuple[str, str]:
    """Return the title and the description of what an address opens: a lesson, a recipe, or the page.

    Args:
        parameters: The query of the address.
    """
    if found := LESSON.fullmatch(parameters.get("lesson", "")):
        for lesson in LESSONS:
            if lesson.number == int(found[1]):
                return f"{lesson.number}. {lesson.title}", lesson.introduction.partition("\n\n")[0]
    if value := parameters.get(links.PARAMETER):
        try:
            recipe = links.decode(value)
        except PruningError:
            return NAME, DESCRIPTION
        steps = ", ".join(step.describe() for step in recipe.steps)
        return f"{recipe.base} without {steps}"[:120], DESCRIPTION
    return NAME, DESCRIPTION


def preview_tags(title: str, description: str, origin: str) -> str:
    """Return the tags that a shared link is previewed by.

    Args:
        title: The title of the preview.
        description: One sentence or two.
        origin: The scheme and the host of the page.
    """
    width, height = PICTURE_SIZE
    tags = {
        "og:title": title,
        "og:description": description,
        "og:type": "website",
        "og:site_name": NAME,
        "og:image": f"{origin}{PICTURE}",
        "og:image:width": str(width),
        "og:image:height": str(height),
    }
    meta = [f'<meta property="{name}" content="{escape(value)}">' for name, value in tags.items()]
    meta += [
        f'<meta name="description" content="{escape(description)}">',
        '<meta name="twitter:card" content="summary_large_image">',
    ]
    return "".join(meta)
