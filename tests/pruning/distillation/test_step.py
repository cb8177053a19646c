"""Distillation as a step of a recipe: its teacher, its text and its vocabulary."""

import io
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import pruning
from pruning import Distillation, Layers, Neurons, Recipe, RecipeError, TextChoice, Vocabulary
from pruning.architectures.shape import Shape
from pruning.steps.base import StepContext
from pruning.text.generation import sample_text
from pruning.text.passages import GENRES, passage
from pruning.text.tokens import token_ids
from tests.helpers.models import folder_of, loaded, trained
from tests.pruning.distillation.helpers import QUICK


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize(
    "steps",
    [[Neurons(fraction=0.3, criterion="l1")], [Layers(count=1, method="last")]],
    ids=["neurons", "layers"],
)
def test_every_family_is_distilled_by_a_recipe(family, steps):
    distillation = Distillation(steps=2, **QUICK, hidden_loss_weight=0.5, text=TextChoice(text="story"))
    pruned = pruning.prune(Recipe(base="tiny", steps=[*steps, distillation]), loaded(family))
    (note,) = pruned.report.notes[-1]
    assert (note.text, note.steps) == ("story", 2)
    assert torch.isfinite(pruned.model(torch.arange(1, 9)[None]).logits).all()
    assert pruned.recipe == Recipe.parse(pruned.recipe.to_yaml())
    assert pruned.to_dict()["report"]["notes"][-1][0]["steps"] == 2


def test_windows_are_no_longer_than_either_model_can_read():
    """A position that GPT-2 has no embedding for cannot be read."""
    short = loaded("gpt2", n_positions=64)
    distillation = Distillation(steps=1, **QUICK | {"window": 256}, text=TextChoice(text="story"))
    steps = [Neurons(fraction=0.3, criterion="l1"), distillation]
    pruned = pruning.prune(Recipe(base="tiny", steps=steps), short)
    assert pruned.report.notes[-1][0].tokens == distillation.batch * 64
    with_short_teacher = distillation.model_copy(update={"teacher": str(short.source.folder)})
    pruned = pruning.prune(Recipe(base="tiny", steps=[with_short_teacher]), loaded("gpt2"))
    assert pruned.report.notes[-1][0].tokens == distillation.batch * 64
    assert pruned.recipe.steps[0].window == 256


def test_layers_known_to_the_recipe_decide_which_hidden_states_are_matched():
    base = loaded("llama", num_hidden_layers=5)
    student = pruning.prune(Recipe(base="tiny", steps=[Layers(layers=(0, 2))]), base).model
    step = Distillation(steps=2, **QUICK, hidden_loss_weight=1.0, text="story")
    context = StepContext(student, base.tokenizer, Shape.of(student.config), base)

    def loss(step, layers):
        return step.apply(replace(context, layers=layers)).notes[0].loss

    assert loss(step, (1, 3, 4)) == loss(step, None)  # The norms lead to the same layers.
    assert loss(step, (0, 1, 2)) != loss(step, None)
    # Another teacher's layers are not numbered as the base's are, even if the teacher is a copy of the base.
    other = step.model_copy(update={"teacher": str(base.source.folder)})
    assert loss(other, (0, 1, 2)) == loss(step, None)


def test_a_folder_that_recorded_its_layers_is_matched_by_them():
    base = loaded("llama", num_hidden_layers=5)
    student = pruning.prune(Recipe(base="tiny", steps=[Layers(layers=(0, 2))]), base).model
    teacher = str(base.source.folder)
    step = Distillation(steps=2, **QUICK, hidden_loss_weight=1.0, text="story", teacher=teacher)

    def loss(kept_layers):
        folder = replace(base, model=student, source=replace(base.source, kept_layers=kept_layers))
        context = StepContext(student, base.tokenizer, Shape.of(student.config), folder, layers=(0, 1, 2))
        return step.apply(context).notes[0].loss

    assert loss((1, 3, 4)) == loss(None)  # The norms lead to the same layers.
    assert loss((0, 1, 2)) != loss(None)


def test_smaller_vocabulary_learns_from_the_whole_one():
    base = trained()
    steps = [Vocabulary(fraction=0.1), Neurons(fraction=0.9, criterion="random", repair=False)]
    pruned = pruning.prune(Recipe(base="tiny", steps=[*steps, Distillation(steps=30, **QUICK)]), base)
    (note,) = pruned.report.notes[-1]
    assert note.improved
    assert pruned.model.config.vocab_size < base.model.config.vocab_size


def test_teacher_that_lacks_a_token_of_the_student_is_refused():
    step = Distillation(steps=1, **QUICK, teacher=str(folder_of("qwen2")))
    with pytest.raises(RecipeError, match="lacks token 3"):
        pruning.prune(Recipe(base="tiny", steps=[step]), loaded("gpt2", vocab_size=330))


def test_teacher_of_another_width_is_refused_if_hidden_states_are_matched():
    teacher = folder_of("llama", hidden_size=48)
    step = Distillation(steps=1, **QUICK, hidden_loss_weight=1.0, teacher=str(teacher))
    with pytest.raises(RecipeError, match="channels"):
        pruning.prune(Recipe(base="tiny", steps=[step]), loaded("llama"))


