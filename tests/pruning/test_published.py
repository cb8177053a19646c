"""What release 0.1.0 published still holds: its recipes, their digests, their Python, and their weights."""

import hashlib
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
import yaml

import pruning
from pruning import Calibration, Channels, Heads, Neurons, Recipe, RecipeError, TextChoice, Vocabulary
from pruning.criteria import CRITERIA, criterion_named
from pruning.recipe import located
from pruning.schema import Frozen
from pruning.steps import STEPS

OLD = Path(__file__).parents[1] / "data" / "published_0_1_0"
DIGESTS = json.loads((OLD / "recipes" / "digests.json").read_text(encoding="utf-8"))
MODELS = json.loads((OLD / "weights.json").read_text(encoding="utf-8"))["models"]

NEVER_RAN = {"distillation-dataset.yaml"}
"""Recipes whose Python did not run in release 0.1.0 either."""

RENAMED = {
    Neurons: {"width": 20},
    Channels: {"width": 24},
    Vocabulary: {"size": 300},
}
"""A step for each class with renamed keys, as release 0.1.0 wrote it."""


def old(name: str) -> str:
    return (OLD / "recipes" / name).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_every_recipe_of_the_folder_has_a_digest():
    files = {path.name for path in (OLD / "recipes").iterdir()} - {"digests.json"}
    assert files == set(DIGESTS)
    assert len(files) > 40


@pytest.mark.parametrize("name", DIGESTS)
def test_digest_is_the_published_one(name, capfd):
    recipe = Recipe.parse(old(name))
    assert recipe.digest == DIGESTS[name]["digest"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", DIGESTS)
def test_digest_remains_once_it_is_written_with_the_new_names(name, tmp_path):
    recipe = Recipe.parse(old(name))
    for file in (tmp_path / "recipe.yaml", tmp_path / "recipe.json"):
        again = Recipe.load(recipe.save(file))
        assert again == recipe
        assert again.digest == DIGESTS[name]["digest"]


@pytest.mark.parametrize("name", [name for name in DIGESTS if not name.startswith("short-")])
def test_canonical_form_is_the_published_recipe(name):
    """Release 0.1.0 wrote every value that is set, except in the recipes that a person wrote in short."""
    text = old(name)
    written = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    assert _without_none(Recipe.parse(text).canonical()) == written


def _without_none(values):
    if isinstance(values, dict):
        return {key: _without_none(value) for key, value in values.items() if value is not None}
    return [_without_none(value) for value in values] if isinstance(values, list) else values


@pytest.mark.parametrize("name", [name for name in DIGESTS if name not in NEVER_RAN])
def test_published_python_makes_the_same_recipe(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my-text.txt").write_bytes((OLD / "own.txt").read_bytes())
    warnings.simplefilter("ignore", ResourceWarning)  # The Python leaves the file to be closed by itself.
    for python in (DIGESTS[name]["python"], Recipe.parse(old(name)).to_python()):
        names = {}
        exec(python[: python.index("pruned =")], names)
        assert names["recipe"].digest == DIGESTS[name]["digest"]


def sha256_of(model) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        for part in (name, str(tensor.dtype), str(tuple(tensor.shape))):
            total.update(f"{part}\n".encode())
        total.update(tensor.float().numpy().tobytes())
    return total.hexdigest()


def norm_of(model) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in model.state_dict().values()))


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_the_published_ones(name, one_thread, monkeypatch):
    monkeypatch.chdir(OLD / "bases")
    recipe, published = Recipe.parse(old(name)), MODELS[name]
    if published["own_text"]:
        recipe = recipe.with_own_text((OLD / published["own_text"]).read_text(encoding="utf-8"))
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # Those of other libraries, while a model is loaded.
        model = pruning.run(recipe, evaluate=False).model
    if published["on_any_instruction_set"] or sha256_of(model) == published["sha256"]:
        assert sha256_of(model) == published["sha256"]
    else:
        assert norm_of(model) == pytest.approx(published["norm"], rel=1e-6)


