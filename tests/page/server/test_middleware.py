"""Calls that the page never makes are refused before Gradio sees them."""

import asyncio
import json
import threading
from contextlib import suppress

import gradio as gr
import pytest

from page.server import session
from page.server.bodies import (
    MAX_BODIES,
    MAX_BYTES,
    MAX_LARGE_BODIES,
    SMALL_BYTES,
    BodyReader,
    Refused,
    check_count,
)
from page.server.middleware import RequestCheck, request_middleware


def echo(text: str, number: float = 0, flag: bool = False, maybe: bool | None = None) -> str:
    return text


@pytest.fixture(scope="module")
def demo():
    with gr.Blocks() as demo:
        gr.api(echo)
        box, slider, flag = gr.Textbox(), gr.Slider(), gr.Checkbox()
        choice, table = gr.Dropdown(["a"]), gr.Dataframe()
        long = gr.Textbox(max_length=100_000)
        long.change(lambda text: None, long, None, api_visibility="private", api_name="write")
        box.change(
            lambda *values: None, [box, slider, flag, choice], api_visibility="private", api_name="change"
        )
        table.select(lambda: None, None, None, api_visibility="private", api_name="pick")
    request_middleware(demo)
    return demo


@pytest.fixture(scope="module")
def send(demo):
    """`send(path, body)` returns the status that the middleware answers; 200 if it lets the call pass."""

    async def app(scope, receive, send):
        received = b""
        if scope["method"] == "POST":
            received = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": received})

    check = RequestCheck(app, demo)

    def send(path, body=b"", method="POST", query=b""):
        sent = []

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def collect(message):
            sent.append(message)

        scope = {"type": "http", "path": path, "method": method, "query_string": query, "headers": []}
        asyncio.run(check(scope, receive, collect))
        return sent[0]["status"], sent[1]["body"]

    return send


def number_of(demo, name):
    return next(index for index, function in demo.fns.items() if function.api_name == name)


@pytest.fixture
def call(demo, send):
    """`call(data, **more)` calls the private function of four values by its number."""

    def call(data, **more):
        body = {"data": data, "fn_index": number_of(demo, "change"), "session_hash": "abc"} | more
        return send("/gradio_api/queue/join", json.dumps(body).encode())

    return call


USUAL = ["text", 1, True, "a"]


def test_the_page_s_own_call_passes_unchanged(demo, send):
    body = json.dumps(
        {
            "data": USUAL,
            "fn_index": number_of(demo, "change"),
            "session_hash": "a-b_9",
            "trigger_id": 3,
            "event_data": None,
            "event_id": None,
        }
    ).encode()
    assert send("/gradio_api/queue/join", body) == (200, body)
    assert send("/gradio_api/run/predict", body) == (200, body)


@pytest.mark.parametrize("data", [["", 0.5, False, 3], [None] * 4, ["text", -5, None, None]])
def test_values_of_the_right_kind_pass_whatever_they_are(call, data):
    assert call(data)[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        ["text", 1, True],
        [*USUAL, "more"],
        [1, 1, True, "a"],
        [["text"], 1, True, "a"],
        [{"text": 1}, 1, True, "a"],
        ["text", "1", True, "a"],
        ["text", True, True, "a"],
        ["text", False, True, "a"],
        ["text", [1], True, "a"],
        ["text", 1, 1, "a"],
        ["text", 1, 0, "a"],
        ["text", 1, "true", "a"],
        ["text", 1, True, ["a"]],
        ["text", 1, True, True],
        ["text", 1, True, {"path": "/etc/passwd"}],
        ["text", 2**63, True, "a"],
        ["text", -(2**63), True, "a"],
        ["text", 1e300, True, "a"],
        ["half \ud800", 1, True, "a"],
        "text",
        {"0": "text"},
        None,
    ],
    ids=repr,
)
def test_values_that_no_control_sends_are_refused(call, data):
    assert call(data)[0] == 422


@pytest.mark.parametrize(
    "more",
    [
        {"session_hash": "../x"},
        {"session_hash": "a" * 65},
        {"session_hash": ""},
        {"session_hash": "abc\n"},
        {"session_hash": 5},
        {"batched": True},
        {"fn_index": 10_000},
        {"fn_index": -1},
        {"fn_index": True},
        {"fn_index": "1"},
        {"fn_index": 1.0},
        {"fn_index": None},
        {"trigger_id": True},
        {"trigger_id": "1"},
        {"trigger_id": 1.5},
        {"event_data": {"path": "/etc/passwd"}},
        {"event_data": {"deep": {"url": "http://127.0.0.1"}}},
    ],
    ids=repr,
)
def test_a_call_that_the_page_never_makes_is_refused(call, more):
    assert call(USUAL, **more)[0] == 422


