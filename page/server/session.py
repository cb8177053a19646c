"""Who visits, the jobs under way, and what a visitor is told when something goes wrong."""

import hashlib
import uuid

import gradio as gr

from page.server.accounts import Accounts
from page.server.audience import Audience
from page.server.origins import address_of
from page.server.queue import ARRIVALS, JobKey, Queue
from page.server.rooms import Rooms
from page.server.running_jobs import Jobs
from page.server.settings import JOB_SECONDS, ON_SPACE, QUEUE_SIZE, SITE, Mode, log, read_setting
from page.store.flights import Flights
from page.store.results import ResultStore
from page.workers.pool import Pools
from page.workers.tasks import INTERACTIVE, LONG, Kind
from page.workers.workbench import Visitor
from page.workers.worker import BUG
from pruning import Access, PruningError
from pruning.errors import SavingError
from pruning.loading.hub import saved_token
from pruning.loading.source import Token

__all__ = ["JOB_SECONDS", "ON_SPACE", "QUEUE_SIZE", "SITE", "log", "read_setting"]

DISTILLATION_OVERHEAD = 120
"""How many seconds longer than its training a distillation may take, for what comes before and after."""

accounts = Accounts()
audience = Audience()
flights: Flights[JobKey] = Flights(audience.is_unheard)
"""What is being made, and who watches it."""
jobs = Jobs(audience.is_unheard)
pools = Pools()
results = ResultStore()
"""What was made before."""
rooms = Rooms(audience.listening)
"""The classes that share a lesson."""
queues: dict[Kind, Queue] = {INTERACTIVE: Queue(QUEUE_SIZE), LONG: Queue(QUEUE_SIZE)}
"""Where jobs wait for the workers of a kind."""


def job_name(request: gr.Request | None, kind: str = "") -> JobKey:
    """Return which job of a visitor one of a kind is."""
    arrived = getattr(getattr(request, "state", None), "arrived", None)
    place = next(ARRIVALS) if arrived is None else arrived
    return JobKey(session_of(request), kind, visitor_address(request), place)


def visitor_address(request: gr.Request | None) -> str:
    """Return the address from which a visitor comes; empty if there is none."""
    client = getattr(request, "client", None)
    return address_of(SITE, getattr(request, "headers", {}), getattr(client, "host", None) or "")


def session_of(request: gr.Request | None) -> str:
    """Return the visitor's session; for a call that names none, one that no other caller can name."""
    session = getattr(request, "session_hash", None)
    return "".join(str(session).split())[:64] if session else f"call-{uuid.uuid4().hex}"


def visitor_of(request: gr.Request | None, token: gr.OAuthToken | None) -> Visitor:
    """Return who asks: on the owner's machine with the token saved there, elsewhere with their own or none.

    Raises:
        OtherAccount: The session belongs to another account.
    """
    own_token = saved_token() if SITE.uses_saved_token else token.token if token else False
    # A session that becomes known to others gives them no rights of its owner.
    fingerprint = hashlib.sha256(str(own_token).encode()).hexdigest()[:16]
    session = session_of(request)
    if request is not None and not SITE.uses_saved_token:
        accounts.check(session, fingerprint if own_token else "", visitor_address(request))
    access = Access(token=own_token, local=False)
    return Visitor(f"{session}:{fingerprint}", access)


def publishing_token(visitor: Visitor, typed: object = "") -> Token:
    """Return the token with which a visitor publishes.

    Args:
        visitor: Who asks.
        typed: The token that they typed on the page, where nobody signs in. It is used for this one push.

    Raises:
        SavingError: They have none.
    """
    if SITE.mode is Mode.ROOM and isinstance(typed, str) and typed.strip():
        return typed.strip()
    if SITE.mode in NEEDS_TOKEN and not visitor.access.token:
        raise SavingError(NEEDS_TOKEN[SITE.mode])
    return visitor.access.token


NEEDS_TOKEN = {
    Mode.ROOM: "Publishing needs your own Hub token: nobody is signed in on this page.",
    Mode.SPACE: "Sign in first, with the button above.",
}
"""What a visitor is told who cannot publish yet, where it is not the owner of the machine who visits."""


def user_message(error: Exception) -> str:
    """Return what the user is told: a `PruningError` as it is; anything else is a bug, and is logged."""
    if isinstance(error, PruningError):
        return str(error)
    log.error("a handler failed", exc_info=error)
    return BUG
