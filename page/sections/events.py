"""Connect components to their handlers, and show the events of a job in one way everywhere."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr
from gradio.blocks import BlockContext
from gradio.components import Component
from gradio.events import Dependency

from page.html import render
from page.server.jobs import Replaced
from page.workers.messages import Done, Event, Failed, Partial, Progress, Queued, Stopped

Part = Component | BlockContext
"""Something on the page that can be changed."""
Updates = Mapping[Part, object]
"""New values of components, or new settings of them."""
Triggers = Sequence[Callable[..., Any]]
"""Events of components, such as `button.click`."""
Handler = Callable[..., Any]
"""A function that Gradio calls with a request, a token and the values of components."""
STOPPED = Stopped("Stopped.")
"""How a job ends that its visitor stops."""
NOWHERE: Sequence[Component] = ()
"""Where Gradio shows that a handler runs. By default it visits every output, and all that is in it, for each event."""


def on_event(
    triggers: Triggers,
    handler: Handler,
    inputs: Sequence[Part] = (),
    outputs: Sequence[Part] = (),
    trigger_mode: Literal["once", "multiple", "always_last"] | None = None,
) -> None:
    """Call a handler immediately, without a place in Gradio's queue and without a sign of progress."""
    gr.on(
        triggers,
        handler,
        inputs,
        outputs,
        queue=False,
        show_progress="hidden",
        show_progress_on=NOWHERE,
        trigger_mode=trigger_mode,
        api_visibility="private",
    )


def on_start(
    triggers: Triggers,
    handler: Handler,
    inputs: Sequence[Part],
    outputs: Sequence[Part],
    trigger_mode: Literal["once", "multiple", "always_last"] | None = None,
) -> Dependency:
    """Call a handler that runs a job, and return what may follow it. How many run is for the job's own queue to say.

    The job's own status line says how it stands: Gradio's sign of progress would stand there beside the result.

    Args:
        triggers: The events that start it.
        handler: A generator of updates.
        inputs: The components whose values it takes.
        outputs: The components that it may change.
        trigger_mode: What happens to a trigger while the handler runs; `multiple` starts it once more.
    """
    return gr.on(
        triggers,
        handler,
        inputs,
        outputs,
        show_progress="hidden",
        show_progress_on=NOWHERE,
        concurrency_limit=None,
        trigger_mode=trigger_mode,
        api_visibility="private",
    )


def on_browser_event(triggers: Triggers, script: str, inputs: Sequence[Part] = ()) -> None:
    """Run a script in the browser, without a call of the server.

    Args:
        triggers: The events after which it runs.
        script: A function in JavaScript.
        inputs: The components whose values it takes.
    """
    gr.on(
        triggers,
        None,
        inputs,
        None,
        js=script,
        queue=False,
        show_progress="hidden",
        trigger_mode="multiple",
        api_visibility="private",
    )


@dataclass(frozen=True)
class JobPanel:
    """The status line of a kind of job, and the buttons that start and stop it.

    Attributes:
        status: Where the job stands.
        start: Is replaced by `stop` while the job runs, if there is one.
        stop: The button that stops it.
        stopped: What is shown after that; what the job says by default.
        restarts: Whether `start` stays visible while the job runs, and restarts it.
    """

    status: gr.HTML
    start: gr.Button | None = None
    stop: gr.Button | None = None
    stopped: str = ""
    restarts: bool = False

    @property
    def outputs(self) -> list[Part]:
        """What `follow` changes by itself."""
        return [part for part in (self.start, self.stop, self.status) if part is not None]

    def follow(
        self, events: Generator[Event, None, None], show: Callable[[Partial | Done], Updates]
    ) -> Iterator[Updates]:
        """Show the events of a job as they come.

        Args:
            events: The events, as `run_job` yields them.
            show: Returns what the page shows of a result or a part of it; nothing for `{}`.

        Yields:
            Updates: the buttons first, then the status line and what `show` returns, last the buttons.
        """
        busy, idle, shown = self._buttons(running=True), self._buttons(running=False), False
        if busy:
            yield busy
        with closing(events):
            for event in events:
                if updates := self._show(event, show):
                    yield updates
                    shown = True
        if idle:
            yield idle
        elif not shown:
            yield self._unchanged

    async def watch(
        self, events: AsyncGenerator[Event, None], show: Callable[[Partial | Done], Updates]
    ) -> AsyncIterator[Updates]:
        """Show the events of a job that `watch_job` yields, without keeping a thread.

        Recorded results are shown together. A job that was replaced shows nothing more.

        Args:
            events: The events.
            show: Returns what the page shows of a result or a part of it; nothing for `{}`.

        Yields:
            Updates: the buttons with the first sign of work, the status line and what `show` returns, last the
            buttons.
        """
        is_running, ended = False, False
        ready: dict[Part, object] = {}
        try:
            async with aclosing(events):
                async for event in events:
                    ready.update(self._show(event, show))
                    ended = isinstance(event, Stopped | Failed)
                    if isinstance(event, Done) and event.recorded is not None:
                        continue
                    if not (is_running or ended):
                        ready.update(self._buttons(running=True))
                        is_running = True
                    if ready:
                        yield ready
                        ready = {}
        except Replaced:
            if not is_running:
                yield self._unchanged
            return
        if not ended:
            ready[self.status] = render.status("Done.", kind="done")
        yield ready | self._buttons(running=False)

    def _show(self, event: Event, show: Callable[[Partial | Done], Updates]) -> Updates:
        match event:
            case Partial() | Done():
                return show(event)
            case Queued():
                return {self.status: render.status(event.text, kind="busy")}
            case Progress():
                return {self.status: render.status(event.text, event.done, event.total, "busy")}
            case Stopped(message):
                text = self.stopped if self.stopped and event == STOPPED else message
                return {self.status: render.status(text, kind="stopped")}
            case Failed(message):
                return {self.status: render.status(message, kind="failed")}

    @property
    def idle(self) -> dict[Part, object]:
        """The buttons while no job runs."""
        return self._buttons(running=False)

    @property
    def _unchanged(self) -> Updates:
        """What a job yields that shows nothing: Gradio empties every output of a generator that yields nothing."""
        return {self.status: gr.skip()}

    def _buttons(self, running: bool) -> dict[Part, object]:
        updates: dict[Part, object] = {}
        if self.start is not None and not self.restarts:
            updates[self.start] = gr.Button(visible=not running)
        if self.stop is not None:
            updates[self.stop] = gr.Button(visible=running)
        return updates
