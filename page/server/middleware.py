"""Refuse, before Gradio sees them, calls that no browser showing this page would make.

Gradio serves many routes that this page has no use for, and hands calls on as they come. Here their size and
form are checked first; what the values mean is for each handler to check.
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

import gradio as gr
from gradio import server_messages
from gradio.blocks import Block, BlockFunction
from gradio.components import Component
from gradio.utils import get_function_params
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response

MAX_BYTES = 2_000_000
"""Bytes of one call: the longest text that can be pasted fits, however it is written."""
MAX_DEPTH = 16
MAX_NUMBER = 2**63
CALLS = re.compile(r"/gradio_api/(queue/join|(?:run|api|call)/[^/]+)/?")
NAMED_CALLS = re.compile(r"/gradio_api/call/v2/([^/]+)/?")
OTHER_BODIES = re.compile(r"/gradio_api/mcp|/login")
"""Routes that read their own kind of body."""
EVENT_STREAMS = re.compile(r"/gradio_api/call/(?:v2/)?[^/]+/([^/]+)/?")
SESSION = re.compile(r"[\w-]{1,64}")
UNUSED = re.compile(
    r"/gradio_api/(upload|component_server|stream|process_recording|vibe|undo-vibe|proxy=|custom_component"
    r"|deep_link|run-history|dev/|file[=/]\w+:)|/monitoring"
)
"""This page takes no files and shows none from elsewhere."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refused(Exception):
    """A call that is not made as the page makes it."""


def _check_plain(values: Iterable[object]) -> None:
    """Refuse what has no place in JSON, and anything that is not plain values."""
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for value in values:
            if isinstance(value, dict):
                if "path" in value or "url" in value:
                    raise ValueError("This page takes no files.")
                inner += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and not _is_encodable(value):
                raise ValueError("A text contains half a character.")
            elif isinstance(value, int | float) and not -MAX_NUMBER < value < MAX_NUMBER:
                raise ValueError("A number is too large.")
        if not inner:
            return
        values = inner
    raise ValueError("The values are nested too deeply.")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_object(value: dict[str, object]) -> dict[str, object]:
    _check_plain([value])
    return value


def _check_session(value: str) -> str:
    if not SESSION.fullmatch(value):
        raise ValueError("A session is named by up to 64 letters and digits.")
    return value


Body = Annotated[dict[str, object], AfterValidator(_check_object)]
"""A JSON object of plain values: bounded numbers, whole characters, no files, not nested deeply."""
BODY: TypeAdapter[dict[str, object]] = TypeAdapter(Body, config=ConfigDict(strict=True))

Session = Annotated[str, AfterValidator(_check_session)]


