"""A result that lost too much says so, with the choice that would lose less."""

import math

import pytest

from pruning import Channels, Distillation, Heads, Layers, Neurons, Vocabulary, Weights
from pruning.evaluation.answers import AnswersKept
from pruning.evaluation.paired import Share
from pruning.evaluation.perplexity import Perplexity, Quality
from pruning.guard import warn_of_ruin
from pruning.report import Measured, Report
from pruning.text.passages import GENRES


def report(before, after, bits=(1.0, 1.0)):
    def quality(value, bits_per_byte):
        each = Perplexity(value, 100, 512, "text", bits_per_byte)
        return Quality(each, dict.fromkeys(GENRES, each))

    return Report(
        Measured({"mlp": 2}, 8, quality(before, bits[0])), Measured({"mlp": 1}, 4, quality(after, bits[1]))
    )


def kept(share):
    return AnswersKept(Share(0, share, 1, 40), loops=0, diverged=0.5)


@pytest.mark.parametrize(
    ("step", "advice"),
    [
        (Neurons(fraction=0.5, criterion="l1"), "Choose the neurons by activation_prior"),
        (Neurons(fraction=0.5, repair=False), "Switch repair on."),
        (Neurons(fraction=0.5), "Remove less, or distill"),
        (Layers(count=3), "Choose the layers by perplexity"),
        (Layers(count=3, method="perplexity"), "Remove less, or distill"),
        (Heads(queries=1, repair=False), "Switch repair on."),
        (Channels(fraction=0.5, repair=False), "Switch repair on."),
        (Weights(fraction=0.9, criterion="magnitude"), "Choose the weights by wanda"),
    ],
    ids=str,
)
def test_the_warning_names_the_choice_that_would_lose_less(step, advice):
    warning = warn_of_ruin([step], report(10, 10 * math.e**1.5))
    assert "the loss on held-out text rose by 1.5 nats per token" in warning
    assert advice in warning


def test_a_modest_loss_is_not_warned_of():
    assert warn_of_ruin([Neurons(fraction=0.2)], report(10, 26)) is None
    assert warn_of_ruin([Neurons(fraction=0.2)], report(10, 10), kept(0.6)) is None


def test_answers_that_were_lost_are_warned_of_even_if_the_loss_is_small():
    warning = warn_of_ruin([Neurons(fraction=0.2), Distillation(steps=1)], report(10, 11), kept(0.4))
    assert "only 40% of the original's good answers" in warning
    assert warning.endswith("Remove less.")


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_model_without_a_finite_loss_is_ruined(value):
    assert "beyond any measure" in warn_of_ruin([Neurons(fraction=0.9)], report(10, value))


def test_another_vocabulary_is_compared_by_the_byte():
    steps = [Vocabulary(fraction=0.5)]
    assert warn_of_ruin(steps, report(10, 1000, bits=(1.0, 1.1))) is None
    assert warn_of_ruin(steps, report(10, 10, bits=(1.0, 2.0))) is not None


def test_what_was_not_measured_is_not_judged():
    assert warn_of_ruin([Neurons(fraction=0.9)], Report(Measured({}, 0), Measured({}, 0))) is None
