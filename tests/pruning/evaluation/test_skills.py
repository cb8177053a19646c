"""The panel of skills: its items are sound, and results and comparisons follow from the scores."""

import json
import math
import re
from collections import Counter
from dataclasses import replace
from importlib.resources import files

import pytest

from pruning.errors import Cancelled
from pruning.evaluation.paired import paired_difference, paired_mean_difference, share_of
from pruning.evaluation.skills import (
    LEAST_ITEMS,
    SKILLS,
    SPLITS,
    Answer,
    Item,
    compare_skills,
    measure_skills,
    panel,
    summarize_answers,
)
from tests.helpers.models import loaded, tiny, trained

ITEMS = panel()
MOST_TOKENS = 12_000
"""What 300 items may read."""


def answer(right, wrong, skill="facts", context="A"):
    item = Item(skill, context, " r", tuple(f" w{number}" for number in range(len(wrong))), "reported")
    return Answer(item, (right, *wrong))


def test_every_line_has_exactly_the_keys_of_an_item():
    for skill in SKILLS:
        text = (
            files("pruning.evaluation").joinpath(f"panels/skills/{skill}.jsonl").read_text(encoding="utf-8")
        )
        for line in text.splitlines():
            values = json.loads(line)
            assert values.keys() - {"passage"} == {"context", "right", "wrong", "split"}, line
            assert isinstance(values["wrong"], list)


def test_every_skill_has_a_file_and_every_file_a_skill():
    folder = files("pruning.evaluation").joinpath("panels/skills")
    names = {file.name.removesuffix(".jsonl") for file in folder.iterdir() if file.name.endswith(".jsonl")}
    assert names == set(SKILLS)


@pytest.mark.parametrize("skill", SKILLS)
def test_items_are_well_formed(skill):
    for item in ITEMS:
        if item.skill != skill:
            continue
        assert item.split in SPLITS
        assert 1 <= len(item.wrong) <= 3, item
        assert len(set(item.completions)) == len(item.completions), item
        assert item.context == item.context.strip() != "", item
        # One space, then text on one line.
        assert all(re.fullmatch(r" \S(.*\S)?", text) for text in item.completions), item


@pytest.mark.parametrize("skill", [skill for skill in SKILLS if skill not in ("languages", "code")])
def test_the_right_completion_has_the_right_article(skill):
    for item in ITEMS:
        if item.skill == skill:
            assert not re.search(
                r"\b[Aa] [aeio]\w*|\b[Aa]n [bcdfgjklmnpqrstvwxz]\w*", item.context + item.right
            )


def test_no_item_stands_in_the_panel_twice():
    counts = Counter((item.context, frozenset(item.completions)) for item in ITEMS)
    assert [key for key, count in counts.items() if count > 1] == []
    questions = Counter((item.context, item.right) for item in ITEMS)
    assert [key for key, count in questions.items() if count > 1] == []


def test_no_context_is_in_both_splits():
    development, reported = ({item.context for item in panel(split)} for split in SPLITS)
    assert development & reported == set()


def test_the_items_of_a_passage_stand_in_one_split():
    for passage in {item.passage for item in ITEMS if item.passage}:
        assert len({item.split for item in ITEMS if item.passage == passage}) == 1
        first, *others = [item.context.split("\n")[0] for item in ITEMS if item.passage == passage]
        assert all(other == first for other in others)


def test_a_third_is_for_development_and_the_rest_is_only_reported():
    for skill in SKILLS:
        items = [item for item in ITEMS if item.skill == skill]
        development = sum(item.split == "development" for item in items)
        assert development / len(items) == pytest.approx(1 / 3, abs=0.02), skill
    assert set(panel("development")) | set(panel("reported")) == set(ITEMS)


