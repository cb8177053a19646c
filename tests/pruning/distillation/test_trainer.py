"""The training loop: what it gains, what it keeps and shares, how it stops and how it resumes."""

import json
import time
from dataclasses import fields, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pruning
from pruning import Cancelled, Channels, Recipe, RecipeError
from pruning.distillation.checkpoint import Checkpoint
from pruning.distillation.data import TrainingTokens
from pruning.distillation.progress import EvalPoint, TrainingProgress
from pruning.distillation.refit import MOST_TOKENS
from pruning.distillation.settings import Training
from pruning.distillation.trainer import distill
from pruning.repair.reconstruction import ReconstructionResult
from tests.helpers.models import tiny, trained
from tests.pruning.distillation.helpers import QUICK, assert_equal, copy_of, recorder


def test_student_equal_to_its_teacher_does_not_change(data):
    base, events = trained().model, []
    settings = Training(steps=4, **QUICK, hidden_loss_weight=1.0)
    result = distill(base, base, data, settings, progress=recorder(events))
    assert [event.loss for event in events[1:]] == [0.0] * 4
    assert_equal(base, events[-1].model)
    assert result.model is base
    assert not result.note.improved


def test_student_gains_and_neither_model_changes(student, data):
    base = trained().model
    base_before, student_before, events = copy_of(base), copy_of(student), []
    result = distill(student, base, data, Training(steps=40, **QUICK), progress=recorder(events))
    note = result.note
    assert_equal(base_before, base)
    assert_equal(student_before, student)
    for module in ("get_input_embeddings", "get_output_embeddings"):
        frozen = getattr(result.model, module)().weight
        assert frozen.data_ptr() == getattr(base, module)().weight.data_ptr()
    assert not any(p.requires_grad for p in result.model.parameters())
    assert note.improved
    assert note.perplexity_teacher < note.perplexity_after < 0.9 * note.perplexity_before
    assert (note.steps, note.tokens, note.heldout_tokens) == (40, 40 * 4 * 32, 512)
    assert [event.step for event in events if event.evaluated] == [0, 10, 20, 30, 40]
    last = events[-1]
    assert [point.step for point in last.curve] == [0, 10, 20, 30, 40]
    assert (last.done, last.seconds_left) == (last.total, 0.0)
    assert last.perplexity_best == min(point.perplexity for point in last.curve)
    assert last.perplexity_best == pytest.approx(note.perplexity_after)


def test_same_steps_give_the_same_weights(student, data):
    one, other = (
        distill(student, trained().model, data, Training(steps=6, **QUICK), seed=3).model for _ in range(2)
    )
    assert_equal(one, other)


def test_training_without_a_gain_returns_the_student_itself(student, data):
    settings = Training(steps=30, **QUICK | {"learning_rate": 1.0, "num_evals": 30, "patience": 3})
    result = distill(student, trained().model, data, settings)
    note = result.note
    assert result.model is student
    assert not note.improved
    assert (note.ended, note.steps, note.best_step) == ("no further gain", 3, 0)
    assert note.perplexity_after == note.perplexity_before


def test_stop_keeps_the_best_so_far(student, data):
    events = []

    def report(event):
        if isinstance(event, TrainingProgress):
            events.append(event)
            if event.step == 15:
                event.stop()

    result = distill(student, trained().model, data, Training(steps=40, **QUICK), progress=report)
    assert (result.note.ended, result.note.steps) == ("stopped", 15)
    assert result.note.improved
    assert events[-1].evaluated  # The steps since the last evaluation count too.
    assert events[-1].step == 15


def test_minutes_are_kept_and_a_slow_reporter_costs_none(student, data):
    settings = Training(minutes=0.01, **QUICK)
    slept = []

    def sleep(event):
        if len(slept) < 20:  # There are hundreds of events on a fast machine.
            slept.append(0.2)
            time.sleep(0.2)

    started = time.perf_counter()
    result = distill(student, trained().model, data, settings, progress=sleep)
    assert result.note.ended == "done"
    assert 0.6 <= result.note.seconds <= time.perf_counter() - started - sum(slept)
    assert not result.note.reproducible


def stop_before_the_first_step(event):
    """A reporter that ends a training after its refit, if there is one."""
    if isinstance(event, TrainingProgress) and event.text == "Distilling":
        event.stop()


def test_layers_that_write_through_a_norm_are_trained_without_a_refit(data):
    """The norm sets the length of what they write, and a refit of the projection alone gained nothing."""
    model = tiny("gemma2", vocab_size=trained().model.config.vocab_size)
    settings = Training(minutes=100, **QUICK)
    note = distill(model, model, data, settings, progress=stop_before_the_first_step).note
    assert (note.refit_tokens, note.steps, note.ended) == (0, 0, "stopped")


