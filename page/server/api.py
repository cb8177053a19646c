"""The page's functions for programs: over HTTP, from `gradio_client`, and as MCP tools.

They take plain values and return plain JSON. Nothing here belongs to a visitor: models are public ones, and
publishing takes the caller's own token, never that of the machine.
"""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import date
from typing import Any

import gradio as gr

from page.server import links
from page.server.form import CONTROLS, steps_from
from page.server.jobs import PUBLIC, watch_job
from page.server.look_ups import look_up
from page.server.session import job_name, user_message
from page.workers.export import PublishTask
from page.workers.messages import Done, Evaluation, Failed, Prompt, PrunedSummary, Stopped, Texts
from page.workers.tasks import CompareTask, EvaluateTask, PruneTask, Task
from pruning import Preview, Recipe, Sampling, catalog
from pruning.errors import RecipeError

MAX_NEW_TOKENS = 200

Answer = dict[str, Any]
Results = Mapping[type, Any]
"""The results of tasks by their kinds."""


def preview(
    model: str = catalog.DEFAULT_MODEL,
    neurons: float = 20,
    heads: int = 0,
    layers: int = 0,
    channels: float = 0,
    recipe: str = "",
) -> Answer:
    """Return the shape that a cut leads to, from the model's config alone: parameters before and after.

    Args:
        model: A name in the catalog, such as smollm2-135m, or the id of a public model on the Hub.
        neurons: MLP neurons to remove in each layer, in percent, from 0 to 90.
        heads: Groups of attention heads that share keys and values to remove in each layer.
        layers: Whole layers to remove.
        channels: Channels of the residual stream to remove, in percent.
        recipe: A recipe in YAML or JSON; if given, the other settings of the cut are ignored.

    Returns:
        parameters (before, after, and by component), the config of the smaller model, and the recipe.
    """

    def answer() -> Answer:
        planned = _recipe(model, recipe, neurons, heads, layers, channels)
        before = look_up(planned.base, PUBLIC).shape
        return Preview(planned, before, planned.check(before)).to_dict()

    return _answer(answer)


async def prune(
    request: gr.Request,
    model: str = catalog.DEFAULT_MODEL,
    neurons: float = 20,
    heads: int = 0,
    layers: int = 0,
    channels: float = 0,
    recipe: str = "",
) -> Answer:
    """Prune a model and report what was removed. It stays ready for generate, evaluate and push for a while.

    Args:
        model: A name in the catalog, such as smollm2-135m, or the id of a public model on the Hub.
        neurons: MLP neurons to remove in each layer, in percent, from 0 to 90.
        heads: Groups of attention heads that share keys and values to remove in each layer.
        layers: Whole layers to remove.
        channels: Channels of the residual stream to remove, in percent.
        recipe: A recipe in YAML or JSON; if given, the other settings of the cut are ignored.

    Returns:
        parameters, the config of the smaller model, the recipe, its YAML, its Python, a report, and recorded (the
        day on which it was made, or null if it was made just now).
    """

    def plan() -> list[Task]:
        return [PruneTask(_recipe(model, recipe, neurons, heads, layers, channels))]

    def answer(results: Results) -> Answer:
        pruned: PrunedSummary = results[PrunedSummary]
        return pruned.to_dict() | {"yaml": pruned.recipe.to_yaml(), "python": pruned.recipe.to_python()}

    return await _run(request, plan, answer)


async def generate(
    request: gr.Request,
    prompt: str,
    model: str = catalog.DEFAULT_MODEL,
    neurons: float = 20,
    heads: int = 0,
    layers: int = 0,
    channels: float = 0,
    recipe: str = "",
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool | None = None,
    system: str = "",
) -> Answer:
    """Give a prompt to a model and to the same model after a cut, with the same sampling noise.

    Args:
        prompt: The question, or the text to continue.
        model: A name in the catalog, such as smollm2-135m, or the id of a public model on the Hub.
        neurons: MLP neurons to remove in each layer, in percent, from 0 to 90.
        heads: Groups of attention heads that share keys and values to remove in each layer.
        layers: Whole layers to remove.
        channels: Channels of the residual stream to remove, in percent.
        recipe: A recipe in YAML or JSON; if given, the other settings of the cut are ignored.
        max_new_tokens: The most tokens to generate, up to 200.
        temperature: 0 always picks the likeliest token; up to 2 is more varied.
        seed: The seed of the sampling noise, if the temperature is above 0.
        chat: Whether to ask the prompt in the model's chat format; null asks it if the model has one, and
            continues it as a text otherwise.
        system: A system prompt for the chat; empty for the one of the model's chat template, if it has one.

    Returns:
        prompt, before and after (what the two models write), chat (whether they were asked in their chat format),
        plain_reason (if not, why, in case chat was null), the recipe, and recorded (the day on which the texts were
        written, or null if they were written just now).
    """

    def plan() -> list[Task]:
        planned = _recipe(model, recipe, neurons, heads, layers, channels)
        if isinstance(max_new_tokens, int) and max_new_tokens > MAX_NEW_TOKENS:
            raise RecipeError(f"max_new_tokens is {max_new_tokens}; it must be at most {MAX_NEW_TOKENS}.")
        sampling = Sampling(max_new_tokens, temperature, seed)
        asked = _prompt(prompt, chat, system)
        return [PruneTask(planned, asked), CompareTask(planned, asked, sampling)]

    def answer(results: Results) -> Answer:
        pruned: PrunedSummary = results[PrunedSummary]
        texts: Texts = results[Texts]
        return {
            "prompt": prompt,
            "before": texts.before,
            "after": texts.after,
            "chat": pruned.is_chat,
            "plain_reason": pruned.plain_reason,
            "recipe": pruned.recipe.to_dict(),
        }

    return await _run(request, plan, answer)


