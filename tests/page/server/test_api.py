"""The page's functions as an API: over HTTP with gradio_client, as MCP tools, and past both."""

import asyncio
import json
import subprocess

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

import pruning
from pruning.architectures.shape import Shape
from tests.helpers.hub import CLIENT_ENV, LoopbackHub
from tests.helpers.models import trained
from tests.helpers.serving import page_cache, serve

pytestmark = pytest.mark.real

NAMES = {"/preview", "/prune", "/generate", "/evaluate", "/push"}
RECIPE = "format: 2\nbase: smollm2-135m\nsteps: [{step: neurons, fraction: 0.2, criterion: peak_to_peak}]"
SMALL = "format: 2\nbase: ada/small\nsteps: [{step: neurons, fraction: 0.5, criterion: peak_to_peak}]"
"""A recipe for a small model of the Hub: both models read all the texts and answer every question."""


@pytest.fixture(scope="module")
def served(smollm2, user_cache, tmp_path_factory):
    """The page on a machine that is signed in as ada, and its Hub."""
    home = tmp_path_factory.mktemp("api")
    with LoopbackHub() as hub:
        hub.add_user("ada-token", "ada")
        hub.add_user("bob-token", "bob")
        hub.add_model("ada/small", trained().source.folder)
        environment = CLIENT_ENV | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home / "hf"),
            "HF_TOKEN": "ada-token",
            "GRADIO_TEMP_DIR": str(home / "gradio"),
            "SECATEUR_CACHE": page_cache(home, user_cache),
        }
        process, url = serve(environment, home / "log.txt")
        yield url, hub
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        assert "Traceback" not in (home / "log.txt").read_text()


@pytest.fixture(scope="module")
def client(served):
    return Client(served[0], verbose=False)


def test_every_function_documents_what_it_takes(served):
    named = httpx.get(f"{served[0]}/gradio_api/info").json()["named_endpoints"]
    assert set(named) == NAMES
    for name, endpoint in named.items():
        assert len(endpoint["description"]) > 40, name
        for parameter in endpoint["parameters"]:
            assert parameter["python_type"]["type"] in ("str", "int", "float", "bool", "None | bool"), name


def test_preview_gives_what_the_library_gives(client, smollm2):
    recipe = pruning.Recipe(base="smollm2-135m", steps=[pruning.Neurons(fraction=0.2)])
    shape = Shape.of(smollm2.model.config)
    expected = pruning.Preview(recipe, shape, recipe.check(shape)).to_dict()["parameters"]
    assert client.predict(neurons=20, api_name="/preview")["parameters"] == expected
    assert client.predict(recipe=RECIPE, api_name="/preview")["parameters"] == expected


def test_prune_answers_with_a_recipe_of_the_same_model(client):
    answer = client.predict(neurons=20, api_name="/prune")
    again = client.predict(recipe=answer["yaml"], api_name="/prune")
    assert again["parameters"] == answer["parameters"]
    assert again["recipe"] == answer["recipe"]
    assert answer["parameters"]["after"] == 117_926_208


