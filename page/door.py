"""What stands before the page: calls that no browser showing it would make are refused at once.

Gradio serves many routes that this page has no use for, and hands calls on as they come. Here their size and
form are looked at first; what the values mean is for each handler to check.
"""

import json
import math
import re
from collections.abc import Iterable

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import JSONResponse

LARGEST = 2_000_000
"""Bytes of one call: the longest text that can be pasted, however it is written, fits."""
DEEPEST = 16
KEYS = {"data", "event_data", "fn_index", "session_hash", "trigger_id", "event_id"}
CALLS = re.compile(r"/gradio_api/(queue/join|(?:run|api|call)/[^/]+)/?")
NAMED = re.compile(r"/gradio_api/call/v2/([^/]+)/?")
SESSION = re.compile(r"[\w-]{1,64}")
UNUSED = re.compile(
    r"/gradio_api/(upload|component_server|stream|process_recording|vibe|undo-vibe|proxy=|custom_component"
    r"|deep_link|run-history|dev/|file[=/]\w+:)|/monitoring"
)
"""This page takes no files and shows none from elsewhere."""


class Refused(Exception):
    """A call that is not made as the page makes it."""


def closed_to_others(demo: gr.Blocks) -> list[Middleware]:
    """The door of a page, for the app's middleware. Values reach its handlers as they were sent: what a
    control allows is no check of what arrives, and each handler does its own."""
    for function in demo.fns.values():
        function.preprocess = False
    return [Middleware(Door, demo=demo)]


class Door:
    """Looks at each request before Gradio does."""

    def __init__(self, app, demo: gr.Blocks):
        self._app, self._demo = app, demo

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"]
        if UNUSED.match(path):
            return await _refusal(404, "This page has no such thing.")(scope, receive, send)
        if scope["method"] == "POST":
            body = await _body(receive)
            if body is None:
                text = f"A call may have {LARGEST:,} bytes at most."
                return await _refusal(413, text)(scope, receive, send)
            try:
                if CALLS.fullmatch(path):
                    self._check_call(path, _read(body))
                elif NAMED.fullmatch(path):
                    _read(body)
                    self._named(NAMED.fullmatch(path)[1])
                elif path.rstrip("/").endswith("/cancel"):
                    _read(body)
            except Refused as refused:
                return await _refusal(422, str(refused))(scope, receive, send)
            receive = _again(body, receive)
        return await self._app(scope, receive, send)

    def _check_call(self, path: str, call: dict) -> None:
        if unknown := call.keys() - KEYS:
            raise Refused(f"A call has no {sorted(unknown)[0][:40]!r}.")
        session = call.get("session_hash")
        if session is not None and not (isinstance(session, str) and SESSION.fullmatch(session)):
            raise Refused("A session is named by up to 64 letters and digits.")
        values = call.get("data")
        if not isinstance(values, list):
            raise Refused("A call needs its values as a list under data.")
        index = call.get("fn_index")
        if index is None and not path.endswith("/queue/join"):
            function = self._named(path.rstrip("/").split("/")[-1])
        elif isinstance(index, bool) or not isinstance(index, int) or index not in self._demo.fns:
            raise Refused("There is no such function.")
        else:
            function = self._demo.fns[index]
        lengths = {len(function.inputs), sum(not block.skip_api for block in function.inputs)}
        if len(values) not in (lengths if "/call/" in path else {len(function.inputs)}):
            raise Refused(f"This function takes {max(lengths)} values, not {len(values)}.")

    def _named(self, name: str):
        for function in self._demo.fns.values():
            if function.api_name == name and function.api_visibility != "private":
                return function
        raise Refused("There is no function of this name.")


def _refusal(status: int, text: str) -> JSONResponse:
    return JSONResponse({"detail": text}, status)


async def _body(receive) -> bytes | None:
    """The whole body of a request; None where it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > LARGEST:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes, receive):
    """Receive a body that was read, then what comes after it."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def again():
        return left.pop() if left else await receive()

    return again


def _read(body: bytes) -> dict:
    try:
        call = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Refused("A call is an object in JSON.") from None
    if not isinstance(call, dict):
        raise Refused("A call is an object in JSON.")
    _check_values([call])
    return call


def _no_number(name: str):
    raise ValueError(name)


def _check_values(values: Iterable[object]) -> None:
    """Refuse what has no place in JSON, and anything that is not plain values."""
    for _ in range(DEEPEST):
        inner: list[object] = []
        for value in values:
            if isinstance(value, dict):
                if "path" in value or "url" in value:
                    raise Refused("This page takes no files.")
                inner += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and not _encodes(value):
                raise Refused("A text holds half a character.")
            elif (isinstance(value, float) and not math.isfinite(value)) or (
                isinstance(value, int) and abs(value) >= 2**63
            ):
                raise Refused("A number is too large.")
        if not inner:
            return
        values = inner
    raise Refused("A call holds lists in lists, too deep.")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
