"""Who visits, the jobs under way, and what a visitor is told when something goes wrong."""

import hashlib
import logging
import os
import uuid

import gradio as gr

from page.server.queue import Jobs, Queue
from page.workers.pool import Pools
from page.workers.tasks import INTERACTIVE, LONG, Kind
from page.workers.workbench import Visitor
from pruning import Access, PruningError
from pruning.loading.hub import saved_token

ON_SPACE = "SPACE_ID" in os.environ

log = logging.getLogger("secateur")


def read_setting(name: str, default: float, old_name: str = "") -> float:
    """Read a number above 0 from the environment; exit with one line for anything else."""
    if old_name in os.environ and name not in os.environ:
        log.warning("%s is now called %s; the old name will be removed.", old_name, name)
        name = old_name
    try:
        value = float(os.environ.get(name, default))
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        raise SystemExit(f"{name} is {os.environ[name]!r}; it must be a number above 0.")
    return value


QUEUE_SIZE = int(read_setting("SECATEUR_QUEUE", 8, "SECATEUR_LINE"))
"""How many jobs may wait for the models: about as many as two cores serve before patience ends."""
JOB_SECONDS = read_setting("SECATEUR_JOB_SECONDS", 300 if ON_SPACE else 3600)
"""How long one job may work on the models."""
DISTILLATION_OVERHEAD = 120
"""How many seconds longer than its training a distillation may take, for what comes before and after."""

pools = Pools()
jobs = Jobs()
queues: dict[Kind, Queue] = {INTERACTIVE: Queue(QUEUE_SIZE), LONG: Queue(QUEUE_SIZE)}
"""Where jobs wait for the workers of a kind."""


def job_name(request: gr.Request | None, kind: str = "") -> str:
    """Return the name of a visitor's job of a kind."""
    return f"{session_of(request)} {kind}".strip()


def session_of(request: gr.Request | None) -> str:
    """Return the visitor's session; for a call that names none, one that no other caller can name."""
    session = getattr(request, "session_hash", None)
    return "".join(str(session).split())[:64] if session else f"call-{uuid.uuid4().hex}"


def visitor_of(request: gr.Request | None, token: gr.OAuthToken | None) -> Visitor:
    """Return who asks: on a Space with their own token or none, elsewhere with the one saved here."""
    own_token = (token.token if token else False) if ON_SPACE else saved_token()
    # A session that becomes known to others gives them no rights of its owner.
    fingerprint = hashlib.sha256(str(own_token).encode()).hexdigest()[:16]
    access = Access(token=own_token, local=False)
    return Visitor(f"{session_of(request)}:{fingerprint}", access)


def user_message(error: Exception) -> str:
    """Return what the user is told: a `PruningError` as it is; anything else is a bug, and is logged."""
    if isinstance(error, PruningError):
        return str(error)
    log.error("a handler failed", exc_info=error)
    return "Something went wrong on our side. It has been logged; please try again."