def test_five_skills_have_enough_reported_items_for_an_interval():
    counts = Counter(item.skill for item in panel("reported"))
    assert sum(count >= LEAST_ITEMS for count in counts.values()) >= 5
    assert min(counts.values()) >= 30
    assert len(ITEMS) > 750
    assert len(SKILLS) == 9


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("extreme", [max, min], ids=["longest", "shortest"])
def test_the_right_completion_is_the_longest_or_shortest_as_often_as_by_chance(skill, extreme):
    surplus = []
    for item in ITEMS:
        if item.skill == skill:
            sizes = [len(text.encode()) for text in item.completions]
            found = sizes[0] == extreme(sizes)
            surplus.append(found / sizes.count(extreme(sizes)) - item.chance)
    assert abs(sum(surplus) / len(surplus)) < 0.1


@pytest.mark.parametrize("split", SPLITS)
def test_guessing_by_length_gets_no_more_than_chance(split):
    items = panel(split)
    chance = sum(item.chance for item in items) / len(items)
    for extreme in (max, min):
        got = 0.0
        for item in items:
            sizes = [len(text.encode()) for text in item.completions]
            got += (sizes[0] == extreme(sizes)) / sizes.count(extreme(sizes))
        assert got / len(items) == pytest.approx(chance, abs=0.03)


@pytest.mark.real
def test_300_items_are_read_in_12000_tokens(smollm2):
    """How many tokens are read depends on the tokenizer alone, so a small model reads them."""
    model = tiny(
        "llama", vocab_size=len(smollm2.tokenizer), max_position_embeddings=1024, num_hidden_layers=1
    )
    reader = replace(smollm2, model=model)
    measured = measure_skills(reader, ITEMS)
    assert measured.overall.excluded == 0
    assert measured.tokens_read * 300 / len(ITEMS) < MOST_TOKENS


@pytest.mark.real
@pytest.mark.slow
def test_the_real_model_is_well_above_chance(smollm2):
    measured = measure_skills(smollm2, panel("development"))
    assert measured.overall.excluded == 0
    assert measured.overall.accuracy > measured.overall.chance + 0.2
    for skill, result in measured.skills.items():
        assert result.accuracy > result.chance, skill


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_gets_an_item_by_the_likelihood_per_byte(family):
    base = loaded(family)
    items = [
        Item("facts", "The dog", " barked at the old man", (" r", " sang a song"), "reported"),
        Item("code", "One, two,", " three", (" a very long end", " four"), "reported"),
    ]
    measured = measure_skills(base, items)
    for item, given in zip(items, measured.answers, strict=True):
        assert given.item == item
        losses = []
        for text in item.completions:
            before = len(base.tokenizer(item.context).input_ids)
            ids = base.tokenizer(item.context + text, return_tensors="pt").input_ids
            chances = base.model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            losses.append(float(chances[before - 1 :].sum()) / len(text.encode()))
        assert given.scores == pytest.approx(losses, abs=1e-4)
        assert given.margin == pytest.approx(losses[0] - max(losses[1:]), abs=2e-4)
        assert given.is_right == (max(losses) == losses[0])


def test_by_default_the_reported_items_are_asked():
    reports = []

    def stop(report):
        reports.append(report)
        raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        measure_skills(loaded("llama"), progress=stop)
    assert reports[0].total == len(panel("reported"))
    assert "questions on skills" in reports[0].text


def test_results_are_by_skill_and_overall():
    items = ITEMS[::15]
    measured = measure_skills(trained(), items)
    assert set(measured.skills) == {item.skill for item in items}
    assert sum(result.items for result in measured.skills.values()) == measured.overall.items == len(items)
    for skill, result in measured.skills.items():
        asked = [given for given in measured.answers if given.item.skill == skill]
        assert result == summarize_answers(asked)
        assert result.accuracy == sum(given.is_right for given in asked) / len(asked)
        assert result.chance == pytest.approx(sum(given.item.chance for given in asked) / len(asked))
        assert result.margin == pytest.approx(sum(given.margin for given in asked) / len(asked))
    plain = json.loads(json.dumps(measured.to_dict()))
    assert plain["skills"].keys() == measured.skills.keys()
    assert plain["overall"]["accuracy"] == measured.overall.accuracy
    assert plain["tokens_read"] == measured.tokens_read > 0