def test_a_training_by_minutes_begins_with_a_refit(student, data):
    settings = Training(minutes=100, **QUICK | {"window": 256})
    student_before = copy_of(student)
    result = distill(student, trained().model, data, settings, progress=stop_before_the_first_step)
    note = result.note
    assert (note.refit_tokens, note.steps, note.best_step) == (MOST_TOKENS, 0, 0)
    assert note.improved
    assert note.perplexity_after < 0.95 * note.perplexity_before
    assert [point.step for point in note.curve] == [0, 0]
    assert_equal(student_before, student)


def test_a_refit_that_gains_nothing_is_undone(data):
    base = trained().model
    result = distill(
        base,
        base,
        data,
        Training(minutes=100, **QUICK | {"window": 256}),
        progress=stop_before_the_first_step,
    )
    assert result.note.refit_tokens
    assert result.model is base


def stop_refitting(events, number):
    """A reporter that keeps the events of a training, and ends it at one of them."""

    def report(event):
        if isinstance(event, TrainingProgress):
            events.append(event)
            if len(events) == number:
                event.stop()

    return report


def test_a_refit_that_is_stopped_keeps_the_layers_that_are_done(student, data):
    events = []
    settings = Training(minutes=100, **QUICK | {"window": 256})
    result = distill(student, trained().model, data, settings, progress=stop_refitting(events, 3))
    assert [event.text for event in events[:3]] == 3 * ["Refitting layers"]
    note = result.note
    assert (note.ended, note.refit_tokens, note.steps) == ("stopped", MOST_TOKENS, 0)
    assert note.improved
    assert note.perplexity_after < note.perplexity_before
    changed = {
        name.split(".")[2]
        for name, values in result.model.named_parameters()
        if not torch.equal(values, student.get_parameter(name))
    }
    assert changed == {"0"}


def test_a_refit_that_is_stopped_before_its_first_layer_leaves_the_student_itself(student, data):
    events = []
    report = stop_refitting(events, 2)

    result = distill(student, trained().model, data, Training(minutes=100, **QUICK), progress=report)
    assert events[1].text == "Refitting layers"
    assert len(events) == 3
    assert result.model is student
    assert (result.note.ended, result.note.refit_tokens, result.note.steps) == ("stopped", 0, 0)


def test_a_training_by_minutes_shows_where_it_begins_before_its_refit(student, data):
    events = []
    settings = Training(minutes=100, **QUICK)
    distill(student, trained().model, data, settings, progress=stop_refitting(events, 2))
    first, second = events[:2]
    assert first.evaluated
    assert first.curve == (EvalPoint(0.0, 0, first.perplexity_before),)
    assert first.seconds_left == 6000
    assert not second.evaluated


def test_the_learning_rate_rises_after_the_refit(student, data, monkeypatch):
    """The refit takes more than four tenths of the training here."""
    shares = []

    def lr_at(_self, share):
        shares.append(share)
        return 1e-4

    def refit(*_args, **_settings):
        time.sleep(2.5)
        return ReconstructionResult({}, ())

    def stop_after_a_step(event):
        if isinstance(event, TrainingProgress) and event.step:
            event.stop()

    monkeypatch.setattr(Training, "lr_at", lr_at)
    monkeypatch.setattr("pruning.distillation.trainer.reconstruct", refit)
    monkeypatch.setattr("pruning.distillation.refit.FEWEST_TOKENS", 0)
    distill(student, trained().model, data, Training(minutes=0.1, **QUICK), progress=stop_after_a_step)
    assert 0 <= shares[0] < 0.2


def test_a_training_by_steps_has_no_refit(student, data):
    assert distill(student, trained().model, data, Training(steps=1, **QUICK)).note.refit_tokens == 0


def test_a_student_without_some_channels_is_trained_without_a_refit(data):
    recipe = Recipe(base="tiny", steps=[Channels(fraction=0.3)])
    narrow = pruning.prune(recipe, trained(), share_memory=True).model
    note = distill(narrow, trained().model, data, Training(minutes=0.01, **QUICK)).note
    assert (note.refit_tokens, note.ended) == (0, "done")
    assert note.steps


def test_a_training_that_is_resumed_is_not_refitted_again(student, data, tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "kept", every=0)
    settings = Training(minutes=100, **QUICK | {"window": 256})
    with pytest.raises(Cancelled):
        distill(student, trained().model, data, settings, progress=killed_at(2), checkpoint=checkpoint)
    monkeypatch.setattr("pruning.distillation.trainer.reconstruct", None)
    note = distill(
        student, trained().model, data, settings, progress=stop_before_the_first_step, checkpoint=checkpoint
    ).note
    assert note.refit_tokens == MOST_TOKENS
    assert note.steps >= 1


