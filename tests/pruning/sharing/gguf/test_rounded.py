"""A base and its pruned model are measured in every type that their shapes allow."""

import math

import pytest
import torch

import pruning
from pruning import Neurons, Recipe, Vocabulary
from pruning.sharing.gguf.rounded import (
    ROUNDED_TYPES,
    TOKENS,
    LeftOut,
    RoundedPoint,
    iter_rounded,
    tokens_read,
)
from tests.helpers.models import loaded, trained

SIZES = {"intermediate_size": 64, "hidden_size": 64}


def cut(base, *steps):
    return pruning.prune(Recipe(base="tiny", steps=steps), base)


def halved(base):
    return cut(base, Neurons(intermediate_size=32, criterion="l2", repair=False))


def test_both_models_are_measured_in_every_type():
    base = loaded("llama", **SIZES)
    pruned = halved(base)
    points = list(iter_rounded(base, pruned))
    assert [(point.is_pruned, point.type) for point in points] == [
        (is_pruned, type) for is_pruned in (False, True) for type in ROUNDED_TYPES
    ]
    original = {point.type: point.bytes for point in points if not point.is_pruned}
    assert original["f16"] == 2 * base.model.num_parameters()
    assert original["q4_0"] == int(base.model.num_parameters() * 4.5 / 8)
    assert all(point.bytes < original[point.type] for point in points if point.is_pruned)
    assert points[0].ratio == pytest.approx(1, abs=1e-3)


def test_a_ratio_is_that_of_the_library_over_the_base_that_is_not_rounded():
    base = loaded("llama", **SIZES)
    pruned = halved(base)
    points = {(point.is_pruned, point.type): point for point in iter_rounded(base, pruned)}
    before, after = (pruning.evaluate(model, tokens=TOKENS).overall.value for model in (base, pruned))
    assert points[True, "f16"].ratio == pytest.approx(after / before, rel=1e-3)


def test_types_whose_blocks_do_not_fit_are_left_out_with_the_reason():
    base = trained()  # Its rows have 48 channels.
    first, second, *points = iter_rounded(base, cut(base, Neurons(intermediate_size=100, repair=False)))
    assert [(each.is_pruned, each.types) for each in (first, second)] == [
        (False, ("q8_0", "q5_0", "q4_0")),
        (True, ("q8_0", "q5_0", "q4_0")),
    ]
    assert "48 (channels)" in first.reason
    assert "100 (neurons)" in second.reason
    assert [(point.is_pruned, point.type) for point in points] == [(False, "f16"), (True, "f16")]


def test_a_model_that_llama_cpp_does_not_know_is_left_out_whole(monkeypatch):
    base = loaded("llama", **SIZES)
    reasons = dict.fromkeys(["bf16", *ROUNDED_TYPES], "It is unknown.")
    monkeypatch.setattr("pruning.sharing.gguf.rounded.gguf_types", lambda shape: reasons)
    items = list(iter_rounded(base, halved(base)))
    assert items == [LeftOut(is_pruned, ROUNDED_TYPES, "It is unknown.") for is_pruned in (False, True)]


def test_experts_in_one_tensor_are_not_measured_as_if_they_were_rounded():
    base = loaded("llama", **SIZES)
    pruned = halved(base)
    pruned.model.experts = torch.nn.Parameter(torch.zeros(2, 32, 32))
    items = list(iter_rounded(base, pruned))
    assert next(item for item in items if isinstance(item, LeftOut)).is_pruned
    assert {item.is_pruned for item in items if isinstance(item, RoundedPoint)} == {False}


def test_models_with_other_vocabularies_are_compared_by_bits_per_byte_on_the_whole_text():
    base = loaded("llama", **SIZES)
    pruned = cut(base, Vocabulary(vocab_size=300))
    assert tokens_read(pruned.recipe.steps) is None
    points = {(point.is_pruned, point.type): point for point in iter_rounded(base, pruned)}
    before, after = (pruning.evaluate(model).overall for model in (base, pruned))
    rise = math.log(before.value) * (after.bits_per_byte / before.bits_per_byte - 1)
    assert points[True, "f16"].ratio == pytest.approx(math.exp(rise), rel=1e-3)
