"""What stands before the page: calls that no browser showing it would make are refused at once.

Gradio serves many routes that this page has no use for, and hands calls on as they come. Here their size and
form are looked at first; what the values mean is for each handler to check.
"""

import json
import re
from collections.abc import Iterable
from urllib.parse import parse_qs

import gradio as gr
from gradio import server_messages
from gradio.utils import get_function_params
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response

LARGEST = 2_000_000
"""Bytes of one call: the longest text that can be pasted, however it is written, fits."""
DEEPEST = 16
LARGEST_NUMBER = 2**63
KEYS = {"data", "event_data", "fn_index", "session_hash", "trigger_id", "event_id"}
CALLS = re.compile(r"/gradio_api/(queue/join|(?:run|api|call)/[^/]+)/?")
NAMED = re.compile(r"/gradio_api/call/v2/([^/]+)/?")
OTHERS = re.compile(r"/gradio_api/mcp|/login")
"""What reads its own kind of call."""
ANSWERS = re.compile(r"/gradio_api/call/(?:v2/)?[^/]+/([^/]+)/?")
SESSION = re.compile(r"[\w-]{1,64}")
UNUSED = re.compile(
    r"/gradio_api/(upload|component_server|stream|process_recording|vibe|undo-vibe|proxy=|custom_component"
    r"|deep_link|run-history|dev/|file[=/]\w+:)|/monitoring"
)
"""This page takes no files and shows none from elsewhere."""


KINDS = {
    "textbox": str,
    "radio": str,
    "dropdown": str | int | float,
    "slider": int | float,
    "number": int | float,
    "checkbox": bool,
    "string": str,
    "integer": int | float,
    "boolean": bool,
}
"""What the controls of the page and the arguments of its API send, besides nothing at all."""


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
                elif named := NAMED.fullmatch(path):
                    _check_arguments(self._named(named[1]), _read(body))
                elif not OTHERS.match(path):
                    _read(body)
            except Refused as refused:
                return await _refusal(422, str(refused))(scope, receive, send)
            receive = _again(body, receive)
        elif self._is_lost(path, scope["query_string"]):
            # Gradio says the same to its client, and fails over it in its log.
            said = server_messages.UnexpectedErrorMessage(message="Not found", session_not_found=True)
            answer = Response(f"data: {said.model_dump_json()}\n\n", media_type="text/event-stream")
            return await answer(scope, receive, send)
        return await self._app(scope, receive, send)

    def _is_lost(self, path: str, query: bytes) -> bool:
        """Whether a client asks for the answers of a session or of a call that there is not."""
        queue = self._demo._queue
        if path.rstrip("/") == "/gradio_api/queue/data":
            asked = parse_qs(query.decode("latin-1")).get("session_hash", [""])
            return asked[-1] not in queue.pending_messages_per_session
        if called := ANSWERS.fullmatch(path):
            known = queue.event_ids_to_events.keys() | queue.pending_messages_per_session.keys()
            return called[1] not in known.union(*queue.pending_event_ids_session.values())
        return False

    def _check_call(self, path: str, call: dict) -> None:
        if unknown := call.keys() - KEYS:
            raise Refused(f"A call has no {sorted(unknown)[0][:40]!r}.")
        session = call.get("session_hash")
        if session is not None and not (isinstance(session, str) and SESSION.fullmatch(session)):
            raise Refused("A session is named by up to 64 letters and digits.")
        trigger = call.get("trigger_id")
        if isinstance(trigger, bool) or not (trigger is None or isinstance(trigger, int)):
            raise Refused("What is pressed has a number.")
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
        if any(event == "select" for _, event in function.targets) and not _is_place(call.get("event_data")):
            raise Refused("It is not said what was selected.")
        lengths = {len(function.inputs), sum(not block.skip_api for block in function.inputs)}
        if len(values) not in (lengths if "/call/" in path else {len(function.inputs)}):
            raise Refused(f"This function takes {max(lengths)} values, not {len(values)}.")
        if len(values) == len(function.inputs):
            for place, (block, value) in enumerate(zip(function.inputs, values, strict=True), 1):
                if not _fits(block, value):
                    raise Refused(f"Value {place} is of another kind than this function takes.")

    def _named(self, name: str):
        for function in self._demo.fns.values():
            if function.api_name == name and function.api_visibility != "private":
                return function
        raise Refused("There is no function of this name.")


def _check_arguments(function, given: dict) -> None:
    """Refuse arguments by name that a function of the API does not take."""
    taken = get_function_params(function.fn)
    for block, (name, optional, _, _) in zip(function.inputs, taken, strict=True):
        if name not in given and not optional:
            raise Refused(f"The argument {name} is missing.")
        if not _fits(block, given.get(name)):
            raise Refused(f"The argument {name} is of another kind than this function takes.")
    if unknown := given.keys() - {name for name, *_ in taken}:
        raise Refused(f"There is no argument {min(unknown)[:40]!r}.")


def _is_place(selected: object) -> bool:
    """Whether this says which cell of a table was pressed."""
    place = selected.get("index") if isinstance(selected, dict) else None
    return (
        isinstance(place, list)
        and len(place) == 2
        and all(isinstance(number, int) and number >= 0 for number in place)
        and "value" in selected
    )


def _fits(block, value: object) -> bool:
    name = block.get_block_name()
    kind = KINDS.get(block.api_info().get("type") if name == "api" else name)
    if value is None or kind is None:
        return True
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


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
            elif isinstance(value, int | float) and not -LARGEST_NUMBER < value < LARGEST_NUMBER:
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
