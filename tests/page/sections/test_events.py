"""What the page shows of a job, whatever becomes of it."""

import asyncio

import gradio as gr

from page.sections.events import JobPanel
from page.server.jobs import Replaced


async def replaced():
    raise Replaced
    yield


def nothing():
    yield from ()


def panel():
    with gr.Blocks():
        return JobPanel(gr.HTML())


def test_a_job_that_was_replaced_at_once_leaves_every_output_as_it_is():
    """Gradio empties every output of a generator that yields nothing, the prompt among them."""
    job = panel()

    async def watched():
        return [updates async for updates in job.watch(replaced(), lambda event: {})]

    (updates,) = asyncio.run(watched())
    assert updates == {job.status: gr.skip()}


def test_a_job_without_events_leaves_every_output_as_it_is():
    job = panel()
    assert list(job.follow(nothing(), lambda event: {})) == [{job.status: gr.skip()}]