class Call(BaseModel):
    """A call of one of the page's functions, by its number or name.

    Attributes:
        data: The values of its inputs.
        event_data: What was selected, for functions that a selection calls.
        fn_index: The number of the function, if its name is not in the path.
        session_hash: The visitor's session.
        trigger_id: The number of the component that was pressed.
        event_id: Gradio's number of the call.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    data: list[object]
    event_data: object = None
    fn_index: int | None = None
    session_hash: Session | None = None
    trigger_id: int | None = None
    event_id: object = None


class Selection(BaseModel):
    """Which cell of a table was selected, and its value."""

    model_config = ConfigDict(strict=True)

    index: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]
    value: object


_NUMBER = int | float
_KINDS: dict[str, Any] = {
    "textbox": str | None,
    "radio": str | None,
    "dropdown": str | _NUMBER | None,
    "slider": _NUMBER | None,
    "number": _NUMBER | None,
    "checkbox": bool | None,
    "string": str | None,
    "integer": _NUMBER | None,
    "boolean": bool | None,
}
VALUES = {name: TypeAdapter(kind, config=ConfigDict(strict=True)) for name, kind in _KINDS.items()}
"""What the controls of the page and the arguments of its API send."""

MESSAGES = {
    "data": "A call needs its values as a list under data.",
    "fn_index": "There is no such function.",
    "session_hash": "A session is named by up to 64 letters and digits.",
    "trigger_id": "The component that was pressed has a whole number.",
}


def request_middleware(demo: gr.Blocks) -> list[Middleware]:
    """Return the middleware of a page.

    Values reach the page's handlers as they were sent: what a control allows says nothing about what arrives,
    and each handler does its own checks.
    """
    for function in demo.fns.values():
        function.preprocess = False
    return [Middleware(RequestCheck, demo=demo)]


class RequestCheck:
    """Checks each request before Gradio does."""

    def __init__(self, app: App, demo: gr.Blocks) -> None:
        self._app, self._demo = app, demo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        answer: Response | None = None
        if UNUSED.match(path):
            answer = _refuse(404, "There is no such thing on this page.")
        elif scope["method"] == "POST":
            body = await _read_body(receive)
            if body is None:
                answer = _refuse(413, f"A call may have {MAX_BYTES:,} bytes at most.")
            else:
                try:
                    self._check(path, body)
                except Refused as refused:
                    answer = _refuse(422, str(refused))
                receive = _receive_again(body, receive)
        elif self._is_unknown(path, scope["query_string"]):
            # Gradio tells its client the same, and fails over it in its log.
            message = server_messages.UnexpectedErrorMessage(message="Not found", session_not_found=True)
            answer = Response(f"data: {message.model_dump_json()}\n\n", media_type="text/event-stream")
        await (answer or self._app)(scope, receive, send)

    def _check(self, path: str, body: bytes) -> None:
        """Check the body of a call; raises `Refused`."""
        if CALLS.fullmatch(path):
            self._check_call(path, _parse_call(_parse_body(body)))
        elif named := NAMED_CALLS.fullmatch(path):
            _check_arguments(self._function_named(named[1]), _parse_body(body))
        elif not OTHER_BODIES.match(path):
            _parse_body(body)

    def _is_unknown(self, path: str, query: bytes) -> bool:
        """Return whether a client asks for the events of a session or of a call that does not exist."""
        queue = self._demo._queue
        if path.rstrip("/") == "/gradio_api/queue/data":
            sessions = parse_qs(query.decode("latin-1")).get("session_hash", [""])
            return sessions[-1] not in queue.pending_messages_per_session
        if called := EVENT_STREAMS.fullmatch(path):
            known = queue.event_ids_to_events.keys() | queue.pending_messages_per_session.keys()
            return called[1] not in known.union(*queue.pending_event_ids_session.values())
        return False

    def _check_call(self, path: str, call: Call) -> None:
        if call.fn_index is None and not path.endswith("/queue/join"):
            function = self._function_named(path.rstrip("/").split("/")[-1])
        elif call.fn_index is None or call.fn_index not in self._demo.fns:
            raise Refused("There is no such function.")
        else:
            function = self._demo.fns[call.fn_index]
        if any(event == "select" for _, event in function.targets):
            _check_selection(call.event_data)
        lengths = {len(function.inputs), sum(not block.skip_api for block in function.inputs)}
        if len(call.data) not in (lengths if "/call/" in path else {len(function.inputs)}):
            raise Refused(f"This function takes {max(lengths)} values, not {len(call.data)}.")
        if len(call.data) == len(function.inputs):
            for number, (block, value) in enumerate(zip(function.inputs, call.data, strict=True), 1):
                if not _fits(block, value):
                    raise Refused(f"Value {number} is of another kind than this function takes.")

    def _function_named(self, name: str) -> BlockFunction:
        for function in self._demo.fns.values():
            if function.api_name == name and function.api_visibility != "private":
                return function
        raise Refused("There is no function of this name.")


def _parse_body(body: bytes) -> dict[str, object]:
    """Return a body as plain values; raises `Refused`."""
    try:
        values = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Refused("A call is an object in JSON.") from None
    try:
        return BODY.validate_python(values)
    except ValidationError as error:
        raise Refused(_message(error, "A call is an object in JSON.")) from None


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads although they are not JSON."""
    raise ValueError(name)


def _parse_call(values: dict[str, object]) -> Call:
    try:
        return Call.model_validate(values)
    except ValidationError as error:
        unknown = [str(found["loc"][0]) for found in error.errors() if found["type"] == "extra_forbidden"]
        if unknown:
            raise Refused(f"A call has no {min(unknown)[:40]!r}.") from None
        raise Refused(MESSAGES.get(str(error.errors()[0]["loc"][0]), "This is not a call.")) from None


def _message(error: ValidationError, default: str) -> str:
    """Return what a check of our own says, or the default."""
    first = error.errors()[0]
    return str(first["ctx"]["error"]) if first["type"] == "value_error" else default


def _check_selection(selected: object) -> None:
    try:
        Selection.model_validate(selected)
    except ValidationError:
        raise Refused("The call does not say what was selected.") from None


def _check_arguments(function: BlockFunction, given: dict[str, object]) -> None:
    """Refuse arguments by name that a function of the API does not take."""
    taken = get_function_params(function.fn) if function.fn is not None else []
    for block, (name, optional, _, _) in zip(function.inputs, taken, strict=True):
        if name not in given and not optional:
            raise Refused(f"The argument {name} is missing.")
        if not _fits(block, given.get(name)):
            raise Refused(f"The argument {name} is of another kind than this function takes.")
    if unknown := given.keys() - {name for name, *_ in taken}:
        raise Refused(f"There is no argument {min(unknown)[:40]!r}.")


def _fits(block: Block, value: object) -> bool:
    """Return whether a value is of a kind that a component sends; components of other kinds send anything."""
    if not isinstance(block, Component):
        return True
    name = block.get_block_name()
    kind = VALUES.get(str(block.api_info().get("type")) if name == "api" else name)
    if kind is None:
        return True
    try:
        kind.validate_python(value)
    except ValidationError:
        return False
    return True


def _refuse(status: Literal[404, 413, 422], text: str) -> JSONResponse:
    return JSONResponse({"detail": text}, status)


async def _read_body(receive: Receive) -> bytes | None:
    """Return the whole body of a request; None if it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _receive_again(body: bytes, receive: Receive) -> Receive:
    """Return a receiver of a body that was read, then of what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again