def test_folder_as_teacher_is_read_only_if_the_base_is_a_folder_too():
    base = trained()
    recipe = Recipe(base="tiny", steps=[Distillation(steps=1, **QUICK, teacher=str(base.source.folder))])
    assert pruning.prune(recipe, base).report.notes[0][0].steps == 1
    published = replace(base, source=replace(base.source, hub_id="ada/model"))
    with pytest.raises(pruning.ModelError, match="Hub id"):
        pruning.prune(recipe, published)


def test_result_is_rounded_to_the_stored_precision_and_reloads(tmp_path):
    base = trained()
    rounded = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(base.source.folder, dtype=torch.bfloat16).save_pretrained(rounded)
    base.tokenizer.save_pretrained(rounded)
    steps = [Neurons(fraction=0.9, criterion="random"), Distillation(steps=20, **QUICK)]
    pruned = pruning.run(Recipe(base=str(rounded), steps=steps), evaluate=False)
    assert pruned.report.notes[-1][0].improved
    pruned.save(tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    ids = torch.arange(1, 20)[None]
    assert torch.equal(reloaded(ids).logits, pruned.model(ids).logits)


def tokens_of(step):
    """The base, and the tokens that a step trains and evaluates on."""
    base = trained()
    context = StepContext(base.model, base.tokenizer, Shape.of(base.model.config), base)
    return base, step._training_tokens(context, base)


def without_the_end(tokens):
    """A text but for its last eighth, which is held out."""
    return tokens[: len(tokens) - len(tokens) // 8]


@pytest.mark.parametrize("text", ["general", "code"])
def test_held_out_text_is_never_trained_on(text):
    base, data = tokens_of(Distillation(steps=1, text=TextChoice(text=text)))
    genres = GENRES if text == "general" else [text]
    texts = [token_ids(base.model, base.tokenizer, passage(genre, "calibration")) for genre in genres]
    assert torch.equal(data.tokens, torch.cat([without_the_end(tokens) for tokens in texts]))
    ends = torch.cat([tokens[len(without_the_end(tokens)) :] for tokens in texts])
    held_out = torch.cat([window[len(data.prefix) :] for window in data.heldout])
    assert 0 < len(held_out) <= 2048
    assert set(held_out.tolist()) <= set(ends.tolist())
    trained_on = base.tokenizer.decode(data.tokens)
    for window in data.heldout:
        assert base.tokenizer.decode(window[1:60]) not in trained_on
    for genre in genres:
        for sentence in passage(genre, "heldout").split("\n\n")[1:4]:
            assert sentence not in trained_on


def test_samples_of_the_teacher_are_read_beside_a_text():
    step = Distillation(steps=1, text=TextChoice(text="story"), samples=600)
    base, data = tokens_of(step)
    texts = (passage("story", "calibration"), sample_text(base, 600, 0))
    streams = [token_ids(base.model, base.tokenizer, text) for text in texts]
    assert torch.equal(data.tokens, torch.cat([without_the_end(tokens) for tokens in streams]))
    assert data.name == "story and the teacher's own samples"
    assert step.describe() == "1 step of distillation on story and the teacher's own samples"


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (Distillation(minutes=1.03), "1 minute of distillation on chats and general text"),
        (Distillation(minutes=2.57, text="general"), "2.6 minutes of distillation on general text"),
        (Distillation(minutes=0.02, text="code"), "0.02 minutes of distillation on code"),
        (Distillation(steps=1200, text="chat"), "1,200 steps of distillation on chats"),
        (
            Distillation(steps=5, text="self_generated"),
            "5 steps of distillation on the teacher's own samples",
        ),
    ],
)
def test_a_distillation_is_described_in_words(step, line):
    assert step.describe() == line


def test_samples_of_the_teacher_can_be_the_whole_text():
    base, data = tokens_of(Distillation(steps=1, **QUICK, text="self_generated", samples=600))
    tokens = token_ids(base.model, base.tokenizer, sample_text(base, 600, 0))
    assert torch.equal(data.tokens, without_the_end(tokens))
    assert data.name == "the teacher's own samples"


def test_short_text_is_refused():
    step = Distillation(steps=1, text=TextChoice.custom("Once upon a time. " * 20))
    with pytest.raises(RecipeError, match=r"has \d+ tokens; at least 256 are needed"):
        tokens_of(step)


def test_dataset_on_the_hub_is_read_as_far_as_needed(hub):
    import pyarrow as arrow
    from pyarrow import parquet

    stories = passage("story", "calibration")
    files = {}
    for number in range(2):
        file = io.BytesIO()
        rows = {"id": list(range(20)), "body": [stories[500 * n : 500 * n + 500] for n in range(20)]}
        parquet.write_table(arrow.table(rows), file)
        files[f"data/train-0000{number}-of-00002.parquet"] = file.getvalue()
    hub.add_dataset("ada/stories", files)
    base = trained()

    def run(**dataset):
        step = Distillation(steps=1, **QUICK, dataset={"name": "ada/stories", "tokens": 2000} | dataset)
        return pruning.prune(Recipe(base="tiny", steps=[step]), base).report.notes[0][0]

    assert run(column="body").text == "ada/stories"
    files_read = [path for _, path, _ in hub.requests if path.endswith(".parquet")]
    assert files_read
    assert all("train-00000" in path for path in files_read)
    with pytest.raises(pruning.ModelError, match="id, body"):
        run()
    with pytest.raises(pruning.ModelError, match="split 'test'"):
        run(column="body", split="test")
    with pytest.raises(pruning.ModelError, match="ada/nothing"):
        run(name="ada/nothing")
