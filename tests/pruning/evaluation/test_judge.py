"""The judge of short answers, and the panel of questions that it judges."""

import time
from collections import Counter

import pytest

from pruning.errors import PruningError
from pruning.evaluation import panels
from pruning.evaluation.judge import Item, is_good, is_right, loops, words_of
from pruning.text.passages import GENRES, passage

ITEMS = [item for split in panels.SPLITS for item in panels.answers(split)]
IN_WORDS = [item for item in ITEMS if item.pattern is None]
BY_PATTERN = [item for item in ITEMS if item.pattern is not None]


def item(*right, question="What is asked?", kind="facts", wrong=(), pattern=None):
    return Item(
        question=question, kind=kind, split="reported", right=right, wrong=tuple(wrong), pattern=pattern
    )


def test_both_splits_have_as_many_questions_of_each_kind():
    kinds = [Counter(item.kind for item in panels.answers(split)) for split in panels.SPLITS]
    assert kinds[0] == kinds[1]
    assert kinds[0].total() >= 120
    assert set(kinds[0]) == {"facts", "words", "sums", "sense", "code", "instructions", "languages"}


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(PruningError, match=r"'test'.*development, reported"):
        panels.answers("test")


def test_no_question_is_asked_twice():
    assert len({" ".join(words_of(item.question)) for item in ITEMS}) == len(ITEMS)


def test_every_accepted_and_every_wrong_answer_has_words():
    assert all(item.right for item in ITEMS)
    assert all(words_of(text) for item in IN_WORDS for text in (*item.right, *item.wrong))


@pytest.mark.parametrize(
    "sentence", ["{}", "The answer is **{}**.", "That would be “{}”, I think, and nothing else.", "{}\n"]
)
def test_every_accepted_answer_is_right_alone_and_in_a_sentence(sentence):
    answers = [(item, right) for item in IN_WORDS for right in item.right]
    for case in (str, str.upper):
        refused = [right for item, right in answers if not is_right(item, sentence.format(case(right)))]
        assert refused == []


@pytest.mark.parametrize("sentence", ["{}", "\n{}\n"])
def test_the_examples_of_a_pattern_are_right(sentence):
    answers = [(item, right) for item in BY_PATTERN for right in item.right]
    assert [right for item, right in answers if not is_right(item, sentence.format(right))] == []


@pytest.mark.parametrize("echo", ["{0}", "{0} {0}", "You asked: {0}"])
def test_the_question_itself_is_never_right(echo):
    assert [item.question for item in ITEMS if is_right(item, echo.format(item.question))] == []


def test_no_accepted_answer_is_in_its_question():
    for item in IN_WORDS:
        asked = f" {' '.join(words_of(item.question))} "
        assert [right for right in item.right if f" {' '.join(words_of(right))} " in asked] == []


@pytest.mark.parametrize(
    "answer", ["", "I don't know.", "I'm sorry, but I can't help you with that.", "The the of a.", "!?"]
)
def test_an_empty_or_evasive_answer_is_never_right(answer):
    assert [item.question for item in ITEMS if is_right(item, answer)] == []


def test_naming_a_wrong_answer_beside_the_right_one_is_wrong():
    both = [(item, f"{item.right[0]} or {wrong}") for item in ITEMS for wrong in item.wrong]
    assert len(both) > 100
    assert [answer for item, answer in both if is_right(item, answer)] == []


def test_case_accents_and_punctuation_do_not_matter():
    assert is_right(item("São Tomé"), "it is SAO TOME!")
    assert is_right(item("Strasse"), "Es heißt Straße.")
    assert is_right(item("H2O"), "Water is H₂O.")
    assert is_right(item("eau"), "On dit « l’eau ».")
    assert is_right(item("king"), "It is the king's.")


def test_only_whole_words_count():
    assert not is_right(item("ice"), "Mice are nice.")
    assert not is_right(item("T"), "I don't know that.")
    assert not is_right(item("carbon dioxide"), "carbon and then dioxide")
    assert not is_right(item("7"), "It is 77, or 7.5, or 1,007.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,000", "1000"),
        ("1,234,567.50", "1234567.5"),
        ("seven", "7"),
        ("Twenty-one", "21"),
        ("a hundred", "a 100"),
        ("two hundred and six bones", "206 bones"),
        ("one thousand two hundred", "1200"),
        ("three million", "3000000"),
        ("8 billion people", "8000000000 people"),
        ("2.5 million", "2500000"),
        ("one, two, three", "1 2 3"),
        ("nineteen forty-five", "19 45"),
        ("zero one", "0 1"),
        ("bread and butter", "bread and butter"),
        ("five and six", "5 and 6"),
        ("007", "7"),
        ("12.0", "12"),
        ("-5 and −3", "-5 and -3"),
        ("9-4", "9 4"),
        ("12cm", "12 cm"),
        ("$20.", "20"),
        ("5² = 25", "5 25"),
        ("thousands", "thousands"),
        ("hundred thousand", "100000"),
        ("ten hundred", "10 100"),
        ("", ""),
    ],
)
def test_numbers_are_compared_as_numbers(text, words):
    assert " ".join(words_of(text)) == words


