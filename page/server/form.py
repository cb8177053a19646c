"""The visitor's choices as a recipe, validated on the server (a slider is not a limit), and the reverse."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from page.workers.messages import Prompt
from pruning import Calibration, Recipe
from pruning.errors import RecipeError
from pruning.steps import STEPS, AnyStep, Layers
from pruning.steps.settings import Choices, Setting, Slider, Switch
from pruning.text.passages import CUSTOM

MAX_CUSTOM_TEXT = 200_000
MAX_PERCENT = 99
MAIN = "neurons"
MAIN_START = 20
"""The percentage of neurons to remove when the page opens."""
AUTOMATIC = "auto"
"""What a list of choices shows for a field that is left open."""
CHAT, CONTINUE = "chat", "continue"
FIRST_PROMPTS = {CHAT: "What is the capital of France?", CONTINUE: "Paris is the capital of"}
"""The prompt in each mode before the visitor writes one: a question to answer, or a text to continue."""
EXAMPLE_PROMPTS = {
    CHAT: (
        FIRST_PROMPTS[CHAT],
        "What is 2 + 2?",
        "Name three colors.",
        "Why is the sky blue?",
        "Tell me a story about a fox.",
    ),
    CONTINUE: (
        FIRST_PROMPTS[CONTINUE],
        "Once upon a time, there was a little",
        "The old man walked to the",
        "The first step of the recipe is",
        "def add(a, b):",
    ),
}
"""The prompts that each mode offers, the first one first."""
SEPARATE_SECTIONS = ("distillation",)
"""Steps that have a section of their own on the page."""


@dataclass(frozen=True)
class Control:
    """One control of the page: a setting of a step."""

    step: str
    setting: Setting

    @property
    def key(self) -> str:
        return f"{self.step}-{self.setting.field}"

    @property
    def slider(self) -> Slider | None:
        """The slider that sets how much to cut, if it is one."""
        return self.setting.control if isinstance(self.setting.control, Slider) else None

    @property
    def start(self) -> object:
        """The value with which the page opens."""
        if self.slider is not None:
            return MAIN_START if self.step == MAIN else 0
        default = STEPS[self.step].model_fields[self.setting.field].default
        return (
            True if isinstance(self.setting.control, Switch) and default is None else self.from_field(default)
        )

    def to_field(self, value: object) -> object:
        """Return the step's field for the control's value.

        Raises:
            RecipeError: The value is one that the control never sends.
        """
        label = self.setting.label
        if value == AUTOMATIC and self._may_be_open:
            return None
        match self.setting.control:
            case Slider(percent=percent):
                limit = MAX_PERCENT if percent else 1e9 - 1
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= limit:
                    up_to = f"from 0 to {MAX_PERCENT}" if percent else "0 or greater"
                    raise RecipeError(f"{label} is {str(value)[:40]!r}. Enter a number {up_to}.")
                return value / 100 if percent else to_integer(value, label)
            case Choices(titles=titles) if value not in titles:
                raise RecipeError(
                    f"{label} is {str(value)[:40]!r}. Choose one of "
                    f"{', '.join(AUTOMATIC if title is None else str(title) for title in titles)}."
                )
            case Choices():
                return value
        return bool(value)

    def from_field(self, value: object) -> object:
        """Return the control's value for the step's field."""
        if self.slider is not None and self.slider.percent and isinstance(value, int | float):
            return round(100 * value, 6)
        return AUTOMATIC if value is None and self._may_be_open else value

    @property
    def _may_be_open(self) -> bool:
        return isinstance(self.setting.control, Choices) and None in self.setting.control.titles


@dataclass(frozen=True)
class PressedLayers:
    """Layers that the visitor chose by pressing them in the drawing, beside what the controls say.

    Attributes:
        model: The base whose layers they are.
        layers: Their numbers, ascending.
    """

    model: str
    layers: tuple[int, ...]


Opened = Recipe | PressedLayers | None
"""What Prune uses besides the controls: a recipe that replaces them, or layers that the visitor pressed."""


ON_PAGE = (MAIN, *(name for name in STEPS if name != MAIN and name not in SEPARATE_SECTIONS))
CONTROLS = tuple(
    Control(name, setting) for name in ON_PAGE for setting in STEPS[name].settings if setting.control
)


def steps_from(values: Sequence[object]) -> tuple[AnyStep, ...]:
    """Return the steps that the controls ask for, in the order of `STEPS`.

    Args:
        values: The controls' values, in the order of `CONTROLS`.

    Raises:
        RecipeError: A value is out of range.
    """
    fields: dict[str, dict[str, Any]] = {}
    active = set()
    for control, value in zip(CONTROLS, values, strict=True):
        field = control.to_field(value)
        if field is None or (control.slider is not None and not field):
            continue
        if control.setting.activates_step:
            active.add(control.step)
        fields.setdefault(control.step, {})[control.setting.field] = field
    return tuple(STEPS[name](**fields[name]) for name in STEPS if name in active)


def with_layers(steps: Sequence[AnyStep], layers: Sequence[int], repair: bool) -> tuple[AnyStep, ...]:
    """Return steps that remove exactly some layers, in place of those that they removed.

    Args:
        steps: The steps.
        layers: The numbers of the layers in the base; none to remove no layer.
        repair: Whether the gaps are repaired, if the steps removed no layers so far.
    """
    places = [place for place, step in enumerate(steps) if isinstance(step, Layers)]
    others = [step for step in steps if not isinstance(step, Layers)]
    if not layers:
        return tuple(others)
    fields: dict[str, Any] = {"layers": tuple(layers), "repair": repair}
    if places and isinstance(former := steps[places[0]], Layers):
        fields |= {"repair": former.repair, "repair_norms": former.repair_norms}
    first = places[0] if places else 0
    return (*others[:first], Layers(**fields), *others[first:])


def requested_steps(opened: Opened, model: object, values: Sequence[object]) -> tuple[AnyStep, ...]:
    """Return the steps that Prune carries out.

    Args:
        opened: What Prune uses besides the controls.
        model: The base.
        values: The controls' values, in the order of `CONTROLS`.

    Raises:
        RecipeError: A value is out of range.
    """
    if isinstance(opened, Recipe):
        return opened.steps
    steps = steps_from(values)
    if opened is None or opened.model != model or any(isinstance(step, Layers) for step in steps):
        return steps
    return with_layers(steps, opened.layers, layers_are_repaired(values))


def layers_are_repaired(values: Sequence[object]) -> bool:
    """Return whether the controls ask to repair the gaps that removed layers leave."""
    return any(
        control.key == "layers-repair" and bool(value)
        for control, value in zip(CONTROLS, values, strict=True)
    )


def values_of(recipe: Recipe) -> list[object] | None:
    """Return the controls' values that ask for a recipe's steps; None if it holds more than they can say."""
    steps = {step.step: step for step in recipe.steps}
    values: list[object] = []
    for control in CONTROLS:
        is_slider = control.slider is not None
        value = 0 if is_slider else control.start
        if control.step in steps:
            value = control.from_field(getattr(steps[control.step], control.setting.field))
        values.append(0 if value is None and is_slider else value)
    try:
        return values if steps_from(values) == recipe.steps else None
    except RecipeError:
        return None


def calibration_from(text: object, custom_text: object, tokens: object) -> Calibration:
    """Return the chosen calibration text.

    Raises:
        RecipeError: There is no such text, the visitor's own is missing or too long, or the number of tokens
            is out of range.
    """
    count = to_integer(tokens, "number of calibration tokens")
    if text != CUSTOM:
        if not isinstance(text, str):
            raise RecipeError(f"The calibration text is {str(text)[:40]!r}. Choose one from the list.")
        return Calibration(text=text, tokens=count)
    if not isinstance(custom_text, str) or not custom_text.strip():
        raise RecipeError("Paste the text to calibrate on, or choose a bundled one.")
    if len(custom_text) > MAX_CUSTOM_TEXT:
        raise RecipeError(
            f"Your text has {len(custom_text):,} characters; at most {MAX_CUSTOM_TEXT:,} are read here."
        )
    return Calibration.custom(custom_text, tokens=count)


def recipe_from(
    opened: Opened,
    model: object,
    text: object,
    custom_text: object,
    tokens: object,
    seed: object,
    *values: object,
) -> Recipe:
    """Return the recipe that was opened, or else what the controls and the pressed layers say.

    Args:
        opened: A recipe that holds more than the controls can say, or layers that were pressed, if any.
        model: The base.
        text: The calibration text, by name.
        custom_text: The visitor's own calibration text.
        tokens: The number of calibration tokens.
        seed: The seed.
        *values: The controls' values, in the order of `CONTROLS`.

    Raises:
        RecipeError: A value is out of range, or nothing is to be cut.
    """
    if isinstance(opened, Recipe):
        return with_text(opened, custom_text)
    steps = requested_steps(opened, model, values)
    if not steps:
        raise RecipeError("Nothing to cut yet: move the slider, then press Prune.")
    if not isinstance(model, str):
        raise RecipeError(f"{str(model)[:40]!r} is not a model. Choose one from the list.")
    calibration = calibration_from(text, custom_text, tokens)
    return Recipe(base=model, calibration=calibration, steps=steps, seed=to_integer(seed, "seed"))


def with_text(recipe: Recipe, custom_text: object) -> Recipe:
    """Return a recipe with the visitor's own text, if it was made with one.

    The page keeps recipes without that text: it comes along with each call that needs it.

    Raises:
        RecipeError: The text is missing, or is not the one that the recipe was made with.
    """
    if not any(choice.text == CUSTOM and choice.content is None for choice in recipe.texts):
        return recipe
    if not isinstance(custom_text, str) or not custom_text.strip():
        raise RecipeError(
            "This recipe was made with a text of your own, which is not kept here. Choose Your own text under "
            "Calibration text, paste it again, and repeat."
        )
    return recipe.with_custom_text(custom_text)


def recipe_to_inspect(recipe: Recipe | None, custom_text: object) -> Recipe:
    """Return the recipe of the results, with the visitor's own text.

    Raises:
        RecipeError: There are no results yet, or the text is missing.
    """
    if recipe is None:
        raise RecipeError("There is nothing to inspect yet: press Prune first.")
    return with_text(recipe, custom_text)


def prompt_from(text: object, mode: object) -> Prompt:
    """Return the prompt that the visitor gives both models.

    Raises:
        RecipeError: The prompt is not a text, or the mode does not exist.
    """
    if not isinstance(text, str):
        raise RecipeError("The prompt is empty. Write a few words.")
    if not isinstance(mode, str) or mode not in FIRST_PROMPTS:
        raise RecipeError(f"The mode is {str(mode)[:40]!r}. Choose Chat or Continue.")
    return Prompt(text, chat=None if mode == CHAT else False)


def to_integer(value: object, name: str) -> int:
    """Return a number field's value, which arrives as a float.

    Raises:
        RecipeError: It is not a whole number.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecipeError(f"The {name} is {str(value)[:40]!r}. Enter a whole number.")
    return value


def to_number(value: object, name: str) -> float:
    """Return a number as a float.

    Raises:
        RecipeError: It is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecipeError(f"The {name} is {str(value)[:40]!r}. Enter a number.")
    return float(value)
