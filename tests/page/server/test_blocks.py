"""What an event leaves alone costs nothing, and everything else is as Gradio makes it."""

import asyncio

import gradio as gr
import pytest
from gradio.blocks import BlocksConfig
from gradio.state_holder import SessionState

from page.server.blocks import Blocks


def page(kind):
    """A page of some kind with twenty boxes, a state and a handler that may change them all."""
    with kind(analytics_enabled=False) as demo:
        boxes = [gr.Textbox(f"box {number}") for number in range(20)]
        state = gr.State(1)
        gr.Button().click(lambda: None, outputs=[*boxes, state])
    return demo, boxes, state


def answered(demo, updates):
    """What the handler's outputs become."""
    (handler,) = demo.fns.values()
    session = SessionState(demo)
    return asyncio.run(demo.postprocess_data(handler, updates, session)), session


@pytest.mark.parametrize(
    "change",
    [
        lambda boxes, state: {boxes[3]: "new"},
        lambda boxes, state: {boxes[3]: "new", boxes[7]: gr.Textbox(visible=False), state: 2},
        lambda boxes, state: {state: None},
        lambda boxes, state: gr.skip(),
        lambda boxes, state: [gr.skip()] * 5 + ["new"] + [gr.skip()] * 14 + [5],
    ],
    ids=["one value", "a value, a setting and a state", "a state", "one skip for all", "a list"],
)
def test_outputs_become_what_gradio_makes_of_them(change):
    results = []
    for kind in (gr.Blocks, Blocks):
        demo, boxes, state = page(kind)
        output, session = answered(demo, change(boxes, state))
        results.append((output, session[state._id]))
    assert results[0] == results[1]


@pytest.mark.parametrize("value", [["one"], ("one",), [["a", "list"]], [gr.skip()], gr.skip(), []])
def test_the_value_of_a_single_output_may_be_a_list(value):
    results = []
    for kind in (gr.Blocks, Blocks):
        with kind(analytics_enabled=False) as demo:
            state, data = gr.State(), gr.JSON()
            gr.Button().click(lambda: None, outputs=[state])
            gr.Button().click(lambda: None, outputs=[data])
        session = SessionState(demo)
        handlers = demo.fns.values()
        outputs = [asyncio.run(demo.postprocess_data(handler, value, session)) for handler in handlers]
        results.append((repr(outputs), session[state._id]))
    assert results[0] == results[1]


def test_a_component_that_an_event_leaves_alone_is_not_built_again(monkeypatch):
    demo, boxes, _ = page(Blocks)
    built = []
    original = gr.Textbox.__init__
    monkeypatch.setattr(
        gr.Textbox, "__init__", lambda self, *a, **k: (built.append(self), original(self, *a, **k))[1]
    )
    answered(demo, {boxes[3]: "new", boxes[7]: gr.skip()})
    assert built == []


def test_each_visitor_has_components_as_gradio_describes_them_and_changes_them_alone():
    demo, boxes, _ = page(Blocks)
    described = {
        number: BlocksConfig.config_for_block(number, [], block) for number, block in demo.blocks.items()
    }
    ada, bob = SessionState(demo), SessionState(demo)
    assert ada.config_values == bob.config_values == described
    ada._update_value_in_config(boxes[0]._id, "Ada's")
    ada[boxes[1]._id] = gr.Textbox("also Ada's", render=False)
    ada._update_config(boxes[1]._id)
    assert ada.config_values[boxes[0]._id]["props"]["value"] == "Ada's"
    assert ada.config_values[boxes[1]._id]["props"]["value"] == "also Ada's"
    assert bob.config_values == SessionState(demo).config_values == described


def test_a_visitor_who_arrives_has_no_component_described_again(monkeypatch):
    demo, *_ = page(Blocks)
    SessionState(demo)
    monkeypatch.setattr(gr.Textbox, "get_config", None)
    SessionState(demo)
