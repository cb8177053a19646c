"""Distillation: the loss and its gradient, what is kept and shared, stopping, going on, several processes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

import pruning
from pruning import (
    Cancelled,
    Distillation,
    Layers,
    Neurons,
    Recipe,
    RecipeError,
    TextChoice,
    Vocabulary,
)
from pruning.cli import main
from pruning.distillation.checkpoint import Checkpoint
from pruning.distillation.data import TrainingTokens
from pruning.distillation.loss import DistillationLoss, layer_map
from pruning.distillation.progress import TrainingProgress
from pruning.distillation.settings import Training
from pruning.distillation.trainer import distill
from pruning.steps.base import StepContext
from pruning.text.passages import GENRES, passage
from pruning.text.tokens import token_ids
from tests.helpers.models import folder_of, loaded, tiny, trained

ROOT = Path(__file__).parents[3]
QUICK = {"batch": 4, "window": 32, "learning_rate": 3e-3, "measurements": 4, "precision": "float32"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More threads gain nothing on models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cut():
    """The trained model without most of its neurons."""
    step = Neurons(fraction=0.9, criterion="random")
    return pruning.prune(Recipe(base="tiny", steps=[step]), trained()).model


@pytest.fixture(scope="module")
def reading():
    base = trained()
    text = "\n\n".join(passage(genre, "calibration") for genre in GENRES)
    tokens = token_ids(base.model, base.tokenizer, text)
    return TrainingTokens(tokens[:8000], (tokens[8000:8256], tokens[8256:8512]), tokens[:0])


def clone(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def watched(events):
    return lambda event: events.append(event) if isinstance(event, TrainingProgress) else None


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "qwen2"])
@pytest.mark.parametrize(("temperature", "entropy"), [(1.0, 0.0), (2.5, 0.0), (1.5, 0.7)])
@pytest.mark.parametrize("embeddings", [False, True])
def test_loss_and_gradient_are_those_of_the_formula(family, temperature, entropy, embeddings):
    student, teacher = tiny(family, seed=1), tiny(family, seed=2)
    student.requires_grad_(True)
    still = [student.get_input_embeddings().weight, student.get_output_embeddings().weight]
    for parameter in still:
        parameter.requires_grad_(embeddings)
    settings = Training(steps=1, temperature=temperature, cross_entropy=entropy, embeddings=embeddings)
    ids = torch.randint(320, (3, 70), generator=torch.Generator().manual_seed(0))
    names = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    wanted = [parameter for parameter in student.parameters() if parameter.requires_grad]

    loss = DistillationLoss(student, teacher, settings, None, torch.float32)(ids)
    found = torch.autograd.grad(loss, wanted)

    logits, taught = student(ids).logits, teacher(ids).logits
    divergence = functional.kl_div(
        functional.log_softmax(logits / temperature, -1).flatten(0, 1),
        functional.softmax(taught / temperature, -1).flatten(0, 1),
        reduction="batchmean",
    )
    likelihood = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected = temperature**2 * divergence + entropy * likelihood
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert any(gradient.abs().max() > 0 for gradient in found)
    for name, ours, theirs in zip(names, found, torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-3, atol=1e-6, msg=lambda said, name=name: f"{name}: {said}"
        )


def test_half_precision_products_give_nearly_the_same(cut):
    ids = torch.randint(320, (2, 64), generator=torch.Generator().manual_seed(0))
    losses = [
        DistillationLoss(cut, trained().model, Training(steps=1), None, dtype)(ids).item()
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_student_equal_to_its_teacher_stays_put(reading):
    base, events = trained().model, []
    settings = Training(steps=4, **QUICK, hidden=1.0)
    result = distill(base, base, reading, settings, progress=watched(events))
    assert [event.loss for event in events[1:]] == [0.0] * 4
    assert same(clone(base), events[-1].model.state_dict())
    assert result.model is base
    assert not result.notes["improved"]


def test_it_learns_and_the_dense_model_does_not_change(cut, reading):
    base = trained().model
    before, came, events = clone(base), clone(cut), []
    result = distill(cut, base, reading, Training(steps=40, **QUICK), progress=watched(events))
    notes = result.notes
    assert same(before, base.state_dict())
    assert same(came, cut.state_dict())
    for module in ("get_input_embeddings", "get_output_embeddings"):
        frozen = getattr(result.model, module)().weight
        assert frozen.data_ptr() == getattr(base, module)().weight.data_ptr()
    assert not any(p.requires_grad for p in result.model.parameters())
    assert notes["improved"]
    assert notes["perplexity_dense"] < notes["perplexity_after"] < 0.9 * notes["perplexity_before"]
    assert (notes["steps"], notes["tokens"]) == (40, 40 * 4 * 32)
    assert [event.step for event in events if event.measured] == [0, 10, 20, 30, 40]
    last = events[-1]
    assert [point[1] for point in last.curve] == [0, 10, 20, 30, 40]
    assert (last.done, last.remaining, last.best) == (
        last.total,
        0.0,
        pytest.approx(notes["perplexity_after"]),
    )


def test_same_steps_same_weights(cut, reading):
    one, other = (
        distill(cut, trained().model, reading, Training(steps=6, **QUICK), seed=3).model for _ in range(2)
    )
    assert same(one.state_dict(), other.state_dict())


def test_nothing_gained_gives_back_what_came(cut, reading):
    settings = Training(steps=30, **QUICK | {"learning_rate": 1.0, "measurements": 30, "patience": 3})
    result = distill(cut, trained().model, reading, settings)
    assert result.model is cut
    assert not result.notes["improved"]
    assert result.notes["best_step"] == 0
    assert (result.notes["ended"], result.notes["steps"]) == ("no gain any more", 3)
    assert result.notes["perplexity_after"] == result.notes["perplexity_before"]


def test_stop_keeps_the_best_so_far(cut, reading):
    events = []

    def report(event):
        if isinstance(event, TrainingProgress):
            events.append(event)
            if event.step == 15:
                event.stop()

    result = distill(cut, trained().model, reading, Training(steps=40, **QUICK), progress=report)
    assert (result.notes["ended"], result.notes["steps"]) == ("stopped", 15)
    assert result.notes["improved"]
    assert events[-1].measured  # What was learnt since the last measurement counts too.


def test_minutes_are_kept_and_a_slow_reporter_costs_none(cut, reading):
    settings = Training(minutes=0.01, **QUICK)
    slept = []

    def sleep(event):
        slept.append(0.2)
        time.sleep(0.2)

    started = time.perf_counter()
    result = distill(cut, trained().model, reading, settings, progress=sleep)
    assert result.notes["ended"] == "done"
    assert result.notes["seconds"] >= 0.6
    assert result.notes["seconds"] <= time.perf_counter() - started - sum(slept)
    assert not result.notes["reproducible"]


def test_model_can_be_sampled_while_it_learns(cut, reading):
    texts = []

    def report(event):
        if isinstance(event, TrainingProgress):
            sampling = pruning.Sampling(max_new_tokens=4)
            texts.append(pruning.generate(replace(trained(), model=event.model), "The old man", sampling))

    settings = Training(steps=3, **QUICK)
    watched_model = distill(cut, trained().model, reading, settings, progress=report).model
    assert len(texts) == 4
    assert same(
        watched_model.state_dict(), distill(cut, trained().model, reading, settings).model.state_dict()
    )


@pytest.mark.parametrize("accumulated", [False, True])
def test_going_on_equals_never_having_stopped(accumulated, cut, reading, tmp_path):
    settings = Training(steps=12, **QUICK, at_once=1 if accumulated else 4)
    base, checkpoint = trained().model, Checkpoint(tmp_path / "kept", every=0)
    whole = distill(cut, base, reading, settings).model

    def killed(event):
        if isinstance(event, TrainingProgress) and event.step == 7:
            raise Cancelled("gone")

    with pytest.raises(Cancelled):
        distill(cut, base, reading, settings, progress=killed, checkpoint=checkpoint)
    events = []
    again = distill(cut, base, reading, settings, progress=watched(events), checkpoint=checkpoint)
    assert events[0].step == 7
    assert same(whole.state_dict(), again.model.state_dict())
    with pytest.raises(RecipeError, match="another training"):
        distill(cut, base, reading, Training(steps=13, **QUICK), checkpoint=checkpoint)
    checkpoint.file.write_bytes(b"damaged")
    with pytest.raises(RecipeError, match="Delete it"):
        distill(cut, base, reading, settings, checkpoint=checkpoint)


def test_accumulated_gradients_are_those_of_the_batch(cut, reading):
    settings = {"steps": 3} | QUICK | {"learning_rate": 1e-4}
    one, many = (
        distill(cut, trained().model, reading, Training(**settings, at_once=n)).model for n in (4, 1)
    )
    for name, value in one.state_dict().items():
        torch.testing.assert_close(many.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_every_epoch_reads_each_window_once():
    reading = TrainingTokens(torch.arange(103), (), torch.tensor([500]))
    for epoch in range(3):
        rows = reading.windows(range(10 * epoch, 10 * epoch + 10), 11, seed=0)
        assert rows.shape == (10, 11)
        assert (rows[:, 0] == 500).all()
        read = rows[:, 1:].flatten()
        assert len(set(read.tolist())) == 100
    assert not torch.equal(*(reading.windows(range(n, n + 10), 11, 0).sort(0).values for n in (0, 10)))


def test_layers_are_mapped_by_what_stayed():
    teacher = loaded("llama", num_hidden_layers=6)
    with torch.no_grad():  # Norms as training leaves them: no two layers alike.
        for number, layer in enumerate(teacher.model.model.layers):
            layer.input_layernorm.weight.mul_(1 + number / 10)
    student = pruning.prune(Recipe(base="tiny", steps=[Layers(layers=(1, 3))]), teacher).model
    assert layer_map(student, teacher.model) == (1, 3, 4, 5)
    assert layer_map(teacher.model, teacher.model) == tuple(range(6))
    with torch.no_grad():
        student.model.layers[0].input_layernorm.weight = torch.nn.Parameter(torch.ones(32) / 3)
    assert layer_map(student, teacher.model) == (1, 2, 4, 5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize(
    "steps",
    [[Neurons(fraction=0.3, criterion="l1")], [Layers(count=1, method="last")]],
    ids=["neurons", "layers"],
)
def test_every_family_as_a_step_of_a_recipe(family, steps, tmp_path):
    distillation = Distillation(steps=2, **QUICK, hidden=0.5, text=TextChoice(text="story"))
    pruned = pruning.prune(Recipe(base="tiny", steps=[*steps, distillation]), loaded(family))
    (notes,) = pruned.report.notes[-1]
    assert (notes["text"], notes["steps"]) == ("story", 2)
    assert torch.isfinite(pruned.model(torch.arange(1, 9)[None]).logits).all()
    assert pruned.recipe == Recipe.parse(pruned.recipe.to_yaml())


def test_a_smaller_vocabulary_learns_from_the_whole_one():
    base = trained()
    steps = [Vocabulary(fraction=0.1), Neurons(fraction=0.9, criterion="random", repair=False)]
    steps.append(Distillation(steps=30, **QUICK))
    pruned = pruning.prune(Recipe(base="tiny", steps=steps), base)
    (notes,) = pruned.report.notes[-1]
    assert notes["improved"]
    assert pruned.model.config.vocab_size < base.model.config.vocab_size
    strange = Distillation(steps=1, **QUICK, teacher=str(folder_of("qwen2")))
    with pytest.raises(RecipeError, match="does not know"):
        pruning.prune(Recipe(base="tiny", steps=[strange]), loaded("gpt2", vocab_size=330))


def test_result_is_rounded_to_the_stored_precision_and_reloads(tmp_path):
    base = trained()
    rounded = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(base.source.folder, dtype=torch.bfloat16).save_pretrained(rounded)
    base.tokenizer.save_pretrained(rounded)
    steps = [Neurons(fraction=0.9, criterion="random"), Distillation(steps=20, **QUICK)]
    pruned = pruning.run(Recipe(base=str(rounded), steps=steps), evaluate=False)
    assert pruned.report.notes[-1][0]["improved"]
    pruned.save(tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    ids = torch.arange(1, 20)[None]
    assert torch.equal(reloaded(ids).logits, pruned.model(ids).logits)


@pytest.mark.parametrize("text", ["general", "code"])
def test_what_is_evaluated_is_never_trained_on(text):
    base = trained()
    from pruning.architectures.shape import Shape

    context = StepContext(base.model, base.tokenizer, Shape.of(base.model.config), base)
    step = Distillation(steps=1, text=TextChoice(text=text))
    read = step._reading(context, base)
    genres = GENRES if text == "general" else [text]
    whole = [token_ids(base.model, base.tokenizer, passage(genre, "calibration")) for genre in genres]
    fitting = torch.cat([tokens[: len(tokens) - len(tokens) // 8] for tokens in whole])
    assert torch.equal(read.tokens, fitting)
    ends = torch.cat([tokens[len(tokens) - len(tokens) // 8 :] for tokens in whole])
    held = torch.cat([window[len(read.prefix) :] for window in read.heldout])
    assert set(held.tolist()) <= set(ends.tolist())
    trained_on = base.tokenizer.decode(read.tokens)
    for window in read.heldout:
        assert base.tokenizer.decode(window[1:60]) not in trained_on
    for genre in genres:
        for sentence in passage(genre, "heldout").split("\n\n")[1:4]:
            assert sentence not in trained_on


def test_samples_of_the_teacher_are_read_too():
    base, events = trained(), []
    step = Distillation(steps=1, **QUICK, text=TextChoice(text="self"), samples=600)
    pruned = pruning.prune(Recipe(base="tiny", steps=[step]), base, events.append)
    assert "samples" in pruned.report.notes[0][0]["text"]
    assert any("writes" in str(event) for event in events)


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

    assert run(column="body")["text"] == "ada/stories"
    read = [path for _, path, _ in hub.requests if path.endswith(".parquet")]
    assert read
    assert not any("train-00001" in path for path in read)
    with pytest.raises(pruning.ModelError, match="id, body"):
        run()
    with pytest.raises(pruning.ModelError, match="split 'test'"):
        run(column="body", split="test")
    with pytest.raises(pruning.ModelError, match="ada/nothing"):
        run(name="ada/nothing")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "either minutes or steps"),
        ({"steps": 1, "minutes": 1.0}, "either minutes or steps"),
        ({"minutes": 0.0}, "minutes"),
        ({"steps": 1, "temperature": 0.0}, "temperature"),
        ({"steps": 1, "precision": "int4"}, "precision"),
        ({"steps": 1, "text": "bible"}, "bible"),
        ({"steps": 1, "text": "code", "dataset": {"name": "a/b"}}, "text or dataset"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(RecipeError, match=message):
        Distillation(**values)


def test_hidden_states_of_other_widths_do_not_compare():
    teacher = folder_of("llama", hidden_size=48)
    step = Distillation(steps=1, **QUICK, hidden=1.0, teacher=str(teacher))
    with pytest.raises(RecipeError, match="channels"):
        pruning.prune(Recipe(base="tiny", steps=[step]), loaded("llama"))


def test_a_strangers_recipe_names_no_folder_as_teacher(monkeypatch):
    from dataclasses import replace

    base = trained()
    published = replace(base, source=replace(base.source, hub_id="ada/model"))
    step = Distillation(steps=1, **QUICK, teacher=str(base.source.folder))
    with pytest.raises(pruning.ModelError):
        pruning.prune(Recipe(base="tiny", steps=[step]), published)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, cut):
    """The trained model and the cut one as folders."""
    folder = tmp_path_factory.mktemp("models") / "cut"
    cut.save_pretrained(folder)
    trained().tokenizer.save_pretrained(folder)
    return folder, trained().source.folder


def words(folders, output, *options):
    settings = [f"--set={name}={value}" for name, value in QUICK.items()]
    places = [folders[0], "--teacher", folders[1], "--output", output]
    return [str(word) for word in ("distill", *places, "--no-evaluate", *settings, *options)]


@pytest.fixture
def shell(monkeypatch, capsys):
    """`shell(…)` gives the exit status, standard output and standard error of a command."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pruning", *arguments])
        status = main()
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "1", "--minutes", "1"], "not both"),
        (["--steps", "0"], "steps"),
        (["--steps", "1", "--set", "batch"], "NAME=VALUE"),
        (["--steps", "1", "--set", "colour=green"], "colour"),
        (["--steps", "1", "--text", "bible"], "bible"),
        (["--steps", "1", "--text", "code", "--dataset", "a/b"], "text or dataset"),
        (["--steps", "1", "--dataset", "ada/stories"], "cannot be reached"),
    ],
)
def test_shell_refuses_in_one_line(options, message, folders, tmp_path, shell):
    status, out, err = shell(*words(folders, tmp_path / "out", *options))
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert not any(tmp_path.glob("*out*"))


