"""Refuse, before Gradio sees them, requests that no browser showing this page would make.

Gradio serves many routes that this page has no use for, and answers every web site. `Gate` decides for whom a
request is answered, `RequestCheck` whether it is one that this page makes.
"""

import json
import re
import uuid
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from urllib.parse import parse_qs

import anyio
import anyio.to_thread
import gradio as gr
from gradio import server_messages
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response

from page.server.audience import Audience, Crowded
from page.server.bodies import (
    MAX_BYTES,
    SMALL_BYTES,
    App,
    BodyReader,
    Message,
    Receive,
    Refused,
    Scope,
    Send,
    receive_again,
)
from page.server.calls import SESSION, CallCheck, largest_body
from page.server.origins import (
    WrongHost,
    address_of,
    checked_host,
    header_values,
    may_use_cookies,
    without_headers,
)
from page.server.queue import ARRIVALS
from page.server.session import audience as live_sessions
from page.server.settings import SITE, Mode, Site
from page.server.turns import Turns

__all__ = ["MAX_BYTES", "Gate", "RequestCheck", "request_middleware"]

CALL_STREAMS = re.compile(r"/gradio_api/call/(?:v2/)?[^/]+/([^/]+)/?")
SESSION_STREAMS = re.compile(r"/gradio_api/queue/data/?")
HEARTBEATS = re.compile(r"/gradio_api/heartbeat/([^/]+)/?")
STARTS = re.compile(r"/gradio_api/(?:queue/join|call/.*)")
"""Calls whose events are listened to afterwards."""
LASTING = re.compile(r"/gradio_api/(?:mcp|file=)")
"""Requests whose answers take as long as a job or a download, and little of the page's own time."""
UNUSED = re.compile(
    r"/gradio_api/(upload|component_server|stream|process_recording|vibe|undo-vibe|proxy=|custom_component"
    r"|deep_link|run-history|dev/|file[=/]\w+:)|/monitoring"
)
"""This page takes no files and shows none from elsewhere."""
CHECKS, LARGE_CHECKS = 4, 1
"""How many bodies are checked at the same time, and how many large ones."""


def request_middleware(demo: gr.Blocks, site: Site = SITE) -> list[Middleware]:
    """Return the middleware of a page.

    Values reach the page's handlers as they were sent: what a control allows says nothing about what arrives,
    and each handler does its own checks.
    """
    for function in demo.fns.values():
        function.preprocess = False
    return [Middleware(RequestCheck, demo=demo, site=site)]


class Gate:
    """Answers only to the page's own names, and lets no other web site act for a visitor."""

    def __init__(self, app: App, site: Site) -> None:
        self._app, self._site = app, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # The page has none.
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope, host = checked_host(self._site, scope)
        except WrongHost as wrong:
            await _refuse(421, str(wrong))(scope, receive, send)
            return
        if may_use_cookies(self._site, scope, host):
            await self._app(scope, receive, send)
        elif self._site.mode is Mode.SPACE:
            # A Space's functions are public: other web sites may call them, as anybody may, for nobody.
            scope = _without_forwarding(without_headers(scope, ["cookie"]))
            await self._app(scope, receive, partial(_send_without_cookies, send))
        else:
            await _refuse(403, "This page takes no requests from other web sites.")(scope, receive, send)


def _without_forwarding(scope: Scope) -> Scope:
    """Return a request that asks for no permission to send a proxy's headers."""
    name = "access-control-request-headers"
    asked = [part.strip() for value in header_values(scope, name) for part in value.split(",")]
    if not asked:
        return scope
    allowed = [part for part in asked if not part.lower().startswith(("x-forwarded", "forwarded"))]
    scope = without_headers(scope, [name])
    scope["headers"].append((name.encode(), ", ".join(allowed).encode("latin-1")))
    return scope


async def _send_without_cookies(send: Send, message: Message) -> None:
    """Send an answer that neither sets cookies nor may be read by a script that sent some."""
    if message["type"] == "http.response.start":
        dropped = b"set-cookie", b"access-control-allow-credentials"
        headers: Iterable[tuple[bytes, bytes]] = message.get("headers", [])
        message = {**message, "headers": [pair for pair in headers if pair[0].lower() not in dropped]}
    await send(message)


