"""A recipe, what its models were asked, and the room of a class, in the address of the page."""

import base64
import json
from collections.abc import Mapping
from urllib.parse import urlencode

import gradio as gr

from page.server.form import CHAT, CONTINUE, FIRST_PROMPTS
from page.workers.messages import Prompt
from pruning import Recipe
from pruning.errors import RecipeError

PARAMETER, PROMPT, MODE = "recipe", "prompt", "mode"
ROOM, TEACHER = "room", "teacher"
MAX_LENGTH = 8_000
MAX_PROMPT = 500
"""A longer prompt is left out of a link."""


def encode(recipe: Recipe) -> str:
    """Return a recipe as the value of a query parameter."""
    compact = json.dumps(recipe.to_dict(), separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(compact.encode()).decode().rstrip("=")


def read(text: object) -> Recipe:
    """Return the recipe that a visitor wrote.

    Raises:
        RecipeError: It is not a recipe, or longer than `MAX_LENGTH`, since YAML is slow to read.
    """
    if not isinstance(text, str):
        raise RecipeError("A recipe is a text.")
    if len(text) > MAX_LENGTH:
        raise RecipeError(f"The recipe has {len(text):,} characters; at most {MAX_LENGTH:,} are read here.")
    return Recipe.parse(text)


def decode(value: str) -> Recipe:
    """Return the recipe in a query parameter.

    Raises:
        RecipeError: It is damaged or too long.
    """
    if len(value) > MAX_LENGTH:
        raise RecipeError("The recipe in this link is too long to be one. Ask for the link again.")
    try:
        text = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).decode()
        json.loads(text)
    except (ValueError, RecursionError):
        raise RecipeError("The recipe in this link is damaged. Ask for the link again.") from None
    return Recipe.parse(text)


def decode_prompt(parameters: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the mode and the prompt in the query parameters of a link; None if they name no mode."""
    mode = parameters.get(MODE)
    if mode not in FIRST_PROMPTS:
        return None
    return mode, parameters.get(PROMPT, FIRST_PROMPTS[mode])[:MAX_PROMPT]


def link(recipe: Recipe, request: gr.Request, prompt: Prompt | None = None) -> str:
    """Return the address that opens the page with a recipe, as the visitor's browser sees the page.

    A prompt that the visitor wrote comes along, unless it is long.
    """
    query = {PARAMETER: encode(recipe)}
    if prompt is not None:
        query[MODE] = CHAT if prompt.chat else CONTINUE
        if len(prompt.text) <= MAX_PROMPT and prompt.text != FIRST_PROMPTS[query[MODE]]:
            query[PROMPT] = prompt.text
    return f"{_page_address(request)}?{urlencode(query)}"


def room_link(request: gr.Request, name: str, secret: str = "") -> str:
    """Return the address that opens the page in a room: the students', or the teacher's with the secret."""
    return f"{_page_address(request)}?{urlencode({ROOM: name} | ({TEACHER: secret} if secret else {}))}"


def _page_address(request: gr.Request) -> str:
    """Return the address of the page as the visitor's browser sees it.

    The host that a proxy forwards is there only if the page believes it: `middleware.Gate` removes others.
    """
    headers = request.headers
    scheme = headers.get("x-forwarded-proto", "http").split(",")[0].strip()
    host = headers.get("x-forwarded-host") or headers.get("host", "")
    return f"{'https' if scheme == 'https' else 'http'}://{host.split(',')[0].strip()}/"
