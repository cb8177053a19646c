"""The mode, Chat or Continue, and the prompt that goes with it."""

from urllib.parse import parse_qsl, urlsplit

import gradio as gr
import pytest

from page.sections.controls import describe_criterion
from page.sections.prompt import choose_example
from page.server.form import CHAT, CONTINUE, EXAMPLE_PROMPTS, FIRST_PROMPTS
from page.server.links import decode_prompt, link
from page.workers.messages import Prompt
from pruning import Neurons, Recipe

QUESTION, TEXT = FIRST_PROMPTS[CHAT], FIRST_PROMPTS[CONTINUE]


@pytest.fixture
def changed(handler):
    """`changed(name, *values)` returns what a handler sets: the mode, the note on it, and the prompt."""

    def call(name, *values):
        (updates,) = handler(name)(*values)
        return updates["mode"].value, updates["mode"].info, updates["prompt"]

    return call


@pytest.mark.parametrize("written", [QUESTION, TEXT, "", " "])
@pytest.mark.parametrize("mode", [CHAT, CONTINUE])
def test_switching_the_mode_switches_the_first_prompt(changed, mode, written):
    new, note, prompt = changed("switch_mode", mode, written)
    assert (new, note) == (mode, "")
    assert prompt.value == FIRST_PROMPTS[mode]
    assert prompt.label == {CHAT: "Question", CONTINUE: "Text to continue"}[mode]


@pytest.mark.parametrize("mode", [CHAT, CONTINUE])
def test_what_the_visitor_wrote_remains(changed, mode):
    assert changed("switch_mode", mode, "Why is the sky")[2].value == "Why is the sky"


@pytest.mark.parametrize("mode", ["", None, "ask", "<script>"])
def test_a_mode_that_there_is_not_is_taken_for_the_first(changed, mode):
    assert changed("switch_mode", mode, TEXT)[0] == CHAT


@pytest.mark.parametrize(
    ("model", "mode"),
    [
        ("smollm2-135m", CHAT),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", CHAT),
        ("qwen3-0.6b", CHAT),
        ("owner/unknown", CHAT),
        (None, CHAT),
        ("distilgpt2", CONTINUE),
        ("pythia-160m", CONTINUE),
    ],
)
def test_a_base_model_continues_a_text_and_the_page_says_why(changed, model, mode):
    chosen, note, prompt = changed("suit_mode", model, QUESTION)
    assert chosen == mode
    assert ("was not trained to answer questions" in note) == (mode == CONTINUE)
    assert prompt.value == FIRST_PROMPTS[mode]


def test_each_mode_offers_its_examples_and_the_first_prompt_is_one_of_them(handler):
    for mode, prompts in EXAMPLE_PROMPTS.items():
        assert prompts[0] == FIRST_PROMPTS[mode]
        assert [choose_example(number, mode) for number in range(len(prompts))] == list(prompts)
        (updates,) = handler("switch_mode")(mode, "")
        assert updates["examples"].samples == [[prompt] for prompt in prompts]


@pytest.mark.parametrize("number", [-1, 5, 99, True, "0", None, 1.0, [0]])
def test_an_example_that_there_is_not_leaves_the_prompt(number):
    skip = choose_example(number, CHAT)
    assert "value" not in skip
    assert choose_example(0, "ask") == choose_example(0, None) == skip


RECIPE = Recipe(base="smollm2-135m", steps=(Neurons(fraction=0.2),))


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        (Prompt(QUESTION, chat=True), (CHAT, QUESTION)),
        (Prompt(TEXT, chat=False), (CONTINUE, TEXT)),
        (Prompt("1 + 1 = ?&mode=chat", chat=False), (CONTINUE, "1 + 1 = ?&mode=chat")),
        (Prompt("Größe\n\U0001f600", chat=True), (CHAT, "Größe\n\U0001f600")),
        (Prompt("x" * 501, chat=True), (CHAT, QUESTION)),
    ],
)
def test_a_link_opens_the_page_with_the_same_prompt(prompt, opened, request_of):
    parameters = dict(parse_qsl(urlsplit(link(RECIPE, request_of(), prompt)).query))
    assert decode_prompt(parameters) == opened


@pytest.mark.parametrize("parameters", [{}, {"prompt": "x"}, {"mode": "ask", "prompt": "x"}, {"mode": ""}])
def test_a_link_without_a_mode_leaves_the_prompt(parameters):
    assert decode_prompt(parameters) is None


def test_a_long_prompt_of_a_link_is_cut():
    assert decode_prompt({"mode": "chat", "prompt": "x" * 10_000}) == (CHAT, "x" * 500)


@pytest.mark.parametrize("name", [None, 3, ["l1"], {"l1": 1}, "no such criterion"])
def test_a_criterion_that_there_is_not_gets_a_sentence(name):
    note, repair = describe_criterion(name)
    assert "There is no criterion" in note
    assert repair == gr.skip()
