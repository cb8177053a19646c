"""Retry calls to the Hub whose failure may be transient."""

import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError

from pruning.loading.client import MAX_RETRY_AFTER, retry_after
from pruning.progress import Progress, Reporter

TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
"""The HTTP status codes after which a retry may help."""

NEVER_SENT = ("LocalProtocolError", "UnsupportedProtocol")
"""The client's errors for requests that cannot be sent, such as a line break in the access token."""

BACKOFF = (1.0, 2.0, 4.0)
"""Seconds to wait before each retry; the Hub may ask for longer."""

Answer = TypeVar("Answer")


def with_retries(call: Callable[[], Answer], progress: Reporter) -> Answer:
    """Return what a call to the Hub returns, retrying it with backoff while its failure may be transient."""
    for pause in BACKOFF:
        try:
            return call()
        except HTTPError as error:
            if not is_transient(error):
                raise
            requested = retry_after(error.response) if isinstance(error, HfHubHTTPError) else None
        _sleep(max(pause, requested or 0), progress)
    return call()


def _sleep(seconds: float, progress: Reporter) -> None:
    """Wait, calling `progress` twice a second so that it can stop the waiting."""
    while seconds > 0:
        progress(Progress(f"The Hub does not respond as expected; retrying in {seconds:.0f} s"))
        time.sleep(min(seconds, 0.5))
        seconds -= 0.5


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that an error carries, or None."""
    response = error.response if isinstance(error, HfHubHTTPError) else None
    return response.status_code if response is not None else None


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed soon: the connection broke, or the Hub is busy."""
    if not isinstance(error, HfHubHTTPError):
        return type(error).__name__ not in NEVER_SENT
    return http_status(error) in TRANSIENT_STATUS and (retry_after(error.response) or 0) <= MAX_RETRY_AFTER