def test_items_that_cannot_be_read_are_left_out_and_counted():
    base = loaded("gpt2", n_positions=64)
    long = [Item("facts", "long " * 100, " a", (" b",), "reported") for _ in range(2)]
    items = [*panel()[:3], *long]
    measured = measure_skills(base, items)
    assert (measured.overall.items, measured.overall.excluded) == (3, 2)
    assert [given.margin is None for given in measured.answers] == [False] * 3 + [True] * 2
    assert measured.overall.chance == pytest.approx(sum(item.chance for item in items[:3]) / 3)
    nothing = measure_skills(base, long).skills["facts"]
    assert (nothing.items, nothing.excluded, nothing.accuracy, nothing.margin) == (0, 2, None, None)


def test_a_tie_is_not_a_right_answer():
    assert not answer(-1.0, [-1.0]).is_right
    assert answer(-0.5, [-1.0, -0.7]).is_right
    assert answer(-0.5, [-1.0, -0.7]).margin == pytest.approx(0.2)


def test_an_interval_needs_75_items():
    few = [answer(-1, [-2])] * 50 + [answer(-2, [-1])] * (LEAST_ITEMS - 51)
    assert summarize_answers(few).interval is None
    enough = summarize_answers([*few, answer(-2, [-1])])
    assert enough.interval == share_of(50, LEAST_ITEMS)
    assert enough.accuracy == 50 / LEAST_ITEMS


def results(answers):
    """Results that hold some answers."""
    empty = measure_skills(loaded("gpt2"), [])
    skills = {given.item.skill: summarize_answers(answers) for given in answers}
    return replace(empty, answers=tuple(answers), skills=skills)


def test_two_models_are_compared_pair_by_pair():
    base = results([answer(-1, [-2])] * 60 + [answer(-2, [-1])] * 40)
    other = results([answer(-1, [-2])] * 40 + [answer(-2, [-1])] * 55 + [answer(-1, [-3])] * 5)
    compared = compare_skills(base, other)
    assert compared.skills["facts"] == compared.overall
    assert compared.overall.items == 100
    assert compared.overall.accuracy == paired_difference(
        [True] * 60 + [False] * 40, [True] * 40 + [False] * 55 + [True] * 5
    )
    assert compared.overall.margin == paired_mean_difference(
        [1.0] * 60 + [-1.0] * 40, [1.0] * 40 + [-1.0] * 55 + [2.0] * 5
    )
    assert compared.overall.describe().startswith("The accuracy is lower: −15.0 points")


def test_a_model_does_not_differ_from_itself():
    base = results([answer(-1, [-2])] * 60 + [answer(-2, [-1])] * 40)
    compared = compare_skills(base, base).overall
    assert not compared.accuracy.excludes_zero
    assert not compared.margin.excludes_zero
    assert compared.describe().startswith("No difference in accuracy beyond chance: 0.0 points")
    assert "No difference in margin beyond chance" in compared.describe()


def test_only_items_that_both_models_answered_are_compared():
    given = [answer(-1, [-2])] * 80
    partly = [replace(one, scores=None) for one in given[:3]] + given[3:]
    assert compare_skills(results(given), results(partly)).overall.items == 77
    few = compare_skills(results(given[:70]), results(given[:70])).overall
    assert (few.items, few.accuracy, few.margin) == (70, None, None)
    assert few.describe() == "Too few items to compare: 70, and 75 are needed."


def test_answers_to_different_items_are_not_compared():
    with pytest.raises(ValueError, match="different items"):
        compare_skills(results([answer(-1, [-2])]), results([answer(-1, [-2], context="B")]))


def test_a_ruined_model_has_no_margin_and_gets_nothing():
    ruined = summarize_answers([answer(math.nan, [math.nan])] * 80)
    assert (ruined.accuracy, ruined.margin) == (0, 0)
    compared = compare_skills(results([answer(-1, [-2])] * 80), results([answer(math.nan, [math.nan])] * 80))
    assert compared.overall.accuracy.high < 0
    assert compared.overall.margin.high < 0
