"""The cache of what was computed for a model: found by value, dropped by text, freed with the model."""

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from pruning import Calibration
from pruning.architectures.anatomy import anatomy_of
from pruning.calibration import cache
from pruning.calibration.block_influence import block_influences
from pruning.calibration.calibrate import StatisticsKey, statistics_of, windows_of
from pruning.calibration.norm_moments import norm_moments
from pruning.calibration.residual_streams import ResidualStreams
from tests.helpers.models import loaded, output_projection

ADAS = Calibration.own("The keeper climbed the stairs and lit the lamp at dusk. " * 60, tokens=256)
BOBS = Calibration.own("A recipe names the text='own' that a model has read. " * 60, tokens=256)
BUNDLED = Calibration(text="story", tokens=256)


@dataclass(frozen=True, kw_only=True)
class LengthKey(cache.CacheKey[str]):
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class OtherKey(cache.CacheKey[str]):
    number: int = 0


class Weighed:
    bytes = 100


@pytest.fixture(autouse=True)
def empty_cache():
    cache.clear()
    yield
    cache.clear()


def test_a_value_is_computed_once_for_each_model_and_key():
    computed = []

    def compute(name):
        computed.append(name)
        return name

    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    for _ in range(2):
        assert cache.cached(one, LengthKey(text_sha256=None), lambda: compute("a")) == "a"
        assert cache.cached(one, LengthKey(text_sha256=None, number=1), lambda: compute("b")) == "b"
        assert cache.cached(one, OtherKey(text_sha256=None), lambda: compute("c")) == "c"
        assert cache.cached(other, LengthKey(text_sha256=None), lambda: compute("d")) == "d"
    assert computed == ["a", "b", "c", "d"]


def test_a_failed_computation_leaves_no_entry():
    model, key = nn.Linear(1, 1), LengthKey(text_sha256=None)
    with pytest.raises(ZeroDivisionError):
        cache.cached(model, key, lambda: 1 / 0)
    assert cache.find(model, key) is None


def test_entries_disappear_with_their_model():
    model, value = nn.Linear(1, 1), nn.Linear(1, 1)
    cache.store(model, LengthKey(text_sha256=None), value)
    references = [weakref.ref(model), weakref.ref(value)]
    del model, value
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_storing_the_newest_drops_only_older_values_of_its_kind_and_model():
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)
    keys = [LengthKey(text_sha256=None, number=number) for number in range(2)]
    cache.store(other, keys[0], "another model's")
    cache.store(model, OtherKey(text_sha256=None), "another kind")
    for key in keys:
        cache.store_newest(model, key, f"value {key.number}")
    assert cache.find(model, keys[0]) is None
    assert cache.find(model, keys[1]) == "value 1"
    assert cache.find(model, OtherKey(text_sha256=None)) == "another kind"
    assert cache.find(other, keys[0]) == "another model's"


def test_bytes_are_those_of_the_values_that_report_them():
    model = nn.Linear(1, 1)
    cache.store(model, LengthKey(text_sha256=None), Weighed())
    cache.store(model, OtherKey(text_sha256=None), "small")
    assert cache.total_bytes() == 100
    cache.clear(OtherKey)
    assert cache.total_bytes() == 100
    cache.clear(LengthKey)
    assert cache.total_bytes() == 0


def test_forgetting_a_text_drops_exactly_the_values_computed_from_it():
    base = loaded("llama")
    anatomy = anatomy_of(base.model.config)
    modules = [output_projection(base.model, 0)]
    values = {}
    for text in (ADAS, BOBS, BUNDLED):
        windows = windows_of(base, text)
        values[text] = (
            block_influences(ResidualStreams(base.model, anatomy, windows)),
            norm_moments(base.model, anatomy, windows),
        )
    bobs_statistics = statistics_of(base, BOBS, modules)
    cache.forget_text(ADAS.sha256)
    assert statistics_of(base, BOBS, modules) is bobs_statistics
    for text, kept in ((ADAS, False), (BOBS, True), (BUNDLED, True)):
        windows = windows_of(base, text)
        influences, moments = values[text]
        assert (block_influences(ResidualStreams(base.model, anatomy, windows)) is influences) == kept
        assert (norm_moments(base.model, anatomy, windows) is moments) == kept
        assert torch.equal(block_influences(ResidualStreams(base.model, anatomy, windows)), influences)
    cache.forget_text(BOBS.sha256)
    assert statistics_of(base, BOBS, modules) is not bobs_statistics


def test_only_the_newest_statistics_of_a_model_are_kept():
    base = loaded("llama")
    modules = [output_projection(base.model, 0)]
    first = statistics_of(base, BUNDLED, modules)
    assert statistics_of(base, BUNDLED, modules) is first
    assert cache.total_bytes() == first.bytes > 0
    second = statistics_of(base, ADAS, modules)
    assert cache.total_bytes() == second.bytes
    assert statistics_of(base, BUNDLED, modules) is not first
    cache.clear(StatisticsKey)
    assert cache.total_bytes() == 0