def test_an_unknown_field_is_named(call):
    assert "A call has no 'batched'" in call(USUAL, batched=True)[1].decode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"1",
        b"null",
        b"{",
        b'{"data": [NaN]}',
        b'{"data": [Infinity]}',
        b'{"data": [1e999]}',
        b'{"data": [-1e999]}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"data":' + b"[" * 17 + b"]" * 17 + b"}",
        b'{"a": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"a": {"b": {"path": 1}}}',
        b'{"a": [{"url": 1}]}',
    ],
    ids=lambda body: repr(body[:30]),
)
@pytest.mark.parametrize(
    "path", ["/gradio_api/queue/join", "/gradio_api/reset", "/gradio_api/call/v2/echo", "/gradio_api/run/x"]
)
def test_a_body_that_is_not_a_plain_object_is_refused(send, path, body):
    assert send(path, body)[0] in ((413, 422) if len(body) > SMALL_BYTES else (422,))


def test_values_nested_as_deep_as_allowed_pass(send):
    body = b'{"a":' + b"[" * 12 + b"]" * 12 + b"}"
    assert send("/gradio_api/reset", body)[0] == 200


def test_a_large_call_passes_and_a_larger_one_is_refused(send):
    body = b'{"a": "' + b"x" * (SMALL_BYTES - 9) + b'"}'
    assert len(body) == SMALL_BYTES
    assert send("/gradio_api/reset", body)[0] == 200
    assert send("/gradio_api/reset", body + b" ")[0] == 413
    assert send("/gradio_api/mcp/", body * 19)[0] == 200
    assert send("/gradio_api/mcp/", body * 21)[0] == 413
    assert send("/gradio_api/queue/join", b" " * (MAX_BYTES + 1))[0] == 413


def test_only_functions_that_take_texts_may_be_called_with_long_ones(demo, send):
    def join(name, text):
        data = [text] if name == "write" else [text, 1, True, "a"]
        body = {"data": data, "fn_index": number_of(demo, name), "session_hash": "abc"}
        return send("/gradio_api/queue/join", json.dumps(body).encode())[0]

    assert join("write", "\U0001f600" * 100_000) == 200
    assert join("write", "x" * 1_300_000) == 413
    assert join("change", "x" * 9_000) == 200
    assert join("change", "x" * 11_000) == 413
    recipe = json.dumps({"text": "\U0001f600" * 8_000}).encode()
    assert send("/gradio_api/call/v2/echo", recipe)[0] == 200
    assert send("/gradio_api/call/v2/echo", recipe + b" " * 20_000)[0] == 413


@pytest.mark.parametrize(
    "values",
    [b"[]," * 600_000 + b"[]", b"0," * 900_000 + b"0", b"{}," * 6_000 + b"{}", b'"",' * 6_000 + b'""'],
)
def test_many_values_are_refused_before_they_are_read(send, monkeypatch, values):
    monkeypatch.setattr("page.server.calls.json.loads", lambda *_, **__: pytest.fail("was read"))
    assert send("/gradio_api/queue/join", b'{"data": [' + values + b"]}")[0] == 422


@pytest.mark.parametrize(
    "text", ["," * 100_000, "[{" * 50_000, '"' * 50_000, "\\" * 50_000, 'a\\",' * 20_000]
)
def test_a_text_is_one_value_whatever_is_in_it(text):
    check_count(json.dumps({"data": [text]}).encode())


@pytest.mark.parametrize(
    "body", [b'"' + b'\\"' * 900_000, b'"' * 1_999_999, b'"\\' * 999_999, b"\\" * 2_000_000]
)
def test_counting_the_values_of_damaged_bodies_takes_one_pass(body):
    # A second pass from each quote would take hours.
    with suppress(Refused):
        check_count(body)


def test_a_body_that_does_not_arrive_is_refused(monkeypatch):
    monkeypatch.setattr("page.server.bodies.READ_SECONDS", 0.05)

    async def never():
        await asyncio.sleep(100)

    with pytest.raises(Refused) as refused:
        asyncio.run(BodyReader().read(never, "home", 100))
    assert refused.value.status == 408


