"""The tables of settings, from which the shell's options and the page's controls are made."""

import pytest

from pruning import RecipeError
from pruning.architectures.shape import Shape
from pruning.steps import STEPS
from pruning.steps.settings import Choices, Setting, Slider, Switch, share, whole
from tests.helpers.models import loaded

SETTINGS = {
    f"{name} {setting.flag}": (step, setting) for name, step in STEPS.items() for setting in step.settings
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_every_field_is_described_once(step):
    for name, field in step.model_fields.items():
        if name != "step":
            assert field.description, name
            assert not field.description.endswith("."), name
            assert field.description[0].isupper() or field.description[0].isdigit(), name


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_every_step_can_be_asked_for(step):
    assert any(setting.activates_step for setting in step.settings)


@pytest.mark.parametrize(("step", "setting"), SETTINGS.values(), ids=SETTINGS)
def test_a_setting_takes_its_text_from_its_field(step, setting):
    description = step.model_fields[setting.field].description
    assert setting.info == description
    assert setting.help.startswith(f"{description}.")
    assert setting.label
    assert setting.flag.startswith("--")
    default = step.model_fields[setting.field].default
    if isinstance(setting.control, Choices):
        assert default in setting.control.titles
    if isinstance(setting.control, Switch):
        assert default in (True, False, None)
    if isinstance(setting.control, Slider):
        largest = setting.control.largest(Shape.of(loaded("llama").model.config))
        assert (largest > 0) == (step.model_fields["step"].default != "experts"), "a Llama has no experts"


def test_options_are_unambiguous():
    """An option that several steps share means the same for all; a former name is never a present one."""
    fields: dict[str, set[str]] = {}
    for _, setting in SETTINGS.values():
        fields.setdefault(setting.flag, set()).add(setting.field)
    assert {flag: names for flag, names in fields.items() if len(names) > 1} == {}
    former = [flag for _, setting in SETTINGS.values() for flag in setting.old_flags]
    assert len(former) == len(set(former))
    assert not fields.keys() & set(former)
    assert "--width" in former


def test_help_says_what_the_option_takes():
    setting = Setting("size", "--size", "Size", info="The number kept", usage="A number, such as 3")
    assert setting.help == "The number kept. A number, such as 3."
    assert Setting("size", "--size", "Size").help == "Size."


@pytest.mark.parametrize(
    ("text", "value"), [("20%", 0.2), (" 20 % ".replace(" %", "%"), 0.2), ("0.2", 0.2), ("1", 1)]
)
def test_a_share_is_a_percentage_or_a_fraction(text, value):
    assert share("--neurons", text) == value


@pytest.mark.parametrize(
    ("read", "text", "says"),
    [
        (share, "20", "--neurons is '20'; write a share with its sign, such as 20%"),
        (share, "many", "--neurons is 'many'; a share such as 20% is needed"),
        (whole, "2.5", "--neurons is '2.5'; a whole number is needed"),
    ],
)
def test_what_cannot_be_read_is_refused(read, text, says):
    with pytest.raises(RecipeError, match=says):
        read("--neurons", text)
