"""The lessons' texts: whole, with nothing in them that a run does not give."""

import re

import pytest

import pruning
from pruning import Calibration, Recipe
from pruning.architectures.shape import Shape
from pruning.lessons import LESSONS, facts_of, facts_of_shape, shown
from tests.helpers.models import loaded

TEXT = Calibration(tokens=1280, window=64)


@pytest.fixture(scope="module")
def measured():
    """Any model, pruned and measured: the names of the facts do not depend on which."""
    base = loaded("llama")
    step = pruning.Neurons(fraction=0.3, criterion="l1")
    return base, pruning.run(Recipe(base="tiny", calibration=TEXT, steps=[step]), base=base)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.key)
def test_every_number_in_a_text_is_a_fact_of_its_run(lesson, measured):
    base, pruned = measured
    facts = facts_of_shape(Shape.of(base.model.config))
    facts |= facts_of([(run.name, pruned) for run in lesson.runs])
    for run in lesson.runs:
        facts |= {f"{run.name}_model": "a model", f"{run.name}_width_before": 48}
    if lesson.budget:
        facts |= facts_of([("chosen", pruned)]) | {"previewed": 9, "measured": 3, "chosen": "1 layer"}
    text = lesson.notice(shown(facts))
    assert "$" not in text
    for claim in lesson.claims:
        assert claim.fact in facts


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.key)
def test_every_text_is_whole(lesson):
    question, options = lesson.prediction
    assert question.endswith(("?", "…"))
    assert len(options) == 3
    assert lesson.answer < 3
    assert lesson.question.endswith("?")
    assert lesson.claims
    assert re.findall(r"\]\(https://", lesson.sources)
    assert lesson.explanation
    assert lesson.next


def test_lessons_are_numbered_in_order():
    assert [lesson.number for lesson in LESSONS] == list(range(1, 13))


def test_large_and_small_facts_are_readable():
    facts = {"a_perplexity": 2.5e8, "b_ratio": 1.234, "c_share": 0.119, "d_bytes": 269_000_000, "e": 12_345}
    assert list(shown(facts).values()) == ["250 million", "1.23", "11.9 %", "269 MB", "12,345"]
