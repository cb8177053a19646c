"""A client of the page: calls its functions as a browser or a program would, over HTTP."""

import asyncio
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from pruning.files import cache_folder
from tests.helpers.serving import page_cache, serve

STATUS = re.compile(r'class=\\"status (failed|stopped|done)\\"[^>]*><span>(.*?)</span>')
FIRST_TOKEN = r'text-after\\"><span class=\\"prompt[^>]*>[^<]*</span>(?!<span class=\\"cursor|</p>)'
"""Finds an event in which the pruned model has output anything beyond the prompt."""
ENDINGS = ('"process_completed"', '"unexpected_error"')
API = "/gradio_api"


class Client:
    """One session of one visitor, who comes from an address of their own.

    Attributes:
        http: The connection to the page.
        session: The name of the session.
        values: What the page's components hold, by number, as the page opens.
    """

    def __init__(
        self, url: str, config: dict[str, Any], address: str = "", session: str = "", timeout: float = 60
    ) -> None:
        """Create a visitor.

        Args:
            url: The address of the page.
            config: What the page serves at `/config`.
            address: The visitor's own address, as a Space's proxy would report it.
            session: The name of the session; by default a new one.
            timeout: Seconds after which a call that gets no answer fails.
        """
        self.session = session or uuid.uuid4().hex[:12]
        self._config = config
        headers = {"X-Forwarded-For": address} if address else {}
        # Shorter than the server's 5 seconds: reusing a connection just as the server closes it would look
        # like an error of the page, whereas a browser retries by itself.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
        # On loopback, a visitor is told apart by the address too, which may be any of 127.0.0.0/8.
        transport = httpx.AsyncHTTPTransport(verify=False, limits=limits, local_address=address or None)
        self.http = httpx.AsyncClient(
            base_url=url, timeout=timeout, transport=transport, headers=headers, trust_env=False
        )
        self.values = {entry["id"]: entry["props"].get("value") for entry in config["components"]}
        self._numbers = {
            entry["props"].get("elem_id") or entry["props"].get("label"): entry["id"]
            for entry in config["components"]
        }

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    def set(self, name: str, value: object) -> None:
        """Set the component with an id or a label."""
        self.values[self._numbers[name]] = value

    def function(self, name: str, private: bool = True) -> dict[str, Any]:
        """Return the page's own function of a name, or the one for programs."""
        visibility = "private" if private else "public"
        for entry in self._config["dependencies"]:
            # Gradio numbers functions of the same name.
            if entry["api_visibility"] == visibility and re.fullmatch(rf"{name}(_\d+)?", entry["api_name"]):
                return entry
        raise KeyError(name)

    def body(self, function: dict[str, Any], **changes: object) -> dict[str, Any]:
        """Return a call of a function, with the values of the components and some changes by name."""
        values = self.values | {self._numbers[name.replace("_", "-")]: changes[name] for name in changes}
        data = [values[number] for number in function["inputs"]]
        return {"data": data, "fn_index": function["id"], "session_hash": self.session}

    async def direct(self, name: str, **changes: object) -> httpx.Response:
        """Call a function of the page that needs no queue, such as a preview."""
        return await self.http.post(f"{API}/run/predict", json=self.body(self.function(name), **changes))

    async def queued(self, name: str, **changes: object) -> str:
        """Call a function of the page, and return all its events until it is done."""
        return await self.join(self.body(self.function(name), **changes))

    async def join(
        self, body: dict[str, Any], until: str | None = None, events: list[str] | None = None
    ) -> str:
        """Make a call, and return its events until it is done.

        Args:
            body: The call.
            until: A regular expression; with the first event that it finds, the client hangs up.
            events: Takes the events as they come.
        """
        answer = await self.http.post(f"{API}/queue/join", json=body)
        if answer.status_code != 200:
            return answer.text
        event, events = answer.json()["event_id"], [] if events is None else events
        parameters = {"session_hash": self.session}
        async with self.http.stream("GET", f"{API}/queue/data", params=parameters, timeout=None) as stream:
            async for line in stream.aiter_lines():
                events.append(line)
                if event in line and any(ending in line for ending in ENDINGS):
                    break
                if '"close_stream"' in line or (until and re.search(until, line)):
                    break
        return "\n".join(events)

    async def prune_until_shown(self, **changes: object) -> str:
        """Press Prune, and Stop as soon as the model is there; return the events."""
        shown = rf"seed: {self.values[self._numbers['seed']]}\b"
        events: list[str] = []
        pruning = asyncio.create_task(self.join(self.body(self.function("prune"), **changes), events=events))
        while not pruning.done() and not any(re.search(shown, line) for line in events):
            await asyncio.sleep(0.1)
        await self.direct("stop")
        return await pruning

    async def api(self, name: str, **arguments: object) -> str:
        """Call a function for programs, and return what it answers."""
        answer = await self.http.post(f"{API}/call/v2/{name}", json=arguments)
        if answer.status_code != 200:
            return answer.text
        event, lines = answer.json()["event_id"], []
        async with self.http.stream("GET", f"{API}/call/{name}/{event}", timeout=None) as stream:
            async for line in stream.aiter_lines():
                lines.append(line)
        return "\n".join(line for line in lines if line and "heartbeat" not in line and line != "data: null")


def told(answer: str) -> str:
    """Return the sentence that an answer of the page ends with."""
    if ends := STATUS.findall(answer):
        return f"{ends[-1][0]}: {_plain(ends[-1][1])}"
    if errors := re.findall(r'"(?:error|detail)":\s*"((?:[^"\\]|\\.)+)"', answer):
        return json.loads(f'"{errors[-1]}"')
    if statuses := re.findall(r'class=\\"(?:status|message)[^>]*>(.*?)</', answer):
        return _plain(statuses[-1])
    return "done" if '"process_completed"' in answer or "event: complete" in answer else answer[-200:]


def _plain(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>|\\n", "", html))


async def page_config(url: str) -> dict[str, Any]:
    """Return what the page serves about its components and functions."""
    async with httpx.AsyncClient() as http:
        return (await http.get(f"{url}/config", timeout=60)).json()


@contextmanager
def fresh_page() -> Iterator[tuple[Popen[bytes], str]]:
    """Serve a page that reaches no Hub and has recorded nothing, and yield its process and its address."""
    with TemporaryDirectory() as folder:
        settings = {
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "GRADIO_TEMP_DIR": folder,
            # What earlier runs recorded would be taken for live.
            "SECATEUR_CACHE": page_cache(Path(folder), cache_folder()),
        }
        process, url = serve(settings, Path(folder) / "log.txt")
        try:
            yield process, url
        finally:
            process.terminate()
            process.wait(30)