class RequestCheck:
    """Checks each request before Gradio does."""

    def __init__(
        self, app: App, demo: gr.Blocks, site: Site = SITE, audience: Audience = live_sessions
    ) -> None:
        self._app, self._demo, self._site, self._audience = app, demo, site, audience
        self._calls, self._bodies, self._turns = CallCheck(demo), BodyReader(), Turns()
        self._checks: tuple[anyio.CapacityLimiter, anyio.CapacityLimiter] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            # Gradio puts its own middleware, which reads cookies and answers other web sites, before any that it
            # is given. The gate must stand before that.
            server = scope["app"]
            server.middleware_stack = Gate(server.middleware_stack, self._site)
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            if UNUSED.match(scope["path"]):
                raise Refused("There is no such thing on this page.", 404)
            if scope["method"] == "POST":
                await self._take_call(scope, receive, send)
            else:
                await self._answer(scope, receive, send)
        except Refused as refused:
            await _refuse(refused.status, str(refused))(scope, receive, send)
        except Crowded as crowded:
            await _refuse(503, str(crowded))(scope, receive, send)

    def _address(self, scope: Scope) -> str:
        forwarded = {"x-forwarded-for": ",".join(header_values(scope, "x-forwarded-for"))}
        client = scope.get("client")
        return address_of(self._site, forwarded, client[0] if client else "")

    async def _take_call(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A press of Stop may be answered before the press that came before it.
        scope.setdefault("state", {})["arrived"] = next(ARRIVALS)
        path, address = scope["path"], self._address(scope)
        limit = largest_body(path)
        lengths = header_values(scope, "content-length")
        if any(len(value) > 12 or not value.isdecimal() or int(value) > limit for value in lengths):
            raise Refused(f"A call of this kind may have {limit:,} bytes at most.", 413)
        body = await self._bodies.read(receive, address, limit)
        async with self._turn_of(scope, address):
            await self._pass_on(scope, body, receive_again(body, receive), send, address)

    def _turn_of(self, scope: Scope, address: str) -> AbstractAsyncContextManager[None]:
        return nullcontext() if LASTING.match(scope["path"]) else self._turns.of(address)

    async def _pass_on(self, scope: Scope, body: bytes, receive: Receive, send: Send, address: str) -> None:
        """Check a call, and have Gradio answer it."""
        if self._checks is None:
            self._checks = anyio.CapacityLimiter(CHECKS), anyio.CapacityLimiter(LARGE_CHECKS)
        checks = self._checks[len(body) > SMALL_BYTES]
        session = await anyio.to_thread.run_sync(self._calls.check, scope["path"], body, limiter=checks)
        starts = STARTS.match(scope["path"]) is not None
        if session is None and starts:
            await self._start_without_session(scope, receive, send, address)
            return
        if session is not None:
            self._use(session, address, starts)
        await self._app(scope, receive, send)

    def _use(self, session: str, address: str, joins: bool) -> None:
        """Note that a session is used; raises `Crowded`."""
        if not self._audience.use(session, address, joins):
            return
        # Gradio is about to add the session to stores that forget the entry used least recently.
        listening = self._audience.listening()
        messages = self._demo._queue.pending_messages_per_session
        for name in messages.keys() & listening:
            messages.move_to_end(name)
        if (holder := getattr(self._demo, "state_holder", None)) is not None:
            with holder.lock:
                for name in holder.session_data.keys() & listening:
                    holder.session_data.move_to_end(name)

    async def _start_without_session(self, scope: Scope, receive: Receive, send: Send, address: str) -> None:
        """Pass on a call that names no session; Gradio names one after the call's number, which it answers."""
        placeholder = f"call {uuid.uuid4().hex}"
        self._use(placeholder, address, joins=False)
        answer = bytearray()

        async def note(message: Message) -> None:
            answer.extend(message.get("body", b"")[:SMALL_BYTES])
            await send(message)

        await self._app(scope, receive, note)
        try:
            self._audience.rename(placeholder, str(json.loads(answer)["event_id"]))
        except (ValueError, KeyError, TypeError):
            # It was refused: the place is free again after a while.
            return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request without a body, and count those that listen."""
        listens, session = self._listener(scope["path"], scope["query_string"])
        if not listens:
            async with self._turn_of(scope, self._address(scope)):
                await self._app(scope, receive, send)
        elif session is None:
            # Gradio tells its client the same, and fails over it in its log.
            message = server_messages.UnexpectedErrorMessage(message="Not found", session_not_found=True)
            answer = Response(f"data: {message.model_dump_json()}\n\n", media_type="text/event-stream")
            await answer(scope, receive, send)
        else:
            with self._audience.stream(session, self._address(scope)):
                await self._app(scope, receive, send)

    def _listener(self, path: str, query: bytes) -> tuple[bool, str | None]:
        """Return whether a request listens to a session, and to which; None if there is no such session."""
        queue = self._demo._queue
        if heartbeat := HEARTBEATS.fullmatch(path):
            return True, heartbeat[1] if SESSION.fullmatch(heartbeat[1]) else None
        if SESSION_STREAMS.fullmatch(path):
            session = parse_qs(query.decode("latin-1")).get("session_hash", [""])[-1]
            return True, session if session in queue.pending_messages_per_session else None
        if called := CALL_STREAMS.fullmatch(path):
            number = called[1]
            if event := queue.event_ids_to_events.get(number):
                return True, event.session_hash
            of_session = (
                session for session, numbers in queue.pending_event_ids_session.items() if number in numbers
            )
            known = number if number in queue.pending_messages_per_session else None
            return True, next(of_session, known)
        return False, None


def _refuse(status: int, text: str) -> JSONResponse:
    return JSONResponse({"detail": text}, status)
