"""The left column: the model, what to cut and how, and the picture of the model that follows the controls."""

from dataclasses import dataclass

import gradio as gr
from gradio.components import Component

from page.html import render
from page.sections import prompt
from page.sections.events import Part, on_event
from page.sections.picture import draw_steps, note_of, removed_by_name
from page.sections.prompt import PromptPart, SamplingPart, build_sampling, mode_for
from page.server.form import (
    CONTROLS,
    MAIN,
    MAX_CUSTOM_TEXT,
    ON_PAGE,
    Control,
    Opened,
    PressedLayers,
    requested_steps,
    values_of,
)
from page.server.look_ups import look_up
from page.server.session import audience, session_of, user_message, visitor_of
from pruning import Recipe, catalog
from pruning.architectures.shape import Shape
from pruning.criteria import CRITERIA, DEFAULT_CRITERION, criterion_named
from pruning.errors import RecipeError
from pruning.steps import STEPS
from pruning.steps.settings import Choices
from pruning.text.choice import DEFAULT_CALIBRATION
from pruning.text.passages import CALIBRATION_NAMES, CUSTOM

ControlComponent = gr.Slider | gr.Dropdown | gr.Checkbox


@dataclass(frozen=True)
class CalibrationPart:
    """The choice of the calibration text."""

    text: gr.Dropdown
    custom_text: gr.Textbox
    tokens: gr.Number


@dataclass(frozen=True)
class ControlPanel:
    """The components of the left column.

    Attributes:
        model: The base.
        values: One component for each of `CONTROLS`, in their order.
        groups: For each step below the first, the components that say how to cut, shown when it cuts.
        note: What will be cut, in words.
        criterion_note: The formula of the chosen criterion.
        calibration: The choice of the calibration text.
        sampling: The prompt and how to continue it.
        recipe: A recipe that was opened and that holds more than the controls can say; else None.
        recipe_note: The steps of that recipe.
    """

    model: gr.Dropdown
    values: tuple[ControlComponent, ...]
    groups: dict[str, gr.Column]
    note: gr.HTML
    criterion_note: gr.HTML
    calibration: CalibrationPart
    sampling: SamplingPart
    recipe: gr.State
    recipe_note: gr.HTML

    @property
    def calibration_inputs(self) -> list[Component]:
        """What calibrates a base: the model, the text and the seed."""
        part = self.calibration
        return [self.model, part.text, part.custom_text, part.tokens, self.sampling.seed]

    @property
    def recipe_inputs(self) -> list[Component]:
        """The arguments of `recipe_from`."""
        return [self.recipe, *self.calibration_inputs, *self.values]

    @property
    def sampling_inputs(self) -> list[Component]:
        """The arguments of `prompt_from`, and then those of `sampling_from` without the seed."""
        part = self.sampling
        return [part.prompt, part.mode, part.length, part.temperature]

    @property
    def recipe_outputs(self) -> list[Part]:
        """What `show_recipe` sets."""
        part = self.calibration
        return [
            self.model,
            part.text,
            part.tokens,
            self.sampling.seed,
            self.recipe,
            self.recipe_note,
            self.note,
            *self.sampling.mode_outputs,
            *self.values,
        ]

    @property
    def sliders(self) -> list[tuple[Control, ControlComponent]]:
        """The controls that say how much to cut, with their components."""
        return [
            (control, value)
            for control, value in zip(CONTROLS, self.values, strict=True)
            if control.slider is not None
        ]

    def value_of(self, key: str) -> ControlComponent:
        """Return the component of a control, such as `neurons-fraction`."""
        return next(value for control, value in zip(CONTROLS, self.values, strict=True) if control.key == key)


@dataclass(frozen=True)
class FirstControls:
    """What a visitor needs for a first result: the model, how much to cut, and the prompt."""

    model: gr.Dropdown
    sliders: dict[str, ControlComponent]
    note: gr.HTML
    recipe_note: gr.HTML
    prompt: PromptPart


def build_first() -> FirstControls:
    """Lay out what stands above Prune, in the column of the page that is open."""
    model = gr.Dropdown(
        _models(),
        value=catalog.DEFAULT_MODEL,
        label="Model",
        info="Or the id or address of any model on the Hub",
        allow_custom_value=True,
        elem_id="model",
    )
    sliders = _build_sliders(MAIN)
    note = gr.HTML(elem_id="cut-note", min_height=24)
    recipe_note = gr.HTML(elem_id="opened-recipe")
    return FirstControls(model, sliders, note, recipe_note, prompt.build_prompt())


