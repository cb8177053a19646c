"""What a visitor chose, validated on the server (sliders are not limits), and a recipe as choices."""

from collections.abc import Sequence
from dataclasses import dataclass

from pruning import Calibration, Recipe
from pruning.errors import RecipeError
from pruning.steps import STEPS
from pruning.steps.base import Step
from pruning.steps.settings import Setting, Slider, Switch
from pruning.text.passages import CUSTOM

MAX_OWN_TEXT = 200_000
MAIN = "neurons"
APART = ("distillation",)
"""Steps that have a place of their own on the page."""


@dataclass(frozen=True)
class Control:
    """One control of the page: a setting of a step."""

    step: str
    setting: Setting

    @property
    def key(self) -> str:
        return f"{self.step}-{self.setting.field}"

    @property
    def slides(self) -> bool:
        return isinstance(self.setting.control, Slider)

    @property
    def start(self) -> object:
        """The value that the page opens with."""
        if self.slides:
            return 20 if self.step == MAIN else 0
        default = STEPS[self.step].model_fields[self.setting.field].default
        return True if isinstance(self.setting.control, Switch) and default is None else default

    def field(self, value: object) -> object:
        """The value of the step's field; raises `RecipeError` for what no control sends."""
        control, label = self.setting.control, self.setting.label
        if isinstance(control, Slider):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
                raise RecipeError(f"{label} is {str(value)[:40]!r}; a number from 0 on is needed.")
            if control.percent:
                if value > 99:
                    raise RecipeError(f"{label} is {value}; at most 99 can go.")
                return value / 100
            return whole(value, label)
        if isinstance(control, Switch):
            return bool(value)
        if value not in control.titles:
            raise RecipeError(
                f"{label} is {str(value)[:40]!r}; choose one of {', '.join(map(str, control.titles))}."
            )
        return value

    def shown(self, value: object) -> object:
        """The control's value for a field's."""
        slider = self.setting.control
        return round(100 * value, 6) if isinstance(slider, Slider) and slider.percent else value


ON_PAGE = (MAIN, *(name for name in STEPS if name != MAIN and name not in APART))
CONTROLS = tuple(
    Control(name, setting) for name in ON_PAGE for setting in STEPS[name].settings if setting.control
)


def steps_from(values: Sequence[object]) -> list[Step]:
    """The steps that the controls ask for, in the order of `STEPS`; values in the order of `CONTROLS`."""
    chosen: dict[str, dict[str, object]] = {}
    asked = set()
    for control, value in zip(CONTROLS, values, strict=True):
        field = control.field(value)
        if control.slides and not field:
            continue
        if control.setting.activates_step:
            asked.add(control.step)
        chosen.setdefault(control.step, {})[control.setting.field] = field
    return [STEPS[name](**chosen[name]) for name in STEPS if name in asked]


def values_of(recipe: Recipe) -> list[object] | None:
    """The values of the controls that ask for a recipe's steps; None where it says more than they can."""
    steps = {step.step: step for step in recipe.steps}
    values = []
    for control in CONTROLS:
        value = 0 if control.slides else control.start
        if control.step in steps:
            value = control.shown(getattr(steps[control.step], control.setting.field))
        values.append(0 if value is None and control.slides else value)
    try:
        return values if tuple(steps_from(values)) == recipe.steps else None
    except RecipeError:
        return None


def calibration_from(text, own_text, tokens) -> Calibration:
    """The calibration text that was chosen."""
    if text != CUSTOM:
        return Calibration(text=text, tokens=whole(tokens, "number of calibration tokens"))
    if not isinstance(own_text, str) or not own_text.strip():
        raise RecipeError("Paste the text to calibrate on, or choose a bundled one.")
    if len(own_text) > MAX_OWN_TEXT:
        raise RecipeError(
            f"Your text has {len(own_text):,} characters; at most {MAX_OWN_TEXT:,} are read here."
        )
    return Calibration.own(own_text, tokens=whole(tokens, "number of calibration tokens"))


def recipe_from(given: Recipe | None, model, text, own_text, tokens, seed, *values) -> Recipe:
    """The recipe that was given as a whole, or else what the controls say."""
    if given is not None:
        missing = any(choice.text == CUSTOM and choice.content is None for choice in given.texts)
        if missing and isinstance(own_text, str) and own_text.strip():
            return given.with_own_text(own_text)
        return given
    steps = steps_from(values)
    if not steps:
        raise RecipeError("Nothing is cut yet: move the slider, then press Prune.")
    calibration = calibration_from(text, own_text, tokens)
    return Recipe(base=model, calibration=calibration, steps=steps, seed=whole(seed, "seed"))


def whole(value: float, name: str) -> int:
    """A number field's value, which arrives as a float."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecipeError(f"The {name} is {str(value)[:40]!r}; a whole number is needed.")
    return value
