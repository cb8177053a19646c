"""The model is in hand as soon as it is cut: written first, measured afterwards, in the precision that is asked for."""

import io
import sys

import pytest
import torch
from safetensors.torch import load_file

import pruning
from pruning import ModelError, Neurons, Progress, SavingError, cli, pipeline
from pruning.errors import Cancelled
from pruning.progress import bar, with_bar
from tests.helpers.models import folder_of, loaded, save_tiny

CUT = ("--neurons", "25%", "--criterion", "l1")


@pytest.fixture
def shell(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["secateur", *map(str, arguments)])
        status = cli.main()
        return status, *capsys.readouterr()

    return run


def test_a_model_is_written_before_it_is_measured(shell, tmp_path, monkeypatch):
    def stop(pruned, base, *, progress):
        assert "Quality was not measured" in (tmp_path / "out" / "README.md").read_text()
        raise Cancelled("Stopped.")

    monkeypatch.setattr(pipeline, "evaluate_quality", stop)
    status, out, err = shell("prune", folder_of("llama"), *CUT, "-o", tmp_path / "out")
    assert (status, err.splitlines()[-1]) == (2, "Error: Stopped.")
    assert f"saved to {tmp_path / 'out'}" in out
    assert pruning.load(tmp_path / "out").model.config.intermediate_size == 36


def test_the_card_says_what_was_measured_afterwards(shell, tmp_path):
    status, out, _ = shell("prune", folder_of("llama"), *CUT, "-o", tmp_path / "out")
    assert status == 0
    assert "perplexity" in out.splitlines()[-1]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Perplexity on passages that calibration did not see" in card
    assert "Greedy output of both models" not in card
    assert "| Neurons per layer | 48 | 36 (−25.00%) |" in card
    assert pruning.verify(str(tmp_path / "out")).holds


def test_pruning_measures_nothing_that_nobody_asked_for(monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("nobody asked to measure")

    for name in ("iter_evaluate_pruned", "base_quality", "speeds_by_round"):
        monkeypatch.setattr(pipeline, name, refuse)
    report = pruning.prune(loaded("llama"), steps=Neurons(fraction=0.25, criterion="l1")).report
    assert report.after.quality is None


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_shows_on_a_terminal_alone_and_is_removed_at_the_end(monkeypatch):
    base, screen = loaded("llama"), Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    pruning.prune(base, steps=Neurons(fraction=0.25, criterion="l1"))
    assert "Ranking neurons, layers: 1 of 3" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K")
    for stream, progress in ((io.StringIO(), bar), (Terminal(), lambda _: None)):
        monkeypatch.setattr(sys, "stderr", stream)
        pruning.prune(base, steps=Neurons(fraction=0.25, criterion="l1"), progress=progress)
        assert stream.getvalue() == ""


def test_a_bar_grows(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())

    @with_bar
    def work(*, progress=bar):
        progress(Progress("Half", 1, 2))
        raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        work()
    assert "[██████████          ] Half: 1 of 2" in sys.stderr.getvalue()
    assert sys.stderr.getvalue().endswith("\r\x1b[K")


def dtypes_in(folder):
    return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_a_model_is_saved_in_the_precision_that_is_asked_for(dtype, tmp_path):
    base = loaded("llama")
    weights = {name: values.clone() for name, values in base.model.state_dict().items()}
    wanted = torch.bfloat16 if dtype == "bfloat16" else dtype
    for given in (base, folder_of("llama")):
        pruned = pruning.prune(given, steps=Neurons(fraction=0.25), calibration="story", dtype=dtype)
        assert pruned.model.dtype == torch.float32
        assert pruned.report.after.bytes == 2 * pruned.report.after.parameters
        folder = pruned.save(tmp_path / type(given).__name__)
        assert dtypes_in(folder) == {wanted}
    assert all(torch.equal(values, weights[name]) for name, values in base.model.state_dict().items())


def test_a_bfloat16_base_is_saved_as_bfloat16_and_computes_in_float32(tmp_path):
    base = save_tiny(tmp_path / "base", "llama", dtype=torch.bfloat16)
    pruned = pruning.prune(base, steps=Neurons(fraction=0.25, criterion="l1"), device="cpu")
    assert pruned.model.dtype == torch.float32
    assert dtypes_in(pruned.save(tmp_path / "out")) == {torch.bfloat16}


def test_the_shell_takes_a_precision_and_a_device(shell, tmp_path):
    options = ("--dtype", "bfloat16", "--device", "cpu", "--no-evaluate")
    assert shell("prune", folder_of("llama"), *CUT, *options, "-o", tmp_path / "out")[0] == 0
    assert dtypes_in(tmp_path / "out") == {torch.bfloat16}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"dtype": "int8"}, r"dtype is 'int8'\. Choose one of float32, bfloat16, float16"),
        ({"device": "tpu9"}, r"device is 'tpu9'\. Choose cpu or cuda"),
        ({"device": "cuda:99"}, r"cuda:99 is not on this machine"),
    ],
)
@pytest.mark.parametrize("given", ["folder", "loaded"])
def test_what_no_model_can_be_is_refused_in_one_sentence(given, values, says):
    base = folder_of("llama") if given == "folder" else loaded("llama")
    with pytest.raises(ModelError, match=says):
        pruning.prune(base, steps=Neurons(fraction=0.25, criterion="l1"), **values)


@pytest.mark.parametrize("spoil", ["rounding", "logits", "weights"])
def test_a_difference_by_rounding_does_not_stop_a_save_and_an_error_does(spoil, tmp_path):
    """Where a tensor is in memory may decide which kernel reads it, and a reloaded tensor is somewhere else."""
    pruned = pruning.prune(loaded("llama"), steps=Neurons(fraction=0.25, criterion="l1"))

    def add(_module, _inputs, output):
        shift = 1e-2 if spoil == "logits" else 1e-6
        output.logits = output.logits + shift * output.logits.std()
        return output

    pruned.model.register_forward_hook(add)
    if spoil == "weights":
        save = pruned.model.save_pretrained

        def save_and_change(*arguments, **named):
            save(*arguments, **named)
            pruned.model.lm_head.weight.data[0, 0] += 1e-5

        pruned.model.save_pretrained = save_and_change
    if spoil == "rounding":
        pruned.save(tmp_path / "out")
        assert (tmp_path / "out" / "model.safetensors").is_file()
        return
    with pytest.raises(SavingError, match="does not give the same logits"):
        pruned.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