def build(first: FirstControls) -> ControlPanel:
    """Lay out what stands below Prune, folded up."""
    components = dict(first.sliders)
    groups: dict[str, gr.Column] = {}
    with gr.Accordion("Cut other parts too", open=False, elem_id="other-parts"):
        for name in ON_PAGE[1:]:
            step = STEPS[name]
            gr.HTML(f'<div class="part-head"><h2>{step.title}</h2><p>{step.hint}</p></div>')
            components |= _build_sliders(name)
            with gr.Column(visible=False, elem_classes="how") as groups[name]:
                components |= _build_choices(name)
    with gr.Accordion("How to choose what to cut", open=False, elem_id="how-to-choose"):
        criterion_note = gr.HTML(render.criterion_note(CRITERIA[DEFAULT_CRITERION]))
        components |= _build_choices(MAIN)
        calibration = _build_calibration()
    return ControlPanel(
        model=first.model,
        values=tuple(components[control.key] for control in CONTROLS),
        groups=groups,
        note=first.note,
        criterion_note=criterion_note,
        calibration=calibration,
        sampling=build_sampling(first.prompt),
        recipe=gr.State(None),
        recipe_note=first.recipe_note,
    )


def _build_calibration() -> CalibrationPart:
    text = gr.Dropdown(
        [(title, name) for name, title in CALIBRATION_NAMES.items()],
        value=DEFAULT_CALIBRATION.text,
        label="Calibration text",
        info="The model reads this so we can see which parts it uses. Pick text like yours.",
        elem_id="calibration",
    )
    custom_text = gr.Textbox(
        label="Your text",
        lines=6,
        max_lines=12,
        visible=False,
        max_length=MAX_CUSTOM_TEXT,
        placeholder="At least about 250 words. It is deleted after your visit.",
    )
    tokens = gr.Number(
        DEFAULT_CALIBRATION.tokens,
        label="Calibration tokens",
        info="More tokens give a better cut and take longer",
        precision=0,
        minimum=256,
        min_width=140,
        elem_id="tokens",
    )
    return CalibrationPart(text, custom_text, tokens)


def _models() -> list[tuple[str, str | int | float]]:
    return [
        (
            f"{model.title}, {render.format_count(model.parameters)}{', gated' if model.gated else ''}",
            model.name,
        )
        for model in catalog.MODELS.values()
    ]


def _build_sliders(step: str) -> dict[str, ControlComponent]:
    return {
        # How far a slider goes depends on the model: see `fit_sliders`.
        control.key: gr.Slider(
            0,
            90 if control.slider.percent else 1,
            value=control.start if isinstance(control.start, int) else 0,
            step=1,
            label=control.setting.label,
            info=control.setting.info,
            elem_id=control.key,
        )
        for control in CONTROLS
        if control.step == step and control.slider is not None
    }


def _build_choices(step: str) -> dict[str, ControlComponent]:
    return {
        control.key: _build_choice(control)
        for control in CONTROLS
        if control.step == step and control.slider is None
    }


def _build_choice(control: Control) -> ControlComponent:
    setting = control.setting
    if not isinstance(setting.control, Choices):
        return gr.Checkbox(
            value=bool(control.start), label=setting.label, info=setting.info, elem_id=control.key
        )
    titles = [
        (title, value)
        for field, title in setting.control.titles.items()
        if isinstance(value := control.from_field(field), str | int | float)
    ]
    return gr.Dropdown(
        titles,
        value=control.start if isinstance(control.start, str | int | float) else None,
        label=setting.label,
        info=setting.info,
        elem_id=control.key,
    )


def wire(panel: ControlPanel, picture: gr.HTML) -> None:
    """Connect the controls to each other and to the picture of the model."""
    on_event(
        [panel.model.input, *(value.input for value in panel.values)],
        show_shape,
        [panel.recipe, panel.model, *panel.values],
        [picture, panel.note, panel.recipe, panel.recipe_note],
        trigger_mode="always_last",
    )
    others = [value for control, value in zip(CONTROLS, panel.values, strict=True) if control.step != MAIN]
    on_event(
        [value.input for value in others],
        show_choices,
        panel.values,
        list(panel.groups.values()),
        trigger_mode="always_last",
    )
    on_event([panel.model.input], fit_sliders, [panel.model], [value for _, value in panel.sliders])
    prompt.wire(panel.sampling, panel.model)
    criterion, repair = panel.value_of(f"{MAIN}-criterion"), panel.value_of(f"{MAIN}-repair")
    on_event([criterion.input], describe_criterion, [criterion], [panel.criterion_note, repair])
    on_event(
        [panel.calibration.text.input],
        ask_for_text,
        [panel.calibration.text],
        [panel.calibration.custom_text],
    )


