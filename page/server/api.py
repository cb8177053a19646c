"""The page's functions for programs: over HTTP, from `gradio_client`, and as MCP tools.

Plain values in, plain JSON out. Nothing here belongs to a visitor: models are public ones, and publishing
takes the caller's own token, never that of the machine.
"""

import json
import threading
import uuid
from collections.abc import Callable

import gradio as gr

from page.sections.form import CONTROLS, steps_from
from page.server import links
from page.server.session import LINE, jobs, models, session_of, told, workbench
from page.server.session import SECONDS as JOB_SECONDS
from page.workers.workbench import Visitor
from pruning import Preview, Pruned, PruningError, Recipe, Sampling, catalog
from pruning import publish as published
from pruning.errors import RecipeError
from pruning.progress import Progress
from pruning.text.generation import encode_prompt, stream_pair

CALLERS = max(1, LINE // 2)
"""How many calls may wait or work at once, so that programs leave room for people."""

_places = threading.BoundedSemaphore(CALLERS)


def preview(
    model: str = catalog.DEFAULT_MODEL,
    neurons: float = 20,
    heads: int = 0,
    layers: int = 0,
    channels: float = 0,
    recipe: str = "",
) -> dict:
    """The shape that a cut leads to, from the model's config alone: parameters before and after.

    Args:
        model: Name in the catalogue, such as smollm2-135m, or id of a public model on the Hugging Face Hub.
        neurons: MLP neurons to cut in every layer, in per cent, from 0 to 90.
        heads: Groups of attention heads that share keys and values to cut in every layer.
        layers: Whole layers to cut.
        channels: Channels of the residual stream to cut, in per cent.
        recipe: A whole recipe in YAML or JSON instead; where it is given, the others count for nothing.

    Returns:
        parameters (before, after, and by component), the config of the smaller model, and the recipe.
    """

    def answer() -> dict:
        asked = _recipe(model, recipe, neurons, heads, layers, channels)
        before, _ = workbench.look(asked.base, _anyone())
        return Preview(asked, before, asked.check(before)).to_dict()

    return _answered(answer)


def prune(
    request: gr.Request,
    model: str = catalog.DEFAULT_MODEL,
    neurons: float = 20,
    heads: int = 0,
    layers: int = 0,
    channels: float = 0,
    recipe: str = "",
) -> dict:
    """Prune a model and say what was cut. It stays ready for generate, evaluate and push for a while.

    Args:
        model: Name in the catalogue, such as smollm2-135m, or id of a public model on the Hugging Face Hub.
        neurons: MLP neurons to cut in every layer, in per cent, from 0 to 90.
        heads: Groups of attention heads that share keys and values to cut in every layer.
        layers: Whole layers to cut.
        channels: Channels of the residual stream to cut, in per cent.
        recipe: A whole recipe in YAML or JSON instead; where it is given, the others count for nothing.

    Returns:
        parameters, the config of the smaller model, the recipe, its YAML, its Python, and a report.
    """

    def work(tell) -> dict:
        asked = _recipe(model, recipe, neurons, heads, layers, channels)
        made = workbench.pruned(asked, _anyone(), tell)
        return made.to_dict() | {"yaml": made.recipe.to_yaml(), "python": made.recipe.to_python()}

    return _in_turn(request, work)


def generate(
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
) -> dict:
    """Continue a prompt with a model and with the same model after a cut, drawn from the same noise.

    Args:
        prompt: The text to continue.
        model: Name in the catalogue, such as smollm2-135m, or id of a public model on the Hugging Face Hub.
        neurons: MLP neurons to cut in every layer, in per cent, from 0 to 90.
        heads: Groups of attention heads that share keys and values to cut in every layer.
        layers: Whole layers to cut.
        channels: Channels of the residual stream to cut, in per cent.
        recipe: A whole recipe in YAML or JSON instead; where it is given, the others count for nothing.
        max_new_tokens: How many tokens to write at most, up to 200.
        temperature: 0 takes the likeliest token each time; up to 2 is more varied.
        seed: What the texts are drawn from where the temperature is above 0.

    Returns:
        prompt, before and after (the two continuations), and the recipe.
    """

    def work(tell) -> dict:
        asked = _recipe(model, recipe, neurons, heads, layers, channels)
        if isinstance(max_new_tokens, int) and max_new_tokens > 200:
            raise RecipeError(f"max_new_tokens is {max_new_tokens}; at most 200 are written here.")
        sampling = Sampling(max_new_tokens, temperature, seed)
        base, made = workbench.pair(asked, _anyone(), tell)
        encode_prompt(made.tokenizer, prompt)
        before, after = "", ""
        for pair in stream_pair(base, made, prompt, sampling):
            before, after = pair
            tell(Progress("Writing"))
        return {"prompt": prompt, "before": before, "after": after, "recipe": made.recipe.to_dict()}

    return _in_turn(request, work)


def evaluate(
    request: gr.Request,
    model: str = catalog.DEFAULT_MODEL,
    neurons: float = 20,
    heads: int = 0,
    layers: int = 0,
    channels: float = 0,
    recipe: str = "",
) -> dict:
    """Measure a model before and after a cut: perplexity and bits per byte on held-out text, size, speed.

    Args:
        model: Name in the catalogue, such as smollm2-135m, or id of a public model on the Hugging Face Hub.
        neurons: MLP neurons to cut in every layer, in per cent, from 0 to 90.
        heads: Groups of attention heads that share keys and values to cut in every layer.
        layers: Whole layers to cut.
        channels: Channels of the residual stream to cut, in per cent.
        recipe: A whole recipe in YAML or JSON instead; where it is given, the others count for nothing.

    Returns:
        The recipe and a report: parameters, bytes, quality and tokens per second, before and after.
    """

    def work(tell) -> dict:
        asked = _recipe(model, recipe, neurons, heads, layers, channels)
        measured = _measured(asked, _anyone(), tell)
        return {"recipe": measured.recipe.to_dict(), "report": measured.report.to_dict()}

    return _in_turn(request, work)


def push(
    request: gr.Request,
    repository: str,
    recipe: str,
    private: bool = True,
) -> dict:
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

    def work(tell) -> Pruned:
        if not token:
            raise RecipeError("Publishing needs your own Hub token: send it as the header X-Hub-Token.")
        if not isinstance(repository, str) or not repository.strip():
            raise RecipeError("Give the repository a name.")
        if not isinstance(private, bool):
            raise RecipeError("private is either true or false.")
        return _measured(_recipe("", recipe), _anyone(), tell)

    def upload(pruned: Pruned) -> dict:
        return {"url": published(pruned, repository.strip(), private=private, token=token)}

    return _in_turn(request, work, upload)


def offer() -> None:
    """Give the page that is open these endpoints."""
    gr.api(preview, queue=False)
    for function in (prune, generate, evaluate, push):
        gr.api(function, concurrency_limit=None)


def _anyone() -> Visitor:
    """Someone without rights: what is made for a call is everyone's."""
    return Visitor()


def _recipe(model, recipe, neurons=0, heads=0, layers=0, channels=0) -> Recipe:
    """What a call asks for. Raises `RecipeError`."""
    if not isinstance(recipe, str) or not isinstance(model, str):
        raise RecipeError("model and recipe are texts.")
    if recipe.strip():
        return links.read(recipe)
    asked = {
        "neurons-fraction": neurons,
        "heads-groups": heads,
        "layers-count": layers,
        "channels-fraction": channels,
    }
    steps = steps_from([asked.get(c.key, 0 if c.slides else c.start) for c in CONTROLS])
    if not steps:
        raise RecipeError(
            "Nothing is cut: say how many neurons, heads, layers or channels, or give a recipe."
        )
    return Recipe(base=model, steps=steps)


def _measured(recipe: Recipe, visitor: Visitor, tell) -> Pruned:
    *_, measured = workbench.measuring(recipe, visitor, tell)
    return measured


def _in_turn(request: gr.Request, work: Callable, then: Callable = lambda result: result) -> dict:
    """Carry work out when its turn comes, `then` what needs no models."""

    def answer() -> dict:
        # Several callers may share a session, as those of MCP do, so each call is a job of its own.
        name = f"{session_of(request)} call-{uuid.uuid4().hex}"
        job = jobs.start(name, models, JOB_SECONDS)
        try:
            *_, (result,) = job.watch(work)
            job.finish()
            return then(result)
        finally:
            jobs.finish(name, job)

    if not _places.acquire(blocking=False):
        raise gr.Error(
            f"{CALLERS} calls are already under way, and no more are taken. Try again in some minutes.",
            print_exception=False,
        )
    try:
        return _answered(answer)
    finally:
        _places.release()


def _answered(answer: Callable[[], dict]) -> dict:
    """An answer as plain JSON; what goes wrong as the caller is told."""
    try:
        return json.loads(json.dumps(answer(), default=str))
    except PruningError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception as error:
        raise gr.Error(told(error), print_exception=False) from None