async def evaluate(
    request: gr.Request,
    model: str = catalog.DEFAULT_MODEL,
    neurons: float = 20,
    heads: int = 0,
    layers: int = 0,
    channels: float = 0,
    recipe: str = "",
) -> Answer:
    """Measure a model before and after a cut: perplexity and bits per byte on held-out text, size, speed.

    Args:
        model: A name in the catalog, such as smollm2-135m, or the id of a public model on the Hub.
        neurons: MLP neurons to remove in each layer, in percent, from 0 to 90.
        heads: Groups of attention heads that share keys and values to remove in each layer.
        layers: Whole layers to remove.
        channels: Channels of the residual stream to remove, in percent.
        recipe: A recipe in YAML or JSON; if given, the other settings of the cut are ignored.

    Returns:
        The recipe and a report: parameters, bytes, quality and tokens per second, before and after.
    """

    def plan() -> list[Task]:
        return [EvaluateTask(_recipe(model, recipe, neurons, heads, layers, channels), speed=True)]

    def answer(results: Results) -> Answer:
        evaluation: Evaluation = results[Evaluation]
        return {"recipe": evaluation.recipe.to_dict(), "report": evaluation.report.to_dict()}

    return await _run(request, plan, answer)


async def push(
    request: gr.Request,
    repository: str,
    recipe: str,
    private: bool = True,
) -> Answer:
    """Publish a pruned model on the Hugging Face Hub, under the caller's own name.

    It needs the caller's own Hub token, which may write, as the header X-Hub-Token.

    Args:
        repository: Name of the repository, such as my-small-model or owner/my-small-model.
        recipe: The recipe of the model in YAML or JSON, as prune returned it.
        private: Whether only its owner can see it.

    Returns:
        url: where the model is.
    """

    token = request.headers.get("x-hub-token", "").strip()

    def plan() -> list[Task]:
        if not token:
            raise RecipeError("Publishing needs your own Hub token: send it as the header X-Hub-Token.")
        if not isinstance(repository, str) or not repository.strip():
            raise RecipeError("Enter a name for the repository.")
        if not isinstance(private, bool):
            raise RecipeError("private must be true or false.")
        return [PublishTask(_recipe("", recipe), repository.strip(), private, token)]

    return await _run(request, plan, lambda results: {"url": results[str]})


def register() -> None:
    """Give the page that is open these endpoints."""
    gr.api(preview, queue=False)
    for function in (prune, generate, evaluate, push):
        gr.api(function, concurrency_limit=None)


def _recipe(
    model: object, recipe: object, neurons: float = 0, heads: int = 0, layers: int = 0, channels: float = 0
) -> Recipe:
    """Return what a call asks for.

    Raises:
        RecipeError: A value is out of range, or nothing is to be cut.
    """
    if not isinstance(recipe, str) or not isinstance(model, str):
        raise RecipeError("model and recipe must be texts.")
    if recipe.strip():
        return links.read(recipe)
    amounts = {
        "neurons-fraction": neurons,
        "heads-groups": heads,
        "layers-count": layers,
        "channels-fraction": channels,
    }
    steps = steps_from(
        [amounts.get(control.key, 0 if control.slider else control.start) for control in CONTROLS]
    )
    if not steps:
        raise RecipeError("Nothing to cut: give a number of neurons, heads, layers or channels, or a recipe.")
    return Recipe(base=model, steps=steps)


def _prompt(text: object, chat: object, system: object) -> Prompt:
    """Return what a call gives both models. Raises `RecipeError` for values of other kinds."""
    if not isinstance(text, str) or not isinstance(system, str):
        raise RecipeError("prompt and system must be texts.")
    if chat is not None and not isinstance(chat, bool):
        raise RecipeError("chat must be true, false or null.")
    return Prompt(text, chat, system or None)


async def _run(
    request: gr.Request,
    plan: Callable[[], Sequence[Task]],
    answer: Callable[[Results], Answer],
) -> Answer:
    """Return the answer made of the results of tasks, which are recorded or made when their turn comes."""
    results: dict[type, Any] = {}
    recorded: list[date] = []
    # Callers of MCP share a session, so each call is a job of its own.
    name = job_name(request, f"call-{uuid.uuid4().hex}")
    async with aclosing(watch_job(plan, PUBLIC, name)) as events:
        async for event in events:
            match event:
                case Done(value, day):
                    results[type(value)] = value
                    recorded += [day] if day is not None else []
                case Stopped(message) | Failed(message):
                    raise gr.Error(message, print_exception=False)
    made = min(recorded).isoformat() if recorded else None
    return _answer(lambda: answer(results) | {"recorded": made})


def _answer(make: Callable[[], Answer]) -> Answer:
    """Return an answer as plain JSON; raise an error as the caller is told of it."""
    try:
        plain: Answer = json.loads(json.dumps(make(), default=str))
    except Exception as error:
        raise gr.Error(user_message(error), print_exception=False) from None
    return plain
