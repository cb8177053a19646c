"""From a calibration text to token windows, and to statistics, cached on disk only if they may be."""

import os
from dataclasses import replace

import pytest
import torch

from pruning import Calibration, Neurons, Recipe, RecipeError, prune
from pruning.calibration.calibrate import HELD_OUT, statistics_of, windows_of
from pruning.files import cache_folder
from pruning.text.passages import GENRES, passage
from pruning.text.tokens import sample_evenly, split_into_windows, token_ids
from tests.helpers.models import WITH_BOS, loaded, matrices, output_projection

SECRET = "The password of the safe is xylophone seventeen. " * 60


def own(tokens=1024, **values):
    return Calibration.own(SECRET, tokens=tokens, **values)


def without_prefix(base, windows):
    skipped = 1 if base.model.config.model_type in WITH_BOS else 0
    return torch.cat([window[skipped:] for window in windows])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_general_mix_reads_equally_many_tokens_of_each_genre_and_holds_out_the_last_eighth(family):
    base = loaded(family)
    windows = windows_of(base, Calibration(tokens=4000, window=100))
    fitting, heldout = [], []
    for genre in GENRES:
        ids = token_ids(base.model, base.tokenizer, passage(genre, "calibration"))
        ids = sample_evenly(ids, 800, 100 - (base.model.config.model_type in WITH_BOS))
        fitting.append(ids[: 800 - 800 // HELD_OUT])
        heldout.append(ids[800 - 800 // HELD_OUT :])
    assert torch.equal(without_prefix(base, windows.fitting), torch.cat(fitting))
    assert torch.equal(without_prefix(base, windows.heldout), torch.cat(heldout))


def test_a_longer_text_is_sampled_evenly_from_beginning_to_end():
    ids = torch.arange(10_000)
    sampled = sample_evenly(ids, 1_000, 100)
    runs = sampled.view(10, 100)
    assert torch.equal(runs - runs[:, :1], torch.arange(100).expand(10, 100))
    starts = runs[:, 0].tolist()
    assert starts == [1000 * number for number in range(10)]
    assert len(sample_evenly(ids, 1_050, 100)) == 1_050
    assert torch.equal(sample_evenly(ids[:900], 1_000, 100), ids[:900])
    assert torch.equal(sample_evenly(ids[:150], 100, 100), ids[:100])


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "llama", "gemma2"])
def test_windows_begin_as_the_tokenizer_begins_a_text(family):
    base = loaded(family)
    windows = windows_of(base, own(window=64))
    every = windows.fitting + windows.heldout
    assert all(len(window) <= 64 for window in every)
    assert [len(window) for window in windows.fitting[:-1]] == [64] * (len(windows.fitting) - 1)
    begins = {int(window[0]) == base.tokenizer.bos_token_id for window in every}
    assert begins == {family in WITH_BOS}
    assert windows.tokens == sum(map(len, every))
    assert sum(int(base.tokenizer.bos_token_id in window[1:]) for window in every) == 0


def test_the_last_window_is_short_and_not_padded():
    base = loaded("llama")
    pieces = split_into_windows(base.tokenizer, torch.arange(10, 35), 11)
    assert [piece.tolist() for piece in pieces] == [
        [0, *range(10, 20)],
        [0, *range(20, 30)],
        [0, *range(30, 35)],
    ]
    assert split_into_windows(base.tokenizer, torch.arange(0), 11) == []


@pytest.mark.parametrize("content", ["", "   ", "Too short.", "a" * 100])
def test_a_text_that_is_too_short_is_refused(content):
    with pytest.raises(RecipeError, match=r"at least 256 are needed\. Use a longer text"):
        windows_of(loaded("gpt2"), Calibration.own(content))


def test_a_users_text_may_be_shorter_than_requested():
    base = loaded("gpt2")
    ids = token_ids(base.model, base.tokenizer, SECRET)
    assert windows_of(base, own(tokens=100_000)).tokens == len(ids)
    assert windows_of(base, own(tokens=512)).tokens == 512


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_windows_are_at_most_as_long_as_the_model_can_read(family):
    base = loaded(family, **{"n_positions" if family == "gpt2" else "max_position_embeddings": 64})
    windows = windows_of(base, own(window=512))
    assert max(map(len, windows.fitting)) == 64
    pruned = prune(Recipe(base="x", calibration=own(), steps=[Neurons(fraction=0.2)]), base)
    assert matrices(pruned.model, 0)[1].shape[1] == 38


def test_a_token_that_the_model_does_not_know_is_named():
    base = loaded("qwen2", vocab_size=320)
    with pytest.raises(RecipeError, match=r"'<\|endoftext\|>'.* Remove it from the text"):
        windows_of(base, Calibration.own(SECRET + "<|endoftext|>", tokens=100_000))


def test_the_digest_differs_between_texts_and_window_lengths():
    base = loaded("gpt2")
    digests = {
        windows_of(base, calibration).digest
        for calibration in (
            own(),
            own(tokens=1025),
            own(window=64),
            Calibration.own(SECRET + "!", tokens=100_000),
            Calibration(text="story", tokens=1024),
        )
    }
    assert len(digests) == 5
    assert windows_of(base, own()).digest == windows_of(base, own()).digest


def test_a_users_text_appears_in_no_record():
    recipe = Recipe(base="x", calibration=own(), steps=[Neurons(fraction=0.2)])
    records = (
        recipe.to_yaml(),
        str(recipe.to_dict()),
        repr(recipe),
        str(recipe),
        recipe.to_python(),
        recipe.model_dump_json(),
        repr(recipe.calibration),
    )
    assert not any("xylophone" in record for record in records)
    assert recipe.calibration.sha256 in recipe.to_yaml()
    nameless = recipe.model_copy(
        update={"calibration": recipe.calibration.model_copy(update={"content": None})}
    )
    assert nameless.digest == recipe.digest
    other = Recipe(base="x", calibration=Calibration.own("another", tokens=1024), steps=recipe.steps)
    assert other.digest != recipe.digest


def test_a_saved_recipe_needs_its_users_text_again():
    base = loaded("gpt2")
    recipe = Recipe(base="x", calibration=own(), steps=[Neurons(fraction=0.2)])
    read_back = Recipe.parse(recipe.to_yaml())
    with pytest.raises(RecipeError, match="Give the same text again"):
        prune(read_back, base)
    with pytest.raises(RecipeError, match="not the text that the recipe was calibrated on"):
        read_back.with_own_text(SECRET + "?")
    again = prune(read_back.with_own_text(SECRET), base).model.state_dict()
    once = prune(recipe, base).model.state_dict()
    assert all(torch.equal(once[name], again[name]) for name in once)


def public(family):
    """Return a small model that stands in for a public one, whose statistics are cached on disk."""
    base = loaded(family)
    return replace(base, source=replace(base.source, public=True))


def cached_files():
    return sorted(cache_folder().rglob("*.safetensors"))


def test_statistics_of_bundled_texts_are_read_from_disk_the_second_time(monkeypatch):
    base = public("gpt2")
    modules = [output_projection(base.model, layer) for layer in (0, 1)]
    calibration = Calibration(text="code", tokens=512)
    first = statistics_of(base, calibration, modules)
    assert len(cached_files()) == 1
    monkeypatch.setattr(base.model, "forward", None)
    monkeypatch.setattr(base.model.base_model, "forward", None)
    again = statistics_of(base, calibration, modules)
    for module in modules:
        assert torch.equal(first.moments[module].square, again.moments[module].square)
        assert torch.equal(first.gram(module).gram, again.gram(module).gram)


def test_damaged_statistics_are_computed_again():
    base = public("gpt2")
    modules = [output_projection(base.model, 0)]
    calibration = Calibration(text="code", tokens=512)
    first = statistics_of(base, calibration, modules)
    (file,) = cached_files()
    file.write_bytes(file.read_bytes()[:1000])
    again = statistics_of(base, calibration, modules)
    assert torch.equal(first.gram(modules[0]).gram, again.gram(modules[0]).gram)
    assert file.stat().st_size > 1000


@pytest.mark.parametrize(
    ("base", "calibration", "save_to_disk"),
    [
        (public, own(), True),
        (loaded, Calibration(text="code", tokens=512), True),
        (public, Calibration(text="code", tokens=512), False),
        (public, Calibration(text="self", tokens=256), True),
    ],
)
def test_other_statistics_are_not_saved_to_disk(base, calibration, save_to_disk):
    base = base("gpt2")
    statistics_of(base, calibration, [output_projection(base.model, 0)], save_to_disk=save_to_disk)
    assert cached_files() == []


def test_large_statistics_are_not_saved_to_disk(monkeypatch):
    monkeypatch.setattr("pruning.calibration.calibrate.LARGEST_ON_DISK", 1)
    base = public("gpt2")
    statistics_of(base, Calibration(text="code", tokens=384), [output_projection(base.model, 0)])
    assert cached_files() == []


def test_a_full_disk_costs_only_the_saving(monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    base = public("gpt2")
    modules = [output_projection(base.model, 0)]
    statistics = statistics_of(base, Calibration(text="code", tokens=512), modules)
    assert statistics.gram(modules[0]).tokens == 512 - 512 // HELD_OUT
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == []


def test_self_generated_texts_depend_on_the_seed():
    base, calibration = loaded("llama"), Calibration(text="self", tokens=256)
    once, again, other = (windows_of(base, calibration, seed).digest for seed in (3, 3, 4))
    assert once == again != other


def test_wikitext_is_read_as_the_loader_returns_it(monkeypatch):
    monkeypatch.setattr("pruning.loading.datasets.wikitext", lambda progress: SECRET)
    base = loaded("gpt2")
    windows = windows_of(base, Calibration(text="wikitext-2", tokens=512))
    assert windows.digest == windows_of(base, own(tokens=512)).digest


def test_the_least_recently_used_statistics_make_room_for_new_ones(monkeypatch):
    base = public("gpt2")
    modules = [output_projection(base.model, 0)]
    for text in ("code", "story"):
        statistics_of(base, Calibration(text=text, tokens=512), modules)
    one, other = cached_files()
    monkeypatch.setattr(
        "pruning.calibration.calibrate.MOST_ON_DISK", one.stat().st_size + other.stat().st_size
    )
    os.utime(other, (1e9, 1e9))
    statistics_of(base, Calibration(text="documentation", tokens=512), modules)
    assert one in cached_files()
    assert other not in cached_files()
    assert len(cached_files()) == 2
