"""One pass over the text says the same however it is cut up, kept or repeated."""

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


def sites_of(model):
    return [output_projection(model, layer) for layer in range(model.config.num_hidden_layers)]


def collected(model, fitting=WINDOWS, heldout=HELDOUT, **options):
    return Statistics(model, sites_of(model), fitting, heldout, **options)


def seen(model, site, windows):
    """All the rows that a projection gets to see."""
    rows = []
    handle = model.get_submodule(site).register_forward_pre_hook(lambda _, args: rows.append(args[0]))
    for window in windows:
        model(input_ids=window[None])
    handle.remove()
    return torch.cat([row.reshape(-1, row.shape[-1]) for row in rows]).double()


def assert_same(one, other, **tolerance):
    assert one.moments.keys() == other.moments.keys()
    for site in one.moments:
        pairs = [(getattr(one.moments[site], name), getattr(other.moments[site], name)) for name in MOMENTS]
        grams = one.gram(site), other.gram(site)
        pairs += [(getattr(grams[0], name), getattr(grams[1], name)) for name in SECOND_MOMENTS]
        assert grams[0].tokens == grams[1].tokens
        for left, right in pairs:
            torch.testing.assert_close(left, right, **tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_and_grams_are_those_of_the_rows_seen(family):
    model = loaded(family).model
    statistics = collected(model)
    for site in sites_of(model):
        fitted, held = seen(model, site, WINDOWS), seen(model, site, HELDOUT)
        gram = statistics.gram(site)
        assert gram.tokens == len(fitted) == 89
        torch.testing.assert_close(gram.gram.double(), fitted.T @ fitted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gram.heldout.double(), held, rtol=1e-4, atol=1e-5)
        square = torch.cat([fitted, held]).square().mean(dim=0)
        torch.testing.assert_close(statistics.moments[site].square.double(), square, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_little_memory_means_more_passes_and_the_same_numbers(family):
    model, read = loaded(family).model, []
    handle = model.base_model.register_forward_pre_hook(lambda *_: read.append(1))
    frugal = collected(model, budget=1)
    assert len(read) == len(WINDOWS + HELDOUT)
    for site in sites_of(model):
        frugal.gram(site)
    assert len(read) == len(WINDOWS + HELDOUT) * model.config.num_hidden_layers
    handle.remove()
    assert_same(frugal, collected(model), **EXACT)


def test_order_of_the_windows_does_not_matter():
    model = loaded("mistral").model
    turned = collected(model, fitting=WINDOWS[::-1])
    assert_same(collected(model), turned, rtol=1e-5, atol=1e-5)


def test_asking_again_and_in_any_order_gives_the_same():
    model = loaded("qwen3").model
    frugal = collected(model, budget=1)
    first, second = sites_of(model)
    early = frugal.gram(second).gram
    frugal.gram(first)
    assert torch.equal(frugal.gram(second).gram, early)


def test_heldout_rows_are_bounded_and_come_from_all_of_the_text():
    model = loaded("qwen2").model
    text = [torch.arange(start, start + 100).repeat(8) for start in (0, 100, 200)]
    site = sites_of(model)[0]
    every = seen(model, site, text)
    rows = collected(model, heldout=text).gram(site).heldout
    assert HELD_OUT_ROWS / 2 < len(rows) < HELD_OUT_ROWS * 2
    stride = round(sum(map(len, text)) / HELD_OUT_ROWS)
    expected = torch.cat([window[::stride] for window in every.split(len(text[0]))])
    torch.testing.assert_close(rows.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_inverse_is_of_the_damped_gram(family):
    model = loaded(family).model
    for site in sites_of(model):
        gram = collected(model).gram(site)
        diagonal = gram.gram.double().diagonal()
        ridge = PRIOR_TOKENS * (diagonal[diagonal > 0] / gram.tokens).median()
        eye = torch.eye(len(diagonal), dtype=torch.float64)
        damped = gram.gram.double() + ridge * eye
        torch.testing.assert_close(damped @ gram.inverse.double(), eye, rtol=0, atol=1e-4)
        assert gram.inverse is gram.inverse


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_saved_and_read_back_equal(family, tmp_path):
    file = tmp_path / "kept" / "statistics.safetensors"
    statistics = collected(loaded(family).model)
    assert statistics.save(file)
    assert_same(statistics, read_statistics(file), **EXACT)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_what_does_not_fit_in_memory_is_not_saved(tmp_path):
    assert not collected(loaded("gpt2").model, budget=1).save(tmp_path / "statistics.safetensors")
    assert list(tmp_path.glob("*.safetensors")) == []


def test_damaged_or_missing_file_is_none(tmp_path):
    file = tmp_path / "statistics.safetensors"
    assert read_statistics(file) is None
    collected(loaded("gpt2").model).save(file)
    whole = file.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert read_statistics(file) is None
    file.write_bytes(b"\xff" * len(whole))
    assert read_statistics(file) is None


def test_who_else_uses_the_model_is_not_counted():
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


def test_stopping_leaves_no_hook_behind():
    model = loaded("llama").model

    def stop(progress):
        if progress.done == 1:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        collected(model, progress=stop)
    assert not any(module._forward_pre_hooks for module in model.modules())