def test_shell_says_what_came_of_it(folders, tmp_path, shell):
    status, out, _ = shell(*words(folders, tmp_path / "out", "--steps", "12"))
    assert status == 0
    assert "12 steps, 1,536 tokens" in out
    assert "→" in out
    assert [path.name for path in tmp_path.iterdir() if path.name != "state"] == ["out"]
    recipe = Recipe.parse((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe.steps[0].steps == 12
    assert "/" not in recipe.steps[0].teacher  # Where it lies is nobody else's business.


def process(folders, output, *options, launch=()):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [
            sys.executable,
            *launch,
            "-m",
            "pruning",
            *words(folders, output, "--steps", "12", "--json", *options),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def finished(running):
    out, err = running.communicate(timeout=240)
    assert running.returncode == 0, err
    return json.loads(out)["report"]["notes"][0][0]


@pytest.mark.timeout(600)
def test_two_processes_match_one_and_a_kill_loses_nothing(folders, tmp_path, shell):
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    checkpoint = tmp_path / ".killed.checkpoint"
    going = process(folders, killed, "--checkpoint-every", "0")
    while not checkpoint.exists():
        assert going.poll() is None, going.communicate()
        time.sleep(0.005)
    going.send_signal(signal.SIGKILL)
    going.communicate()
    assert not killed.exists()
    # The launcher's word for several processes; without a GPU they run on the CPU and speak over gloo.
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    shared, again = finished(process(folders, two, launch=launch)), finished(process(folders, killed))
    assert shell(*words(folders, one, "--steps", "12"))[0] == 0
    weights = {path: AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (one, two, killed)}
    assert shared["hardware"].startswith("2 × ")
    for name, value in weights[one].items():
        # Gradients are summed in another order; AdamW makes at most a part of a step of what that changes.
        torch.testing.assert_close(weights[two][name], value, rtol=1e-2, atol=2e-4)
    assert same(weights[one], weights[killed])
    assert not checkpoint.exists()
    assert shared["improved"]
    assert again["improved"]
