"""Replies of the loopback Hub, and the faults that replace or spoil them."""

import json
import re
from dataclasses import dataclass


@dataclass
class Reply:
    """A response about to be sent."""

    status: int
    body: bytes
    headers: dict[str, str]

    @classmethod
    def json(cls, value, status=200, headers=None):
        content_type = {"Content-Type": "application/json; charset=utf-8"}
        return cls(status, json.dumps(value, default=str).encode(), content_type | (headers or {}))

    def ranged(self, header):
        """Return the part of this reply that a Range header asks for."""
        if not (match := re.fullmatch(r"bytes=(?:(\d+)-(\d*)|-(\d+))", header or "")):
            return self
        first, last, suffix = match.groups()
        total = len(self.body)
        start = max(total - int(suffix), 0) if suffix else int(first)
        stop = min(int(last) + 1, total) if last else total
        if start >= stop:
            return Reply(416, b"", {"Content-Range": f"bytes */{total}"})
        span = {"Content-Range": f"bytes {start}-{stop - 1}/{total}"}
        return Reply(206, self.body[start:stop], self.headers | span)


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match, after `after` others succeeded.

    `reply`: sent instead of the Hub's own reply; None drops the connection. `reply_lost`: the Hub handles the
    request, and only its reply is lost. `truncated`: the second half of the Hub's reply is missing.
    `stall`: seconds of silence before the connection is dropped.
    """

    pattern: str
    reply: Reply | None = None
    times: int = 1
    after: int = 0
    reply_lost: bool = False
    truncated: bool = False
    stall: float = 0.0

    def strikes(self, request):
        """Count a request, "METHOD path", and return whether the fault applies to it."""
        if self.times == 0 or not re.search(self.pattern, request):
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


class HubError(Exception):
    """A reply of status 400 or more; huggingface_hub chooses its exception class by `code`."""

    def __init__(self, status, message, code=None, headers=None, **body):
        super().__init__(message)
        named = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply = Reply.json({"error": message, **body}, status, named | (headers or {}))
