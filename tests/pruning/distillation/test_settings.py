"""The settings of a training, their former names, and the events that report it."""

import math
import pickle

import pytest

from pruning import Distillation, Recipe, RecipeError
from pruning.cli.distill import settings_from
from pruning.distillation.progress import EvalPoint, RunningTraining, TrainingProgress, format_time
from pruning.distillation.settings import Training
from pruning.progress import Progress
from pruning.steps.distillation import HubDataset

FORMER = {"at_once": 2, "measurements": 5, "clip": 0.5, "hidden": 0.25, "cross_entropy": 0.75}
PRESENT = {
    "micro_batch_size": 2,
    "num_evals": 5,
    "max_grad_norm": 0.5,
    "hidden_loss_weight": 0.25,
    "ce_loss_weight": 0.75,
}


def test_names_of_release_0_1_0_mean_the_same_recipe():
    one, other = (
        Recipe(base="tiny", steps=[Distillation(steps=1, **values)]) for values in (FORMER, PRESENT)
    )
    assert one == other
    assert one.digest == other.digest
    assert one.to_dict()["steps"][0].items() >= PRESENT.items()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "either minutes or steps"),
        ({"steps": 1, "minutes": 1.0}, "either minutes or steps"),
        ({"minutes": 0.0}, "minutes"),
        ({"steps": 1, "temperature": 0.0}, "temperature"),
        ({"steps": 1, "precision": "int4"}, "precision"),
        ({"steps": 1, "hidden": -1.0}, "hidden"),
        ({"steps": 1, "text": "bible"}, "bible"),
        ({"steps": 1, "text": "code", "dataset": {"name": "a/b"}}, "either text or dataset"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(RecipeError, match=message):
        Distillation(**values)


def test_learning_rate_rises_linearly_and_falls_along_a_cosine():
    settings = Training(steps=1, learning_rate=0.01, warmup=0.2)
    shares = (0.0, 0.1, 0.2, 0.6, 1.0)
    assert [settings.lr_at(share) for share in shares] == pytest.approx([0.0001, 0.005, 0.01, 0.005, 0.0])


def test_shell_reads_values_as_json_or_as_words():
    words = ["batch=8", "precision=float32", "embeddings=true", "learning_rate=1e-4"]
    fields, notices = settings_from("ada/stories:body", words)
    assert fields == {
        "dataset": HubDataset(name="ada/stories", column="body"),
        "batch": 8,
        "precision": "float32",
        "embeddings": True,
        "learning_rate": 1e-4,
    }
    assert notices == ()


def test_shell_accepts_former_names_and_names_the_new_ones():
    fields, notices = settings_from(None, [f"{name}={value}" for name, value in FORMER.items()])
    assert fields == PRESENT
    assert notices == tuple(
        f"--set {former} is now called --set {present}."
        for former, present in zip(FORMER, PRESENT, strict=True)
    )


def event(**values):
    plain = {
        "done": 250,
        "total": 1000,
        "seconds": 63.0,
        "seconds_left": 190.0,
        "step": 12,
        "tokens": 3072,
        "loss": 1.5,
        "perplexity": 39.8,
        "evaluated": True,
        "curve": (EvalPoint(0.0, 0, 45.2), EvalPoint(60.0, 12, 39.8)),
        "perplexity_best": 39.8,
        "perplexity_teacher": 30.1,
        "perplexity_before": 45.2,
    }
    return TrainingProgress(**plain | values)


def test_training_reads_as_one_line():
    assert str(event()) == "Distilling: step 12, 3:10 left, perplexity 45.20 → 39.80 (teacher 30.10)"
    assert str(event(seconds_left=math.inf)).startswith("Distilling: step 12, ? left")
    assert event().text == "Distilling"
    assert format_time(3605) == "60:05"


def test_event_leaves_its_process_without_the_training():
    running = RunningTraining(model=lambda: None)  # Stands in for a model: it cannot be pickled either.
    live = event(training=running)
    live.stop()
    assert running.stopped
    assert live.model is running.model
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(live)
    received = pickle.loads(pickle.dumps(live.detached()))
    assert received == live
    assert received.training is None
    with pytest.raises(RuntimeError, match="detached"):
        received.stop()


def test_progress_is_a_plain_value_that_prints_as_one_line():
    assert str(Progress("Cutting")) == "Cutting"
    assert f"{Progress('Reading, windows', 3, 16)}" == "Reading, windows: 3 of 16"
    assert pickle.loads(pickle.dumps(Progress("Reading", 3, 16))) == Progress("Reading", 3, 16)
    with pytest.raises(AttributeError):
        Progress("Cutting").done = 1
