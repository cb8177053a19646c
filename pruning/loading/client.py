"""Limits on how long the Hub's client waits.

Requests, responses and clients are untyped here: which HTTP library they belong to depends on huggingface_hub.
"""

import re
from collections.abc import Callable
from typing import Any

from huggingface_hub.utils import _http as hub_client
from huggingface_hub.utils import hf_raise_for_status, parse_ratelimit_headers, set_client_factory

READ_TIMEOUT = 60.0
"""Seconds without an answer after which a request fails; by default, the Hub's client waits forever."""

MAX_RETRY_AFTER = 30
"""The longest wait, in seconds, that the Hub may ask for; by default, its client obeys any."""


def retry_after(response: Any) -> int | None:
    """Return how many seconds a response asks the client to wait, or None."""
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    after = response.headers.get("Retry-After", "").strip()
    return int(after) if re.fullmatch(r"\d{1,9}", after) else None


def _limit_timeout(request: Any) -> None:
    limits = request.extensions.get("timeout", {})
    kinds = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {
        kind: min(limits.get(kind) or READ_TIMEOUT, READ_TIMEOUT) for kind in kinds
    }


def _limit_wait(response: Any) -> None:
    if response.status_code in (429, 503) and (retry_after(response) or 0) > MAX_RETRY_AFTER:
        response.read()
        hf_raise_for_status(response)


def _with_limits(make_client: Callable[[], Any]) -> Callable[[], Any]:
    def make() -> Any:
        client = make_client()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], _limit_timeout],
            "response": [*hooks["response"], _limit_wait],
        }
        return client

    return make


def limit_hub_client() -> None:
    """Bound how long the Hub's client waits. If a client factory is set already, bound its clients."""
    set_client_factory(_with_limits(hub_client._GLOBAL_CLIENT_FACTORY))
