"""The bundled questions: enough of each kind, some in other languages, and nothing in two splits."""

import json
import re
import unicodedata
from collections import Counter
from functools import cache
from importlib.resources import files
from itertools import combinations

import pytest

from pruning.errors import PruningError
from pruning.evaluation import panels
from pruning.evaluation.judge import words_of
from pruning.text.questions import KINDS, SPLITS, read

LEAST = {"calibration": 340, "development": 60, "heldout": 60}

COMMON = """
    a an and are as at be by can come comes did do does for from give has have how i in is it its make many
    me my name of on one or tell that the their them there these they this to two use used was were what when
    where which who why will with word write you your called call say three list short sentence
    el la los las de que es un una en cual como le les des du est et qui quelle quel
    der die das den ist wie was ein eine il lo di e o os da do um uma
"""
"""Words that two questions may share without being alike."""

TEMPLATES = """
    capital opposite plural past tense rhymes synonym another python function returns html tag sql query css
    line print code message poem email story letter letters number animal country city color mean means
    reply only count complete year language spoken people speak continent planet currency symbol chemical
    capitale hauptstadt contrario gegenteil dit on francais auf deutsch si dice italiano quanto
    explain explique en une phrase ce qu un difference between group world summarize describe sentences
    degrees celsius temperature water united states room house people usually person up go see break named
    numbers repeat else nothing combien font plus fairy tale girl right after alphabet left summer day now more
    1 2 3
"""
"""Words of the forms that questions take; alone, they do not say what a question is about."""

FORM = set(TEMPLATES.split())


def normalized(text):
    plain = unicodedata.normalize("NFKD", text.casefold())
    return re.sub(r"[\W_]+", " ", "".join(char for char in plain if not unicodedata.combining(char))).strip()


@cache
def content(text):
    return {word for word in words_of(text) if word not in COMMON.split()}


@cache
def splits():
    """The prompts of every split that must not overlap with another: three of questions, two of answers."""
    questions = {split: [question.prompt for question in read(split)] for split in SPLITS}
    answers = {
        f"{split} answers": [item.question for item in panels.answers(split)] for split in panels.SPLITS
    }
    return questions | answers


PAIRS = list(combinations(splits(), 2))


@pytest.mark.parametrize("split", SPLITS)
def test_there_are_enough_questions_and_none_twice(split):
    prompts = [normalized(question.prompt) for question in read(split)]
    assert len(prompts) >= LEAST[split]
    assert [prompt for prompt, count in Counter(prompts).items() if count > 1] == []


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_every_kind_and_no_other(split):
    assert {question.kind for question in read(split)} == set(KINDS)


@pytest.mark.parametrize("split", SPLITS)
def test_about_a_tenth_is_in_other_languages(split):
    kinds = [question.kind for question in read(split)]
    assert 0.08 <= kinds.count("languages") / len(kinds) <= 0.15


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_are_short_and_tidy(split):
    for question in read(split):
        assert question.prompt == question.prompt.strip()
        assert 1 <= len(question.prompt) <= 320, question.prompt


def test_files_have_the_same_form_on_every_line():
    for split in SPLITS:
        text = files("pruning.text.questions").joinpath(f"{split}.jsonl").read_text(encoding="utf-8")
        assert text.endswith("\n")
        assert all(list(json.loads(line)) == ["prompt", "kind"] for line in text.splitlines())


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_no_question_is_in_two_splits(pair):
    one, other = (set(map(normalized, splits()[name])) for name in pair)
    assert one & other == set()


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_no_question_is_in_two_splits_in_other_words(pair):
    one, other = (splits()[name] for name in pair)
    assert [(first, second) for first in one for second in other if are_alike(first, second)] == []


def are_alike(first, second):
    """Whether two questions share three words beyond their form; or all of those, and half of all words."""
    one, other = content(first), content(second)
    shared = (one & other) - FORM
    same = shared and one - FORM == other - FORM and 2 * len(one & other) >= len(one | other)
    return len(shared) >= 3 or bool(same)


def test_questions_in_other_words_are_found():
    assert are_alike("What is the capital city of Kenya?", "Name the capital of Kenya.")
    assert are_alike("What is the plural of wolf?", 'Give me the plural of "wolf".')
    assert are_alike("Why does the cat chase the mouse at night?", "A cat at night may chase a mouse.")
    assert not are_alike("What is the capital of Kenya?", "What is the capital of Peru?")
    assert not are_alike("What is the capital of Kenya?", "On which continent is Kenya?")


@pytest.mark.parametrize("split", SPLITS)
def test_no_question_gives_away_a_judged_answer(split):
    """A prompt must not hold an accepted answer together with what the judged question is about."""
    judged = [item for name in panels.SPLITS for item in panels.answers(name) if item.pattern is None]
    given = []
    for question in read(split):
        words = set(words_of(question.prompt))
        for item in judged:
            subject = content(item.question) - FORM
            accepted = {right for text in item.right for right in words_of(text)} - set(COMMON.split())
            if words & accepted and words & subject and item.kind != "sums":
                given.append((question.prompt, item.question))
    assert given == []


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_no_sum_is_in_two_splits(pair):
    def sums(prompts):
        numbers = [
            tuple(sorted(word for word in words_of(prompt) if word.lstrip("-")[0].isdecimal()))
            for prompt in prompts
        ]
        return {found for found in numbers if len(found) > 1}

    one, other = (sums(splits()[name]) for name in pair)
    assert one & other == set()


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(PruningError, match=r"'train'.*calibration, development, heldout"):
        read("train")
