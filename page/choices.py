"""What a visitor chose, validated on the server: sliders are not limits."""

from pruning import Calibration, Neurons, Recipe
from pruning.errors import RecipeError
from pruning.texts import OWN

LARGEST_PERCENT = 90
MAX_OWN_TEXT = 200_000


def fraction_of(percent: float) -> float:
    """The slider's percentage as a share."""
    if isinstance(percent, bool) or not isinstance(percent, int | float):
        raise RecipeError(f"The share of neurons is {str(percent)[:40]!r}; a number is needed.")
    if not 0 <= percent <= LARGEST_PERCENT:
        raise RecipeError(f"The share of neurons is {percent}; it must be from 0 to {LARGEST_PERCENT} %.")
    return percent / 100


def recipe_from(model, percent, criterion, repair, multiple, text, own_text, tokens, seed) -> Recipe:
    """What the visitor chose, validated."""
    fraction = fraction_of(percent)
    if fraction == 0:
        raise RecipeError("Nothing is cut yet: move the slider, then press Prune.")
    if text == OWN:
        if not isinstance(own_text, str) or not own_text.strip():
            raise RecipeError("Paste the text to calibrate on, or choose a bundled one.")
        if len(own_text) > MAX_OWN_TEXT:
            raise RecipeError(
                f"Your text has {len(own_text):,} characters; at most {MAX_OWN_TEXT:,} are read here."
            )
        calibration = Calibration.own(own_text, tokens=whole(tokens, "calibration tokens"))
    else:
        calibration = Calibration(text=text, tokens=whole(tokens, "calibration tokens"))
    step = Neurons(
        fraction=fraction,
        criterion=criterion,
        repair=repair,
        multiple_of=whole(multiple, "multiple"),
    )
    return Recipe(base=model, calibration=calibration, steps=[step], seed=whole(seed, "seed"))


def whole(value: float, name: str) -> int:
    """A number field's value, which arrives as a float."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecipeError(f"The {name} is {str(value)[:40]!r}; a whole number is needed.")
    return value
