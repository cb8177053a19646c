"""A recipe in the address of the page."""

import base64
import json

from pruning import Recipe
from pruning.errors import RecipeError

PARAMETER = "recipe"
LONGEST = 8_000


def encode(recipe: Recipe) -> str:
    """A recipe as the value of a query parameter."""
    compact = json.dumps(recipe.to_dict(), separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(compact.encode()).decode().rstrip("=")


def read(text: str) -> Recipe:
    """A recipe that a visitor wrote. Raises `RecipeError`, also for one too long: YAML is slow to read."""
    if not isinstance(text, str):
        raise RecipeError("A recipe is a text.")
    if len(text) > LONGEST:
        raise RecipeError(f"The recipe has {len(text):,} characters; at most {LONGEST:,} are read here.")
    return Recipe.parse(text)


def decode(value: str) -> Recipe:
    """The recipe in a query parameter. Raises `RecipeError`."""
    if len(value) > LONGEST:
        raise RecipeError("The recipe in this link is too long to be one. Ask for the link again.")
    try:
        text = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).decode()
        json.loads(text)
    except (ValueError, RecursionError):
        raise RecipeError("The recipe in this link is damaged. Ask for the link again.") from None
    return Recipe.parse(text)


def link(recipe: Recipe, request) -> str:
    """The address that opens the page with a recipe, as the visitor's browser sees the page."""
    headers = request.headers
    scheme = headers.get("x-forwarded-proto", "http").split(",")[0].strip()
    host = headers.get("x-forwarded-host") or headers.get("host", "")
    return f"{'https' if scheme == 'https' else 'http'}://{host.split(',')[0].strip()}/?{PARAMETER}={encode(recipe)}"
