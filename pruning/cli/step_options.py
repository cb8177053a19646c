"""The options that the steps bring along: from their tables of settings to a command, and back to steps."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from pruning.cli.output import warn_renamed
from pruning.criteria.own import is_file_name, load_criterion
from pruning.errors import RecipeError
from pruning.steps import STEPS, AnyStep
from pruning.steps.settings import Setting, Switch

StepValues = dict[str, str | bool]
"""What was written for each flag of the steps, in the order of the command line."""


def with_steps(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of every step, from the steps' own tables of settings.

    What is written for them is found by `selected_steps` and not passed to the command.
    """
    signature = inspect.signature(command)
    options = [*_step_options()]

    def run(**values: Any) -> None:
        for option in options:
            values.pop(option.name)
        command(**values)

    parameters = [*signature.parameters.values(), *options]
    wrapper: Any = run
    wrapper.__signature__ = signature.replace(parameters=parameters)
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    return run


def _step_options() -> list[inspect.Parameter]:
    """Return one parameter for each flag of the steps, and a hidden one for each flag's old name."""
    settings: dict[str, Setting] = {}
    for step in STEPS.values():
        for setting in step.settings:
            settings.setdefault(setting.flag, setting)
    return [
        _option(setting, flag) for setting in settings.values() for flag in (setting.flag, *setting.old_flags)
    ]


def _option(setting: Setting, flag: str) -> inspect.Parameter:
    """Return the parameter of one flag; under an old name it is hidden and warns."""
    switch = isinstance(setting.control, Switch)
    option = typer.Option(
        f"{flag}/--no-{flag.removeprefix('--')}" if switch else flag,
        help=setting.help,
        callback=_remember(setting.flag, flag),
        hidden=flag != setting.flag,
    )
    return inspect.Parameter(
        flag.removeprefix("--").replace("-", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[bool | None if switch else str | None, option],
    )


def _remember(flag: str, written: str) -> Callable:
    """Return a callback that keeps the order of the options: it is the order of the recipe's steps."""

    def remember(context: typer.Context, value: str | bool | None) -> str | bool | None:
        if value is not None:
            if written != flag:
                warn_renamed(written, flag)
            values = step_values(context)
            if flag in values:
                raise RecipeError(f"{flag} is given twice, once under its old name. Remove one.")
            values[flag] = value
        return value

    return remember


def step_values(context: typer.Context) -> StepValues:
    """Return what was written for the options of the steps."""
    return context.meta.setdefault("steps", {})


def load_own_criterion(context: typer.Context) -> None:
    """Read the user's own criterion that `--criterion` names, for a recipe that was made with it.

    Raises:
        RecipeError: It is not a file's, or cannot be read.
    """
    if (written := step_values(context).get("--criterion")) is None:
        return
    if not is_file_name(str(written)):
        raise RecipeError(
            "A recipe says which criterion it uses. Give --criterion only for the file of your own."
        )
    load_criterion(str(written))


def selected_steps(context: typer.Context, model: str) -> tuple[AnyStep, ...]:
    """Return the steps that the options ask for, in the order in which they were written.

    Args:
        context: The context of a command that `with_steps` decorates.
        model: The base, which some steps look at for what the options leave open.

    Raises:
        RecipeError: If no step is asked for, or an option contradicts another or belongs to no step.
    """
    given = step_values(context)
    fields: dict[str, dict[str, object]] = {}
    for flag, written in given.items():
        for name, step in STEPS.items():
            for setting in step.settings:
                if setting.flag == flag and setting.activates_step:
                    fields.setdefault(name, {}).update(_fields(setting, written))
    if not fields:
        raise RecipeError("Nothing to prune: choose what to remove, for example --neurons 20%.")
    used = set()
    for name, values in fields.items():
        for setting in STEPS[name].settings:
            if setting.flag not in given:
                continue
            used.add(setting.flag)
            if not setting.activates_step:
                more = _fields(setting, given[setting.flag])
                if values.keys() & more.keys():
                    raise RecipeError(f"{setting.flag} repeats what another option sets. Remove one.")
                values.update(more)
    # Switching off what is not asked for does no harm.
    idle = [flag for flag, value in given.items() if flag not in used and value is not False]
    if idle:
        raise RecipeError(f"{idle[0]} belongs to a step that is not selected. Remove it, or add the step.")
    return tuple(STEPS[name].for_model(model, **values) for name, values in fields.items())


def _fields(setting: Setting, written: str | bool) -> dict[str, object]:
    """Return the values of fields that one option sets."""
    value = setting.read(setting.flag, str(written)) if setting.read else written
    if setting.field == "criterion" and is_file_name(str(value)):
        value = load_criterion(str(value)).key
    return dict(value) if isinstance(value, Mapping) else {setting.field: value}