@pytest.mark.parametrize(
    ("settings", "chat"),
    [({}, True), ({"chat": True, "system": "Answer in French."}, True), ({"chat": False}, False)],
)
def test_generate_answers_or_continues_with_both_models(client, smollm2, settings, chat):
    prompt = "What is the capital of France?"
    answer = client.predict(prompt, neurons=80, max_new_tokens=12, **settings, api_name="/generate")
    assert answer["prompt"] == prompt
    assert (answer["chat"], answer["plain_reason"]) == (chat, "")
    expected = pruning.generate(smollm2, prompt, pruning.Sampling(12), **settings)
    assert answer["before"] == expected
    assert answer["after"] != expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chat": False, "system": "Be brief."}, "A system prompt is for a chat"),
        ({"system": " "}, "The system prompt is empty"),
        ({"prompt": " "}, "is empty"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(client, values, message):
    with pytest.raises(AppError, match=message):
        client.predict(**{"prompt": "Why?"} | values, api_name="/generate")


@pytest.mark.parametrize(
    "values", [{"chat": "yes"}, {"chat": 1}, {"system": None, "chat": []}, {"system": 5}]
)
def test_a_chat_is_asked_for_with_true_or_false(served, values):
    answer = httpx.post(f"{served[0]}/gradio_api/call/v2/generate", json={"prompt": "Why?"} | values)
    assert answer.status_code == 422


def test_evaluate_and_push_with_the_callers_own_token(served, client):
    report = client.predict(recipe=SMALL, api_name="/evaluate")["report"]
    assert report["before"]["quality"]["overall"]["value"] < report["after"]["quality"]["overall"]["value"]
    bob = Client(served[0], verbose=False, headers={"x-hub-token": "bob-token"})
    answer = bob.predict("smaller", SMALL, api_name="/push")
    assert "bob/smaller" in answer["url"]


def test_the_machines_own_token_is_never_used_for_a_caller(client):
    with pytest.raises(AppError, match="your own Hub token"):
        client.predict("smaller", RECIPE, api_name="/push")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"neurons": -1}, "Enter a number from 0 to 99"),
        ({"neurons": 200}, "Enter a number from 0 to 99"),
        ({"neurons": 0}, "Nothing to cut"),
        ({"layers": 99}, "layers"),
        ({"model": "../etc"}, "is not a model"),
        ({"recipe": "steps: ["}, "Invalid YAML"),
        ({"recipe": "[" * 100_000}, "at most 8,000"),
    ],
)
def test_an_impossible_request_is_refused_in_a_sentence(client, values, message):
    for name in ("/preview", "/prune"):
        with pytest.raises(AppError, match=message):
            client.predict(**values, api_name=name)


def test_the_same_functions_work_as_mcp_tools(served):
    async def used():
        async with (
            streamable_http_client(f"{served[0]}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            assert set(tools) == {name.strip("/") for name in NAMES}
            assert all(len(tool.description) > 40 for tool in tools.values())
            shapes_considered = await session.call_tool("preview", {"neurons": 20})
            pruned = await session.call_tool("prune", {"neurons": 20})
            refused = await session.call_tool("push", {"repository": "x", "recipe": RECIPE})
            return shapes_considered, pruned, refused

    shapes_considered, pruned, refused = asyncio.run(used())
    for answer in (shapes_considered, pruned):
        assert not answer.isError
        assert "117926208" in answer.content[0].text
    assert refused.isError
    assert "your own Hub token" in refused.content[0].text


def test_a_private_function_is_hidden_from_programs_and_still_checks_its_values(served, client):
    """Gradio hides private functions, but a caller who knows their number can call them."""
    with pytest.raises(ValueError, match="Cannot find"):
        client.predict(api_name="/show_shape")
    url = f"{served[0]}/gradio_api"
    config = httpx.get(f"{served[0]}/config").json()
    (shape,) = (entry for entry in config["dependencies"] if entry["api_name"] == "show_shape")
    values = {component["id"]: component["props"].get("value") for component in config["components"]}
    opened, *usual = [values[index] for index in shape["inputs"]]  # The first is kept by the server.

    def call(data, **more):
        values = {"data": [opened, *data], "fn_index": shape["id"]} | more
        # The first call waits until the page has loaded the model, which takes longer on a busy machine.
        return httpx.post(f"{url}/run/predict", json=values, timeout=120)

    assert call(usual).status_code == 200
    assert call(usual[:-1]).status_code == 422
    assert call([[], *usual[1:]]).status_code == 422
    assert call(usual, session_hash="../x").status_code == 422
    assert call(usual, batched=True).status_code == 422
    assert "Enter a number from 0 to 99" in call([usual[0], -5, *usual[2:]]).text


@pytest.mark.parametrize("path", ["upload", "component_server", "proxy=http://127.0.0.1:9/x", "stream/x"])
def test_routes_that_the_page_does_not_need_are_closed(served, path):
    url = f"{served[0]}/gradio_api/{path}"
    answer = httpx.get(url) if "proxy" in path else httpx.post(url, files={"files": b"x"})
    assert answer.status_code == 404
    assert "no such thing" in json.loads(answer.text)["detail"]
