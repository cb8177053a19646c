"""Statistics are the same however the text is split up, and however they are stored."""

import threading

import pytest
import torch

from pruning import Cancelled
from pruning.calibration.statistics import HELD_OUT_ROWS, PRIOR_TOKENS, Statistics, read_statistics
from tests.helpers.models import FAMILIES, loaded, output_projection

WINDOWS = [torch.arange(start, start + length) for start, length in ((0, 40), (100, 40), (200, 9))]
HELDOUT = [torch.arange(50, 80)]
MOMENTS = ("square", "sequence")
SECOND_MOMENTS = ("gram", "heldout", "inverse")
EXACT = {"rtol": 0, "atol": 0}


def modules_of(model):
    return [output_projection(model, layer) for layer in range(model.config.num_hidden_layers)]


def collected(model, fitting=WINDOWS, heldout=HELDOUT, **options):
    return Statistics(model, modules_of(model), fitting, heldout, **options)


def observed_rows(model, module, windows):
    """Return all rows of a projection's input."""
    rows = []
    handle = model.get_submodule(module).register_forward_pre_hook(lambda _, args: rows.append(args[0]))
    for window in windows:
        model(input_ids=window[None])
    handle.remove()
    return torch.cat([row.reshape(-1, row.shape[-1]) for row in rows]).double()


def assert_same(one, other, **tolerance):
    assert one.moments.keys() == other.moments.keys()
    for module in one.moments:
        pairs = [
            (getattr(one.moments[module], name), getattr(other.moments[module], name)) for name in MOMENTS
        ]
        grams = one.gram(module), other.gram(module)
        pairs += [(getattr(grams[0], name), getattr(grams[1], name)) for name in SECOND_MOMENTS]
        assert grams[0].tokens == grams[1].tokens
        for left, right in pairs:
            torch.testing.assert_close(left, right, **tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_and_grams_are_those_of_the_observed_rows(family):
    model = loaded(family).model
    statistics = collected(model)
    for module in modules_of(model):
        fitting_rows, heldout_rows = (
            observed_rows(model, module, WINDOWS),
            observed_rows(model, module, HELDOUT),
        )
        gram = statistics.gram(module)
        assert gram.tokens == len(fitting_rows) == 89
        torch.testing.assert_close(gram.gram.double(), fitting_rows.T @ fitting_rows, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gram.heldout.double(), heldout_rows, rtol=1e-4, atol=1e-5)
        square = torch.cat([fitting_rows, heldout_rows]).square().mean(dim=0)
        torch.testing.assert_close(statistics.moments[module].square.double(), square, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_less_memory_means_more_passes_and_the_same_numbers(family):
    model, passes = loaded(family).model, []
    handle = model.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    frugal = collected(model, budget=1)
    assert len(passes) == len(WINDOWS + HELDOUT)
    for module in modules_of(model):
        frugal.gram(module)
    assert len(passes) == len(WINDOWS + HELDOUT) * model.config.num_hidden_layers
    handle.remove()
    assert_same(frugal, collected(model), **EXACT)


def test_the_order_of_the_windows_does_not_matter():
    model = loaded("mistral").model
    reversed_order = collected(model, fitting=WINDOWS[::-1])
    assert_same(collected(model), reversed_order, rtol=1e-5, atol=1e-5)


def test_second_moments_are_the_same_in_any_order_of_asking():
    model = loaded("qwen3").model
    frugal = collected(model, budget=1)
    first, second = modules_of(model)
    early = frugal.gram(second).gram
    frugal.gram(first)
    assert torch.equal(frugal.gram(second).gram, early)


def test_heldout_rows_are_few_and_come_from_all_of_the_text():
    model = loaded("qwen2").model
    text = [torch.arange(start, start + 100).repeat(8) for start in (0, 100, 200)]
    module = modules_of(model)[0]
    all_rows = observed_rows(model, module, text)
    rows = collected(model, heldout=text).gram(module).heldout
    assert HELD_OUT_ROWS / 2 < len(rows) < HELD_OUT_ROWS * 2
    stride = round(sum(map(len, text)) / HELD_OUT_ROWS)
    expected = torch.cat([window[::stride] for window in all_rows.split(len(text[0]))])
    torch.testing.assert_close(rows.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_the_inverse_is_that_of_the_damped_gram(family):
    model = loaded(family).model
    for module in modules_of(model):
        gram = collected(model).gram(module)
        diagonal = gram.gram.double().diagonal()
        ridge = PRIOR_TOKENS * (diagonal[diagonal > 0] / gram.tokens).median()
        eye = torch.eye(len(diagonal), dtype=torch.float64)
        damped = gram.gram.double() + ridge * eye
        torch.testing.assert_close(damped @ gram.inverse.double(), eye, rtol=0, atol=1e-4)
        assert gram.inverse is gram.inverse


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_statistics_are_equal_after_saving_and_reading(family, tmp_path):
    file = tmp_path / "new" / "statistics.safetensors"
    statistics = collected(loaded(family).model)
    assert statistics.save(file)
    assert_same(statistics, read_statistics(file), **EXACT)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_statistics_that_do_not_fit_in_memory_are_not_saved(tmp_path):
    assert not collected(loaded("gpt2").model, budget=1).save(tmp_path / "statistics.safetensors")
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_damaged_or_missing_file_reads_as_none(tmp_path):
    file = tmp_path / "statistics.safetensors"
    assert read_statistics(file) is None
    collected(loaded("gpt2").model).save(file)
    content = file.read_bytes()
    for length in (0, 4, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        assert read_statistics(file) is None
    file.write_bytes(b"\xff" * len(content))
    assert read_statistics(file) is None


def test_other_threads_that_use_the_model_are_not_counted():
    model = loaded("mistral", seed=3).model
    alone, done = collected(model), threading.Event()

    def disturb():
        while not done.is_set():
            model(input_ids=torch.arange(7)[None])

    other = threading.Thread(target=disturb)
    other.start()
    disturbed = [collected(model) for _ in range(5)]
    done.set()
    other.join()
    for statistics in disturbed:
        assert_same(alone, statistics, **EXACT)


def test_a_stopped_pass_removes_its_hooks():
    model = loaded("llama").model

    def stop(progress):
        if progress.done == 1:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        collected(model, progress=stop)
    assert not any(submodule._forward_pre_hooks for submodule in model.modules())
