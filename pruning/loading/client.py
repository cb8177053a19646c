"""Limits on how long the Hub's client waits."""

import re
from collections.abc import Callable

from huggingface_hub.utils import _http as hub_client
from huggingface_hub.utils import hf_raise_for_status, parse_ratelimit_headers, set_client_factory

READ_TIMEOUT = 60.0
"""Seconds that the Hub may keep silent; left alone, its client waits for ever."""

MAX_RETRY_AFTER = 30
"""Seconds that the Hub may ask its client to wait; left alone, it sleeps as long as it is told."""


def retry_after(response) -> int | None:
    """How many seconds an answer of the Hub asks its client to wait, if it says so."""
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    after = response.headers.get("Retry-After", "").strip()
    return int(after) if re.fullmatch(r"\d{1,9}", after) else None


def _limit_timeout(request) -> None:
    limits = request.extensions.get("timeout", {})
    kinds = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {
        kind: min(limits.get(kind) or READ_TIMEOUT, READ_TIMEOUT) for kind in kinds
    }


def _limit_wait(response) -> None:
    if response.status_code in (429, 503) and (retry_after(response) or 0) > MAX_RETRY_AFTER:
        response.read()
        hf_raise_for_status(response)


def _with_limits(make_client: Callable) -> Callable:
    def make():
        client = make_client()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], _limit_timeout],
            "response": [*hooks["response"], _limit_wait],
        }
        return client

    return make


def limit_hub_client() -> None:
    """Bound how long the Hub's client waits. Keeps a client factory that is already set."""
    set_client_factory(_with_limits(hub_client._GLOBAL_CLIENT_FACTORY))