@pytest.mark.parametrize("step", RENAMED, ids=lambda step: step.__name__)
def test_published_keys_are_read_everywhere(step):
    values = RENAMED[step]
    ((old_name, number),) = values.items()
    (new_name,) = [new for new, published in step.published_names.items() if published == old_name]
    made = step(**values)
    assert made == step(**{new_name: number})
    assert getattr(made, new_name) == number
    name = step.model_fields["step"].default
    for text in (
        json.dumps({"base": "gpt2", "steps": [{"step": name} | values]}),
        f"base: gpt2\nsteps:\n- step: {name}\n  {old_name}: {number}\n",
    ):
        recipe = Recipe.parse(text)
        assert recipe.steps == (made,)
        assert f"  {new_name}: {number}\n" in recipe.to_yaml()
        assert f"  {old_name}:" not in recipe.to_yaml()
        assert f"{new_name}={number}" in recipe.to_python()


@pytest.mark.parametrize("step", RENAMED, ids=lambda step: step.__name__)
def test_errors_name_the_key_and_the_line_that_the_user_wrote(step):
    ((old_name, _),) = RENAMED[step].items()
    name = step.model_fields["step"].default
    new_name = next(new for new, published in step.published_names.items() if published == old_name)
    for value, key in (("0", old_name), ("many", old_name), ("0", new_name)):
        text = f"base: gpt2\nseed: 3\nsteps:\n- step: {name}\n  multiple_of: 1\n  {key}: {value}\n"
        with pytest.raises(RecipeError, match=rf"^Line 6: steps\.0\.{key}: enter ") as error:
            Recipe.parse(text)
        assert error.value.place == ("steps", 0, name, key)
    with pytest.raises(RecipeError, match=f"^{old_name}: enter "):
        step(**{old_name: 0})


@pytest.mark.parametrize("step", RENAMED, ids=lambda step: step.__name__)
def test_a_key_under_both_names_is_refused(step):
    ((old_name, number),) = RENAMED[step].items()
    name = step.model_fields["step"].default
    new_name = next(new for new, published in step.published_names.items() if published == old_name)
    refusal = f"{old_name}: this is the former name of {new_name}, which is given too; remove one of the two"
    with pytest.raises(RecipeError, match=f"^{refusal}"):
        step(**{old_name: number, new_name: number})
    text = f"base: gpt2\nsteps:\n- step: {name}\n  {new_name}: {number}\n  {old_name}: {number}\n"
    with pytest.raises(RecipeError, match=rf"^Line 5: steps\.0\.{refusal}"):
        Recipe.parse(text)


@pytest.mark.parametrize(
    ("published", "name"), [("ppm", "peak_to_peak"), ("independent", "gate_up_unpaired")]
)
def test_published_criteria_are_read_everywhere(published, name):
    assert criterion_named(published) is CRITERIA[name]
    assert Neurons(fraction=0.2, criterion=published) == Neurons(fraction=0.2, criterion=name)
    assert Neurons(fraction=0.2, criterion=published).criterion == name
    recipe = Recipe.parse(
        f"base: gpt2\nsteps: [{{step: neurons, fraction: 0.2, repair: true, criterion: {published}}}]"
    )
    assert recipe.steps[0].criterion == name
    assert recipe.canonical()["steps"][0]["criterion"] == published


