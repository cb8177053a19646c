"""Who visits, what work is under way, and what a visitor is told when something goes wrong."""

import hashlib
import logging
import os
import uuid

import gradio as gr

from page.server.queue import Job, Jobs, Line
from page.workers.workbench import Visitor, Workbench
from pruning import PruningError
from pruning.loading.hub import saved_token

ON_SPACE = "SPACE_ID" in os.environ


def _setting(name: str, default: float) -> float:
    try:
        value = float(os.environ.get(name, default))
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        raise SystemExit(f"{name} is {os.environ[name]!r}; a number above 0 is needed.")
    return value


LINE = int(_setting("SECATEUR_LINE", 8))
"""How many may wait for the models: about as many as two cores serve before patience ends."""
SECONDS = _setting("SECATEUR_JOB_SECONDS", 300 if ON_SPACE else 3600)
"""How long one job may work on the models."""
TEACHING_SPARE = 120
"""How much longer than the minutes asked for a teaching may take: what comes before and after."""

log = logging.getLogger("secateur")
workbench = Workbench()
jobs = Jobs()
models, teachers = Line(LINE), Line(max(1, LINE // 4))
"""Where work on models waits for its turn, and where teaching does, which takes minutes each."""


def started(request: gr.Request | None, kind: str = "", **settings) -> tuple[str, Job]:
    """A new job of the visitor, in the line for the models unless told otherwise; and its name."""
    name = f"{session_of(request)} {kind}".strip()
    return name, jobs.start(name, **{"line": models, "seconds": SECONDS} | settings)


def session_of(request: gr.Request | None) -> str:
    """The visitor's session; of a call that names none, one that nobody else can name."""
    session = getattr(request, "session_hash", None)
    return "".join(str(session).split())[:64] if session else f"call-{uuid.uuid4().hex}"


def visitor_of(request: gr.Request | None, token: gr.OAuthToken | None) -> Visitor:
    """On a Space, a visitor's own token or none; elsewhere the one saved on the machine."""
    rights = (token.token if token else False) if ON_SPACE else saved_token()
    # Whoever learns of a session still has no rights of its owner.
    shown = hashlib.sha256(str(rights).encode()).hexdigest()[:16]
    return Visitor(owner=f"{session_of(request)}:{shown}", token=rights)


def left(request: gr.Request) -> None:
    """The visit is over: stop its work, and forget what is only its own."""
    session = session_of(request)
    jobs.leave(session)
    workbench.forget(session)


def told(error: Exception) -> str:
    """What a visitor is told: a `PruningError` as it is; anything else is a bug, and logged whole."""
    if isinstance(error, PruningError):
        return str(error)
    log.error("a handler failed", exc_info=error)
    return "Something broke that should not have. It has been logged; please try again."
