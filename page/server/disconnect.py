"""What happens when a visitor leaves."""

import gradio as gr

from page.server.look_ups import look_ups
from page.server.session import jobs, pools, rooms, session_of


def on_disconnect(request: gr.Request) -> None:
    """Stop a visitor's work, and drop what belongs to them alone."""
    session = session_of(request)
    jobs.stop_session(session)
    pools.forget(session)
    look_ups.forget(session)
    rooms.leave(session)