def test_sampling_the_student_during_training_changes_nothing(student, data):
    texts = []

    def report(event):
        if isinstance(event, TrainingProgress):
            sampling = pruning.Sampling(max_new_tokens=4)
            texts.append(pruning.generate(replace(trained(), model=event.model), "The old man", sampling))

    settings = Training(steps=3, **QUICK)
    sampled = distill(student, trained().model, data, settings, progress=report).model
    assert len(texts) == 4
    assert_equal(sampled, distill(student, trained().model, data, settings).model)


def killed_at(step):
    """A reporter that ends a training as a kill would, but for its checkpoint."""

    def report(event):
        if isinstance(event, TrainingProgress) and event.step == step:
            raise Cancelled("killed")

    return report


@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_resuming_equals_never_having_stopped(micro_batch_size, student, data, tmp_path):
    settings = Training(steps=12, **QUICK, micro_batch_size=micro_batch_size)
    base, checkpoint, events = trained().model, Checkpoint(tmp_path / "kept", every=0), []
    uninterrupted = distill(student, base, data, settings).model
    with pytest.raises(Cancelled):
        distill(student, base, data, settings, progress=killed_at(7), checkpoint=checkpoint)
    resumed = distill(student, base, data, settings, progress=recorder(events), checkpoint=checkpoint)
    assert events[0].step == 7
    assert_equal(uninterrupted, resumed.model)


@pytest.fixture
def checkpoint(student, data, tmp_path):
    """A checkpoint of a training of three steps, after the second."""
    checkpoint = Checkpoint(tmp_path / "kept", every=0)
    with pytest.raises(Cancelled):
        distill(
            student,
            trained().model,
            data,
            Training(steps=3, **QUICK),
            progress=killed_at(2),
            checkpoint=checkpoint,
        )
    return checkpoint


def test_checkpoint_of_another_training_is_refused(student, data, checkpoint):
    with pytest.raises(RecipeError, match="from another training"):
        distill(student, trained().model, data, Training(steps=4, **QUICK), checkpoint=checkpoint)


def test_damaged_checkpoint_is_refused(student, data, checkpoint):
    checkpoint.file.write_bytes(b"damaged")
    with pytest.raises(RecipeError, match=r"cannot be read.*Delete it"):
        distill(student, trained().model, data, Training(steps=3, **QUICK), checkpoint=checkpoint)


def test_checkpoint_of_release_0_1_0_is_refused_in_one_sentence(student, data, checkpoint):
    with safe_open(checkpoint.file, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
    state["measured_at"] = state.pop("evaluated_at")
    metadata = {"run": "0" * 32, "state": json.dumps(state)}  # Without a format, as 0.1.0 wrote it.
    save_file(load_file(checkpoint.file), checkpoint.file, metadata=metadata)
    with pytest.raises(RecipeError, match="written by another version of Secateur and cannot be resumed"):
        distill(student, trained().model, data, Training(steps=3, **QUICK), checkpoint=checkpoint)


def test_accumulated_gradients_are_those_of_the_batch(student, data):
    settings = {"steps": 3} | QUICK | {"learning_rate": 1e-4}
    one, many = (
        distill(student, trained().model, data, Training(**settings, micro_batch_size=n)).model
        for n in (4, 1)
    )
    for name, value in one.state_dict().items():
        torch.testing.assert_close(many.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_every_epoch_reads_each_window_once():
    data = TrainingTokens(torch.arange(103), (), torch.tensor([500]))
    for epoch in range(3):
        rows = data.windows(range(10 * epoch, 10 * epoch + 10), 11, seed=0)
        assert rows.shape == (10, 11)
        assert (rows[:, 0] == 500).all()
        assert len(set(rows[:, 1:].flatten().tolist())) == 100
    assert not torch.equal(*(data.windows(range(n, n + 10), 11, 0).sort(0).values for n in (0, 10)))


def test_note_is_made_of_plain_values(student, data):
    note = distill(student, trained().model, data, Training(steps=2, **QUICK)).note
    values = {field.name: getattr(note, field.name) for field in fields(note)}
    assert json.loads(json.dumps(values)) == values | {"curve": [list(point) for point in note.curve]}


def test_a_learning_rate_that_is_too_high_is_lowered_until_the_first_gain(student, data):
    """The weights go back to those of the start, which nothing was better than yet."""
    settings = Training(steps=8, **QUICK | {"learning_rate": 0.3, "num_evals": 8, "warmup": 0.0})
    note = distill(student, trained().model, data, settings).note
    first, *later = (point.perplexity for point in note.curve[1:])
    assert first > 2 * note.perplexity_before
    assert min(later) < note.perplexity_before
    assert note.improved
