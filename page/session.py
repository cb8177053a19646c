"""Who visits, what work is under way, and what a visitor is told when something goes wrong."""

import logging
import os

import gradio as gr

from page.jobs import Jobs
from pruning import PruningError
from pruning.loading import saved_token
from pruning.workbench import Visitor, Workbench

ON_SPACE = "SPACE_ID" in os.environ

log = logging.getLogger("secateur")
workbench = Workbench()
jobs = Jobs()


def visitor_of(request: gr.Request | None, token: gr.OAuthToken | None) -> Visitor:
    """On a Space, a visitor's own token or none; elsewhere the one saved on the machine."""
    session = getattr(request, "session_hash", None) or ""
    if ON_SPACE:
        return Visitor(owner=session, token=token.token if token else False)
    return Visitor(owner=session, token=saved_token())


def told(error: Exception) -> str:
    """What a visitor is told: a `PruningError` as it is; anything else is a bug, and logged whole."""
    if isinstance(error, PruningError):
        return str(error)
    log.error("a handler failed", exc_info=error)
    return "Something broke that should not have. It has been logged; please try again."