def test_the_numbers_of_a_numbered_list_are_no_answers():
    eight = item("2", "3")
    assert not is_right(eight, "1. Mercury\n2. Venus\n3. Earth")
    assert is_right(eight, "1. There are two.\n2. Both are small.")
    assert is_right(eight, "2. That is all.")


def test_of_a_sum_the_last_new_number_counts():
    twelve = item("12", question="What is 7 + 5?", kind="sums")
    assert is_right(twelve, "7 + 5 = 12")
    assert is_right(twelve, "Twelve is the sum of 7 and 5.")
    assert is_right(twelve, "First 7 + 3 = 10, and 10 + 2 = 12.")
    assert is_right(twelve, "7 + 5 = 12. You just add the two, one after the other.")
    assert not is_right(twelve, "7 + 5 = 13")
    assert not is_right(twelve, "7 + 5 = 12, so the answer is 11.")
    assert not is_right(twelve, "7 and 5")


def test_a_pattern_decides_alone_but_for_wrong_words():
    yes = item("Yes.", pattern=r"\A\W*yes\W*\Z", wrong=["maybe"])
    assert is_right(yes, " **YES!** ")
    assert not is_right(yes, "Yes, of course.")
    assert not is_right(item("yes", pattern="yes", wrong=["maybe"]), "yes, maybe")
    capitals = item("HELLO", pattern=r"\b(?-i:HELLO)\b")
    assert is_right(capitals, "It is HELLO.")
    assert not is_right(capitals, "It is hello.")


@pytest.mark.parametrize("item", BY_PATTERN, ids=lambda item: item.question)
def test_patterns_answer_at_once_on_long_texts(item):
    for text in ("def add(" * 300, "the " * 1000, "1 " * 1000, "\n" * 3000, "for name in names: " * 200):
        start = time.perf_counter()
        is_right(item, text)
        assert time.perf_counter() - start < 2


LOOPING = [
    "Paris is the capital. Paris is the capital. Paris is the capital. Paris is the capital.",
    "the the the the the the the the",
    "I think that you should go to the store and I think that you should go to the store and I think so.",
    "1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4",
    "The answer is:\n\nThe answer is:\n\nTHE ANSWER IS:\n\nThe answer is:",
    "Once there was a small cat who lived in a big house. " + "She was very happy and very happy. " * 4,
    "- Eat well.\n- Sleep well.\n" * 4,
]

NOT_LOOPING = [
    "",
    "Paris Paris Paris Paris",
    "Paris is the capital of France. It lies on the Seine, and about two million people live in it.",
    "1. Apples\n2. Pears\n3. Cherries\n4. Plums\n5. Peaches\n6. Apricots\n7. Figs",
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    "3 x 1 = 3\n3 x 2 = 6\n3 x 3 = 9\n3 x 4 = 12\n3 x 5 = 15\n3 x 6 = 18\n3 x 7 = 21",
    "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return a - b\n\n\nprint(add(2, 3))",
    "The opposite of hot is cold, and the opposite of cold is hot.",
    "- A cat is a small animal.\n- A dog is a loyal animal.\n- A cow is a large animal.\n- A hen is a bird.",
]


@pytest.mark.parametrize("text", LOOPING)
def test_repeated_text_loops(text):
    assert loops(text)


@pytest.mark.parametrize("text", NOT_LOOPING)
def test_prose_lists_and_code_do_not_loop(text):
    assert not loops(text)


@pytest.mark.parametrize("genre", GENRES)
def test_no_bundled_passage_loops(genre):
    assert not any(loops(text) for text in passage(genre, "heldout").split("\n\n"))


def test_the_share_that_loops_is_more_than_three_tenths():
    """Ten 4-grams: of the first text three are repeated, of the second four."""
    assert not loops("a b c d e f a b c d e f z")
    assert loops("a b c d e f a b c d e f a")


def test_a_good_answer_is_right_ended_and_does_not_loop():
    paris = item("Paris")
    assert is_good(paris, "It is Paris.", ended=True)
    assert not is_good(paris, "It is Paris.", ended=False)
    assert not is_good(paris, "It is Lyon.", ended=True)
    assert not is_good(paris, "It is Paris. " * 5, ended=True)