def show_shape(
    request: gr.Request, token: gr.OAuthToken | None, opened: Opened, model: str, *values: object
) -> tuple[object, object, Opened, str]:
    """Show what the controls lead to, and note that the visitor has moved one of them."""
    audience.note_move(session_of(request))
    return picture_and_note(request, token, opened, model, *values)


def picture_and_note(
    request: gr.Request, token: gr.OAuthToken | None, opened: Opened, model: str, *values: object
) -> tuple[object, object, Opened, str]:
    """Return the picture and the note, from the config alone.

    A recipe that was opened is discarded. Layers that were pressed remain, unless the controls or another model
    take their place.
    """
    try:
        found = look_up(model, visitor_of(request, token))
        pressed = opened if isinstance(opened, PressedLayers) else None
        steps = requested_steps(pressed, model, values)
        if pressed is None or pressed.layers != removed_by_name(steps):
            pressed = None
        told = "" if pressed is None else render.pressed_layers_note(pressed.layers)
        return draw_steps(found, steps), note_of(found.shape, steps), pressed, told
    except Exception as error:
        return gr.skip(), render.message(user_message(error), "warning"), None, ""


def show_choices(*values: object) -> list[gr.Column]:
    """Show how the units of a part are chosen as soon as some of it is cut."""
    active = {
        control.step
        for control, value in zip(CONTROLS, values, strict=True)
        if control.setting.activates_step and value
    }
    return [gr.Column(visible=name in active) for name in ON_PAGE[1:]]


def fit_sliders(model: str, request: gr.Request, token: gr.OAuthToken | None) -> list[object]:
    """Set the ends of the sliders to how much of a model can be cut."""
    sliders = [control for control in CONTROLS if control.slider is not None]
    try:
        shape = look_up(model, visitor_of(request, token)).shape
    except Exception:
        return [gr.skip()] * len(sliders)
    return [_fit(control, shape) for control in sliders]


def _fit(control: Control, shape: Shape) -> gr.Slider:
    largest = control.slider.largest(shape) if control.slider is not None else 0
    return gr.Slider(maximum=max(largest, 1), interactive=largest > 0)


def show_recipe(panel: ControlPanel, recipe: Recipe, before: Shape, asked: object) -> dict[Part, object]:
    """Return the controls for a recipe.

    If it holds more than they can say, they remain, and Prune follows the recipe until one of them moves.

    Args:
        panel: The controls.
        recipe: The recipe.
        before: The shape of its base.
        asked: What stands in the box for the prompt.
    """
    updates: dict[Part, object] = {
        **panel.sampling.show_mode(*mode_for(recipe.base), asked),
        panel.model: recipe.base,
        panel.calibration.text: recipe.calibration.text,
        panel.calibration.tokens: recipe.calibration.tokens,
        panel.sampling.seed: recipe.seed,
    }
    values = values_of(recipe)
    if values is None:
        return updates | follow_recipe(panel, recipe)
    return (
        updates
        | {panel.recipe: None, panel.recipe_note: "", panel.note: note_of(before, recipe.steps)}
        | dict(zip(panel.values, values, strict=True))
    )


def follow_recipe(panel: ControlPanel, recipe: Recipe) -> dict[Part, object]:
    """Return the updates after which Prune follows a recipe instead of the controls."""
    steps = [step.describe() for step in recipe.steps]
    return {
        panel.recipe: recipe.without_custom_text(),
        panel.recipe_note: render.recipe_note(steps),
        panel.note: "",
    }


def describe_criterion(name: object) -> tuple[str, object]:
    """Return the formula of a criterion. Repair is on by default for those that calibrate."""
    try:
        criterion = criterion_named(str(name))
    except RecipeError as error:
        return render.message(str(error), "warning"), gr.skip()
    repair = gr.Checkbox(value=criterion.needs_calibration, interactive=not criterion.gated_only)
    return render.criterion_note(criterion), repair


def ask_for_text(name: str) -> gr.Textbox:
    """Show the box for the visitor's own text if it is chosen."""
    return gr.Textbox(visible=name == CUSTOM)
