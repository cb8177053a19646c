"""The column of choices: what to cut, made from the steps' own settings, and the picture that follows it."""

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from page.html import render, results
from page.sections.form import CONTROLS, MAIN, MAX_OWN_TEXT, ON_PAGE, Control, steps_from, values_of
from page.server.session import told, visitor_of, workbench
from pruning import Recipe, catalog
from pruning.architectures.shape import Shape
from pruning.criteria import CRITERIA, criterion_named
from pruning.criteria import DEFAULT_CRITERION as DEFAULT_CRITERION
from pruning.steps import STEPS
from pruning.steps.base import Step
from pruning.steps.settings import Choices
from pruning.text.passages import CALIBRATION_NAMES, CUSTOM

FIRST_PROMPT = "Paris is the capital of"


@dataclass(frozen=True)
class Column:
    """The components of the column. `values` stand in the order of `CONTROLS`."""

    model: gr.Dropdown
    values: tuple[gr.components.Component, ...]
    groups: dict[str, gr.Column]
    note: gr.HTML
    text: gr.Dropdown
    own_text: gr.Textbox
    tokens: gr.Number
    seed: gr.Number
    prompt: gr.Textbox
    length: gr.Slider
    temperature: gr.Slider
    given: gr.State
    given_note: gr.HTML

    @property
    def chosen(self) -> list:
        """The inputs of `recipe_from`."""
        return [self.given, self.model, self.text, self.own_text, self.tokens, self.seed, *self.values]

    @property
    def opened(self) -> list:
        """What opening a recipe sets, in the order of `opening`."""
        return [self.model, self.text, self.tokens, self.seed, self.given, self.given_note, *self.values]