def test_published_texts_are_read_everywhere():
    assert TextChoice(text="self") == TextChoice(text="self_generated") == TextChoice.named("self")
    assert TextChoice.named("self").text == "self_generated"
    content = "A text of my own."
    choice = Calibration.own(content, tokens=512)
    assert choice == Calibration.custom(content, tokens=512)
    assert choice == Calibration(text="own", content=content, tokens=512)
    assert choice.text == "custom"
    assert choice.canonical() == {"text": "own", "sha256": choice.sha256, "tokens": 512, "window": 512}
    nested = Vocabulary(vocab_size=300, text={"text": "own", "sha256": choice.sha256})
    assert nested.text == TextChoice(text="custom", sha256=choice.sha256)
    recipe = Recipe(base="gpt2", calibration=choice, steps=[nested])
    read = Recipe.parse(recipe.to_yaml())
    assert read.with_own_text(content) == read.with_custom_text(content)
    assert read.with_custom_text(content).calibration.content == content
    assert read.digest == recipe.digest


def test_what_a_later_release_added_changes_no_digest_unless_it_is_used():
    assert "num_key_value_heads" not in Heads(groups=1).canonical()
    assert Heads(num_key_value_heads=1).canonical()["num_key_value_heads"] == 1
    recipe = Recipe(base="gpt2", steps=[Heads(groups=1)])
    kept = recipe.model_copy(update={"kept_layers": (0, 2)})
    assert kept.digest == recipe.digest
    assert kept.canonical() == recipe.canonical()


def test_declared_names_belong_to_fields():
    """So that a misspelled declaration cannot pass unseen."""
    classes = [Recipe, Calibration, TextChoice, *STEPS.values()]
    assert all(issubclass(cls, Frozen) for cls in classes)
    for cls in classes:
        fields = cls.model_fields.keys()
        assert cls.published_names.keys() <= fields
        assert cls.published_values.keys() <= fields
        assert cls.added <= fields
        assert cls.recorded <= fields
        assert not fields & set(cls.published_names.values())


def test_located_names_the_line_of_a_published_key_in_later_errors():
    """An error that the shape brings up, after the recipe was read."""
    text = "base: gpt2\nsteps:\n- step: neurons\n  width: 100\n"
    with pytest.raises(RecipeError, match=r"^Line 3: too many"), located(text):
        raise RecipeError("too many", ("steps", 0))


@pytest.mark.parametrize("folder", sorted((OLD / "saved").iterdir()), ids=lambda folder: folder.name)
@pytest.mark.filterwarnings("default")
def test_a_saved_model_verifies_and_its_card_still_runs(folder, monkeypatch):
    warnings.simplefilter("default")  # Other libraries' warnings are not about what was published.
    monkeypatch.chdir(OLD / "bases")
    verification = pruning.verify(str(folder))
    assert [check for check in verification.checks if not check.holds] == []
    assert len(verification.checks) == 10
    card = (folder / "README.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    exec(card.split("```python\n")[1].split("```")[0].replace("this/repository", str(folder)), names)
    text = names["tokenizer"]("The old man", return_tensors="pt").input_ids
    assert torch.isfinite(names["model"](text).logits).all()


@pytest.mark.parametrize("folder", sorted((OLD / "saved").iterdir()), ids=lambda folder: folder.name)
def test_a_saved_model_is_rebuilt_from_its_recipe(folder, one_thread, monkeypatch):
    warnings.simplefilter("default")
    monkeypatch.chdir(OLD / "bases")
    recipe = Recipe.load(folder / "recipe.yaml")
    rebuilt = pruning.run(recipe, evaluate=False).model.state_dict()
    saved = pruning.load(str(folder)).model.state_dict()
    assert rebuilt.keys() == saved.keys()
    if isinstance(recipe.steps[-1], pruning.Distillation):
        # Adam's first steps have the sign of each gradient, so that processors that round differently part ways.
        untrained = recipe.model_copy(update={"steps": recipe.steps[:-1]})
        start = pruning.run(untrained, evaluate=False).model.state_dict()
        assert distance(rebuilt, saved) < 0.1 * distance(start, saved)
        return
    for name, tensor in rebuilt.items():
        assert torch.allclose(tensor, saved[name], rtol=1e-4, atol=1e-6), name


def distance(weights, others):
    return sum(float((weights[name] - others[name]).square().sum()) for name in others) ** 0.5
