"""The HTML page that Gradio serves, with our own head: style, icon, title, and what a shared link shows.

Gradio writes a preview of its own, and adds a given head only after its scripts have run.
"""

import re
from collections import OrderedDict
from collections.abc import Hashable, Mapping
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
Html = tuple[Message, bytes]
"""A page as Gradio makes it: the message that starts the response, and the body."""
LARGEST_PAGE = 4_000_000
"""Bytes of a page that is kept."""
MOST_PAGES = 16
"""For how many names the page is kept at the same time."""
GRADIOS_PARAMETERS = {"page", "deep_link"}
"""With one of these, an address opens another page of Gradio's."""
OPENING = {"lesson", "only", links.PARAMETER, links.ROOM}
"""With one of these, an address opens something other than the first results."""
NAMING_HEADERS = {b"host", b"x-forwarded-host", b"x-forwarded-proto", b"x-gradio-server"}
LESSON = re.compile(r"0*(\d{1,2})(?:-[\w-]*)?")

_GRADIOS = re.compile(rb'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>')
_BODY = re.compile(rb"<body\b[^>]*>")
_TITLE = re.compile(rb"<title>.*?</title>", re.DOTALL)


class FrontPage:
    """Puts a head and a first look into the page, and serves the picture that previews of its links show.

    Gradio makes the whole page again for each visitor, which takes 25 ms. The page depends only on the name by which it
    is reached, so it is made once for each name.
    """

    def __init__(self, app: ASGIApp, head: str, first_look: str, picture: Path) -> None:
        self._app, self._head, self._first_look = app, head.encode(), first_look.encode()
        self._picture = picture
        self._pages: OrderedDict[Hashable, Html] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
        elif scope["path"] == PICTURE:
            await FileResponse(self._picture)(scope, receive, send)
        elif scope["path"] == "/":
            query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
            key = None if GRADIOS_PARAMETERS & query.keys() else _name_of_page(scope)
            made = self._pages.get(key) or await self._make(key, scope, receive, send)
            if made is not None:
                await self._show(*made, query, scope, send)
        else:
            await self._app(scope, receive, send)

    async def _make(self, key: Hashable, scope: Scope, receive: Receive, send: Send) -> Html | None:
        """Have Gradio make the page; None if it answered something else, which is sent as it is."""
        start: Message | None = None
        body = bytearray()

        async def take(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_html(message):
                start = message
            elif start is not None and message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
            else:
                await send(message)

        await self._app(scope, receive, take)
        if start is None:
            return None
        made = start, _GRADIOS.sub(b"", bytes(body))
        if key is not None and _is_for_everyone(start) and len(body) <= LARGEST_PAGE:
            self._pages[key] = made
            if len(self._pages) > MOST_PAGES:
                self._pages.popitem(last=False)
        return made

    async def _show(
        self, start: Message, body: bytes, query: Mapping[str, str], scope: Scope, send: Send
    ) -> None:
        """Send the page with the head of what an address opens."""
        title, description = describe(query)
        tags = preview_tags(title, description, _origin(scope))
        heading = _encode(escape(title if title == NAME else f"{title} · {NAME}"))
        page = _TITLE.sub(lambda _: b"<title>" + heading + b"</title>", body, count=1)
        page = page.replace(b"</head>", _encode(tags) + self._head + b"</head>", 1)
        if not (OPENING | GRADIOS_PARAMETERS) & query.keys():
            page = _BODY.sub(lambda tag: tag[0] + self._first_look, page, count=1)
        headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
        headers.append((b"content-length", str(len(page)).encode()))
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": page})


def _is_for_everyone(start: Message) -> bool:
    """Whether the page of a response may be sent to other visitors too."""
    return start["status"] == 200 and all(name.lower() != b"set-cookie" for name, _ in start["headers"])


def _name_of_page(scope: Scope) -> Hashable:
    """Return all that Gradio's page depends on: by which name and through which proxy it is reached."""
    headers = [pair for pair in scope["headers"] if pair[0].lower() in NAMING_HEADERS]
    return scope.get("scheme"), scope.get("root_path"), tuple(sorted(headers))


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