def build() -> Column:
    """Lay the column out, in the column of the page that is open."""
    given = gr.State(None)
    model = gr.Dropdown(
        _models(),
        value=catalog.DEFAULT_MODEL,
        label="Model",
        info="Or the id of any model on the Hub, such as owner/name",
        allow_custom_value=True,
        elem_id="model",
    )
    made: dict[str, gr.components.Component] = {}
    groups: dict[str, gr.Column] = {}
    _sliders(MAIN, made)
    note = gr.HTML(elem_id="cut-note", min_height=24)
    given_note = gr.HTML(elem_id="given")
    with gr.Accordion("Cut other parts too", open=False, elem_id="other-parts"):
        for name in ON_PAGE[1:]:
            step = STEPS[name]
            gr.HTML(f'<div class="part-head"><h3>{step.title}</h3><p>{step.hint}</p></div>')
            _sliders(name, made)
            with gr.Column(visible=False, elem_classes="how") as groups[name]:
                _others(name, made)
    with gr.Accordion("How to choose what goes", open=False, elem_id="how-to-choose"):
        criterion_text = gr.HTML(render.criterion_note(CRITERIA[DEFAULT_CRITERION]))
        _others(MAIN, made)
        text = gr.Dropdown(
            [(title, name) for name, title in CALIBRATION_NAMES.items()],
            value="general",
            label="Calibration text",
            info="What the model reads to show which parts it uses: choose what you use it for",
            elem_id="calibration",
        )
        own_text = gr.Textbox(
            label="Your text",
            lines=6,
            max_lines=12,
            visible=False,
            max_length=MAX_OWN_TEXT,
            placeholder="At least about 250 words. It is not kept after your visit.",
        )
        tokens = gr.Number(
            8192,
            label="Calibration tokens",
            info="More of a long text keeps more of the model, and takes longer to read",
            precision=0,
            minimum=256,
            min_width=140,
            elem_id="tokens",
        )
    prompt = gr.Textbox(
        FIRST_PROMPT, label="Prompt", info="The model continues it", lines=2, elem_id="prompt"
    )
    with gr.Accordion("How to write", open=False):
        length = gr.Slider(5, 200, value=40, step=1, label="New tokens")
        temperature = gr.Slider(
            0,
            1.5,
            value=0,
            step=0.1,
            label="Temperature",
            info="0 takes the likeliest token each time; more is more varied",
        )
        seed = gr.Number(0, label="Seed", precision=0, info="Both texts are drawn from it")
    criterion = made[f"{MAIN}-criterion"]
    repair = made[f"{MAIN}-repair"]
    criterion.input(
        describe_criterion,
        criterion,
        [criterion_text, repair],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    text.input(ask_for_text, text, own_text, queue=False, show_progress="hidden", api_visibility="private")
    values = tuple(made[control.key] for control in CONTROLS)
    return Column(
        model,
        values,
        groups,
        note,
        text,
        own_text,
        tokens,
        seed,
        prompt,
        length,
        temperature,
        given,
        given_note,
    )


def wire(column: Column, picture: gr.HTML) -> None:
    """The picture and the count move with the controls."""
    gr.on(
        [column.model.input, *(value.input for value in column.values)],
        show_shape,
        [column.model, *column.values],
        [picture, column.note, column.given, column.given_note],
        queue=False,
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )
    others = [value for control, value in zip(CONTROLS, column.values, strict=True) if control.step != MAIN]
    gr.on(
        [value.input for value in others],
        unfold,
        list(column.values),
        list(column.groups.values()),
        queue=False,
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )
    column.model.input(
        fit_sliders,
        column.model,
        [value for control, value in zip(CONTROLS, column.values, strict=True) if control.slides],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def show_shape(request: gr.Request, token: gr.OAuthToken | None, model, *values) -> tuple:
    """The picture and the count, which move with the sliders: from the config alone."""
    try:
        before, source = workbench.look(model, visitor_of(request, token))
        after, also = shaped(before, steps_from(values))
        return (
            render.picture(before, after, results.origin(source)),
            render.cut_note(before, after, also),
            None,
            "",
        )
    except Exception as error:
        return gr.skip(), render.message(told(error), "warning"), None, ""


def shaped(before: Shape, steps: Sequence[Step]) -> tuple[Shape, list[str]]:
    """The shape after steps, and what they do that it does not show."""
    after, also = before, []
    for step in steps:
        shape = step.reshape(after)
        if shape == after:
            also.append(step.describe())
        after = shape
    return after, also


def unfold(*values) -> list[gr.Column]:
    """Show how a part is chosen once something of it is cut."""
    cut = {
        control.step
        for control, value in zip(CONTROLS, values, strict=True)
        if control.setting.activates_step and value
    }
    return [gr.Column(visible=name in cut) for name in ON_PAGE[1:]]


def fit_sliders(model, request: gr.Request, token: gr.OAuthToken | None) -> list:
    """How much of a model can go: the ends of the sliders."""
    sliders = [control for control in CONTROLS if control.slides]
    try:
        shape, _ = workbench.look(model, visitor_of(request, token))
    except Exception:
        return [gr.skip()] * len(sliders)
    return [_fitted(control, shape) for control in sliders]


def _fitted(control: Control, shape: Shape) -> gr.Slider:
    largest = control.setting.control.largest(shape)
    return gr.Slider(maximum=max(largest, 1), interactive=largest > 0)


def opening(recipe: Recipe, before: Shape) -> tuple[list, str]:
    """The values of `Column.opened` that stand for a recipe, and the note on its cuts."""
    values = values_of(recipe)
    after, also = shaped(before, recipe.steps)
    common = [recipe.base, recipe.calibration.text, recipe.calibration.tokens, recipe.seed]
    if values is None:
        note = render.given_note([step.describe() for step in recipe.steps])
        return [*common, recipe, note, *[gr.skip()] * len(CONTROLS)], ""
    return [*common, None, "", *values], render.cut_note(before, after, also)


def describe_criterion(name: str) -> tuple[str, gr.Checkbox]:
    """The formula of a criterion; repair goes with those that calibrate."""
    try:
        criterion = criterion_named(name)
    except Exception as error:
        return render.message(told(error), "warning"), gr.skip()
    repair = gr.Checkbox(value=criterion.needs_calibration, interactive=not criterion.gated_only)
    return render.criterion_note(criterion), repair


def ask_for_text(name: str) -> gr.Textbox:
    return gr.Textbox(visible=name == CUSTOM)


def _models() -> list[tuple[str, str]]:
    return [
        (f"{entry.title}, {render.count(entry.parameters)}{', gated' if entry.gated else ''}", entry.name)
        for entry in catalog.MODELS.values()
    ]


def _sliders(step: str, made: dict) -> None:
    for control in CONTROLS:
        if control.step == step and control.slides:
            # How far a slider goes depends on the model: see `fit_sliders`.
            made[control.key] = gr.Slider(
                0,
                90 if control.setting.control.percent else 1,
                value=control.start,
                step=1,
                label=control.setting.label,
                info=control.setting.info,
                elem_id=control.key,
            )


def _others(step: str, made: dict) -> None:
    for control in CONTROLS:
        if control.step != step or control.slides:
            continue
        setting = control.setting
        common = {"label": setting.label, "info": setting.info, "elem_id": control.key}
        if isinstance(setting.control, Choices):
            titles = [(title, value) for value, title in setting.control.titles.items()]
            made[control.key] = gr.Dropdown(titles, value=control.start, **common)
        else:
            made[control.key] = gr.Checkbox(value=control.start, **common)