@pytest.mark.parametrize(
    ("first", "places"), [(b"", MAX_BODIES), (b"x" * (SMALL_BYTES + 1), MAX_LARGE_BODIES)]
)
def test_slow_bodies_of_one_address_leave_places_for_others(first, places):
    async def read():
        reader, sent, held = BodyReader(), [], asyncio.Event()

        async def slow():
            if asyncio.current_task() in sent:
                await held.wait()
                return {"type": "http.request", "body": b"", "more_body": False}
            sent.append(asyncio.current_task())
            return {"type": "http.request", "body": first, "more_body": True}

        async def fast():
            return {"type": "http.request", "body": first, "more_body": False}

        tasks = [asyncio.create_task(reader.read(slow, "stranger", MAX_BYTES)) for _ in range(places // 4)]
        await asyncio.sleep(0.05)
        with pytest.raises(Refused) as refused:
            await reader.read(fast, "stranger", MAX_BYTES)
        assert refused.value.status == 503
        assert await reader.read(fast, "home", MAX_BYTES) == first
        held.set()
        await asyncio.gather(*tasks)
        assert await reader.read(fast, "stranger", MAX_BYTES) == first

    asyncio.run(read())


def test_a_large_body_is_checked_while_others_are_answered(demo):
    """The check of a call waits here for an answer that only the event loop can give."""
    check, answered = RequestCheck(None, demo), threading.Event()
    check._calls.check = lambda path, body: answered.wait(60)

    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def answer():
        scope = {"type": "http", "path": "/gradio_api/reset", "method": "POST", "headers": []}
        call = asyncio.create_task(check(scope, receive, None))
        await asyncio.sleep(0.05)
        answered.set()
        with pytest.raises(TypeError):  # There is no app to call.
            await call

    asyncio.run(answer())


def test_new_sessions_are_refused_in_a_sentence_when_too_many_are_visited(demo, call, monkeypatch):
    monkeypatch.setattr(session.audience, "_size", 0)
    monkeypatch.setattr(session.audience, "_sessions", {})
    status, body = call(USUAL, session_hash="late")
    assert status == 503
    assert "try again in a few minutes" in body.decode()


@pytest.mark.parametrize("index", [[0], [0, 1, 2], [0, -1], [0, "1"], [0, 1.5], 3, None])
def test_a_selection_needs_its_cell(demo, send, index):
    number = number_of(demo, "pick")

    def select(**event):
        body = {"data": [], "fn_index": number, "session_hash": "a", **event}
        return send("/gradio_api/queue/join", json.dumps(body).encode())[0]

    assert select(event_data={"index": [0, 1], "value": "x"}) == 200
    assert select(event_data={"index": [0, 1], "value": None, "row_value": []}) == 200
    assert select(event_data={"index": index, "value": "x"}) == 422
    assert select(event_data={"index": [0, 1]}) == 422
    assert select(event_data=None) == 422
    assert select() == 422


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ({"text": "a"}, 200),
        ({"text": "a", "number": 2, "flag": True}, 200),
        ({}, 422),
        ({"text": 1}, 422),
        ({"text": "a", "number": "2"}, 422),
        ({"text": "a", "number": True}, 422),
        ({"text": "a", "flag": 1}, 422),
        ({"text": "a", "maybe": None}, 200),
        ({"text": "a", "maybe": False}, 200),
        ({"text": "a", "maybe": "no"}, 422),
        ({"text": "a", "maybe": 0}, 422),
        ({"text": "a", "other": 1}, 422),
    ],
)
def test_arguments_by_name_are_checked(send, arguments, status):
    assert send("/gradio_api/call/v2/echo", json.dumps(arguments).encode())[0] == status


def test_a_private_function_cannot_be_called_by_its_name(send):
    body = json.dumps({"data": USUAL}).encode()
    assert send("/gradio_api/call/change", body)[0] == 422
    assert send("/gradio_api/call/v2/change", b"{}")[0] == 422
    assert send("/gradio_api/call/nothing", body)[0] == 422


@pytest.mark.parametrize(
    "path",
    ["upload", "component_server", "stream/x", "proxy=http://x", "file=http://x", "deep_link", "dev/reload"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_routes_that_the_page_does_not_need_are_closed(send, path, method):
    assert send(f"/gradio_api/{path}", method=method)[0] == 404


def test_unknown_sessions_and_calls_have_no_events(send):
    for path, query in [
        ("/gradio_api/queue/data", b"session_hash=nobody"),
        ("/gradio_api/queue/data", b""),
        ("/gradio_api/call/echo/nothing", b""),
        ("/gradio_api/call/v2/echo/nothing", b""),
    ]:
        status, body = send(path, method="GET", query=query)
        assert status == 200
        assert b'"session_not_found":true' in body.replace(b" ", b"")
