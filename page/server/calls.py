"""The form of the calls that the page and its API make; all others are refused.

Gradio hands calls on as they come. Here their size and form are checked first; what the values mean is for each
handler to check.
"""

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any

import gradio as gr
from gradio.blocks import Block, BlockFunction
from gradio.components import Component, Textbox
from gradio.utils import get_function_params
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from page.server.bodies import MAX_BYTES, SMALL_BYTES, Refused, check_count

MAX_DEPTH = 16
MAX_NUMBER = 2**63
CALLS = re.compile(r"/gradio_api/(queue/join|(?:run|api|call)/[^/]+)/?")
NAMED_CALLS = re.compile(r"/gradio_api/call/v2/([^/]+)/?")
MCP = re.compile(r"/gradio_api/mcp(?:/|$)")
SESSION = re.compile(r"[\w-]{1,64}")
BYTES_PER_CHARACTER = 12
"""Bytes of a character outside of the basic plane, written as two escapes."""
API_TEXT = 8_000
"""Characters of a text that the API takes: a recipe or a prompt."""


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
    "fn_index": "This function does not exist.",
    "session_hash": "A session is named by up to 64 letters and digits.",
    "trigger_id": "The component that was pressed has a whole number.",
}


class CallCheck:
    """Checks the bodies of calls against the functions that they call."""

    def __init__(self, demo: gr.Blocks) -> None:
        self._demo = demo

    def check(self, path: str, body: bytes) -> str | None:
        """Check the body of a request.

        Args:
            path: What is called.
            body: What was sent.

        Returns:
            The session that the call names, if it does.

        Raises:
            Refused: The page makes no such call.
        """
        check_count(body)
        if CALLS.fullmatch(path):
            call = _parse_call(_parse_body(body))
            _check_size(self._check_call(path, call), body)
            return call.session_hash
        if named := NAMED_CALLS.fullmatch(path):
            function = self._function_named(named[1])
            _check_size(function, body)
            _check_arguments(function, _parse_body(body))
        elif not MCP.match(path):
            _parse_body(body)
        return None

    def _check_call(self, path: str, call: Call) -> BlockFunction:
        if call.fn_index is None and not path.endswith("/queue/join"):
            function = self._function_named(path.rstrip("/").split("/")[-1])
        elif call.fn_index is None or call.fn_index not in self._demo.fns:
            raise Refused("This function does not exist.")
        else:
            function = self._demo.fns[call.fn_index]
        if function.fn is None:  # A script of the browser, which calls nothing here.
            raise Refused("This function does not exist.")
        if any(event == "select" for _, event in function.targets):
            _check_selection(call.event_data)
        lengths = {len(function.inputs), sum(not block.skip_api for block in function.inputs)}
        if len(call.data) not in (lengths if "/call/" in path else {len(function.inputs)}):
            raise Refused(f"This function takes {max(lengths)} values, not {len(call.data)}.")
        if len(call.data) == len(function.inputs):
            for number, (block, value) in enumerate(zip(function.inputs, call.data, strict=True), 1):
                if not _fits(block, value):
                    raise Refused(f"Value {number} is of another kind than this function takes.")
        return function

    def _function_named(self, name: str) -> BlockFunction:
        for function in self._demo.fns.values():
            if function.api_name == name and function.api_visibility != "private":
                return function
        raise Refused("There is no function of this name.")


def _parse_body(body: bytes) -> dict[str, object]:
    """Return a body as plain values; raises `Refused`."""
    try:
        values = json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Refused("A call is an object in JSON.") from None
    try:
        return BODY.validate_python(values)
    except ValidationError as error:
        raise Refused(_message(error, "A call is an object in JSON.")) from None


def largest_body(path: str) -> int:
    """Return how many bytes the body of any request to a route may have."""
    if CALLS.fullmatch(path):
        return MAX_BYTES
    if NAMED_CALLS.fullmatch(path) or MCP.match(path):
        return SMALL_BYTES + 2 * BYTES_PER_CHARACTER * API_TEXT
    return SMALL_BYTES


def _check_size(function: BlockFunction, body: bytes) -> None:
    """Refuse a body that is longer than the texts that a function takes."""
    limit = min(MAX_BYTES, SMALL_BYTES + BYTES_PER_CHARACTER * sum(map(_longest_text, function.inputs)))
    if len(body) > limit:
        raise Refused(f"A call of this function may have {limit:,} bytes at most.", 413)


def _longest_text(block: Block) -> int:
    """Return how many characters an input may have; 0 for one without a text to speak of."""
    if isinstance(block, Textbox):
        return block.max_length or 0
    return API_TEXT if block.get_block_name() == "api" and _kind_of(block) == "string" else 0


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


def _kind_of(block: Block) -> str:
    """Return the name of a component, or of the type of an argument of the API."""
    name = block.get_block_name()
    if name != "api" or not isinstance(block, Component):
        return name
    kinds = block.api_info()
    # An argument that may be null names null first, then its type.
    return str(kinds["oneOf"][-1].get("type") if "oneOf" in kinds else kinds.get("type"))


def _fits(block: Block, value: object) -> bool:
    """Return whether a value is of a kind that a component sends; components of other kinds send anything."""
    if not isinstance(block, Component):
        return True
    kind = VALUES.get(_kind_of(block))
    if kind is None:
        return True
    try:
        kind.validate_python(value)
    except ValidationError:
        return False
    return True
