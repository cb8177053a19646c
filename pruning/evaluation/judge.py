"""Judge short answers by program: whether they are right, and whether they repeat themselves.

No model takes part. The questions and what counts as right are in `pruning/evaluation/panels/`.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

SMALL_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
SMALL = {word: value for value, word in enumerate(SMALL_WORDS.split())}
TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
TENS = {word: 10 * value for value, word in enumerate(TENS_WORDS.split(), start=2)}
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}

NUMBER = r"(?<![\w.])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|(?<!\w)-\d+(?:\.\d+)?|\d+(?:\.\d+)?"
TOKEN = re.compile(rf"{NUMBER}|[^\W\d_][^\W_]*")
MARKER = re.compile(r"^[ \t]*(\d{1,2})[.)](?=\s)", re.MULTILINE)
SUPERSCRIPTS = re.compile("[²³¹⁰⁴-⁹]+")
CONTRACTION = re.compile(r"(?<=\w)['’](?:s|t|d|m|re|ve|ll)\b", re.IGNORECASE)
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

LOOP_LENGTH = 4
LOOP_SHARE = 0.3
SHORTEST_LOOP = 8


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question with what makes an answer to it right.

    Attributes:
        question: What is asked.
        kind: What the question is about. Of `sums`, the last number of an answer counts (see `is_right`).
        split: `development`, to choose by, or `reported`, for figures.
        right: The accepted answers. With a `pattern`, examples that it accepts.
        wrong: Words that make an answer wrong, whatever else it says.
        pattern: A regular expression to find in the answer, in place of the words in `right`.
    """

    question: str
    kind: str
    split: str
    right: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    pattern: str | None = None


def words_of(text: str) -> tuple[str, ...]:
    """Return the words and numbers of a text, in a form in which equal ones are equal.

    Case, accents and punctuation are dropped. Numbers are written in plain digits: "1,000", "1000.0" and
    "thousand" are "1000", and "seven" is "7"; "12cm" is "12" and "cm". A minus sign counts where no word or number
    is in front of it. Powers such as "²" are left out. English contractions lose their end, so that "don't" is
    "don" and has no word "t". The numbers of a numbered list, which has a "1." and a "2." at the beginning of
    lines, are left out.
    """
    tokens = _tokens(text)
    result: list[str] = []
    start = 0
    while start < len(tokens):
        value, end = _number_at(tokens, start)
        result.append(tokens[start] if value is None else _digits(value))
        start = end
    return tuple(result)


def is_right(item: Item, answer: str) -> bool:
    """Whether an answer is right.

    An answer that contains one of the `wrong` words is wrong. Otherwise, if the item has a `pattern`, it
    decides alone: it is searched for in the answer without surrounding space, ignoring case. If it has none,
    one of the accepted answers has to be in the answer as whole words, as `words_of` reads both; and of a sum,
    the last number in the answer that is not in the question has to be accepted, so that neither the numbers of
    the question nor a first guess that is revised count. Spelled numbers are read there only if no others are new,
    because of sentences such as "You add the two".
    """
    words = words_of(answer)
    if any(_contains(words, words_of(wrong)) for wrong in item.wrong):
        return False
    if item.pattern is not None:
        return re.search(item.pattern, answer.strip(), re.IGNORECASE) is not None
    accepted = [words_of(right) for right in item.right]
    if item.kind == "sums":
        in_digits = words_of(" ".join(token for token in _tokens(answer) if _is_number(token)))
        asked = words_of(item.question)
        new = [
            [word for word in some if _is_number(word) and word not in asked] for some in (in_digits, words)
        ]
        return ((new[0] or new[1] or [""])[-1],) in accepted
    return any(_contains(words, right) for right in accepted)


def loops(text: str) -> bool:
    """Whether a text repeats itself: more than 30% of its 4-grams of words occurred before in it.

    Words are runs of letters and digits, with apostrophes inside them, regardless of case; punctuation between
    them is ignored. A text of n words has n − 3 overlapping 4-grams. Of a 4-gram that occurs k times, k − 1 are
    repetitions; the share is the number of repetitions over n − 3. A text of fewer than 8 words never loops.
    """
    words = WORD.findall(text.casefold())
    if len(words) < SHORTEST_LOOP:
        return False
    grams = [tuple(words[start : start + LOOP_LENGTH]) for start in range(len(words) - LOOP_LENGTH + 1)]
    return len(grams) - len(set(grams)) > LOOP_SHARE * len(grams)


def is_good(item: Item, answer: str, ended: bool) -> bool:
    """Whether an answer is right, was ended by the model itself, and does not loop.

    Args:
        item: The question.
        answer: What the model answered.
        ended: Whether the model ended the answer, rather than a limit on its length.
    """
    return ended and is_right(item, answer) and not loops(answer)


def _tokens(text: str) -> list[str]:
    """Split a text into words and numbers as they are written, but for case, accents and contractions."""
    shortened = CONTRACTION.sub("", SUPERSCRIPTS.sub(" ", _without_markers(text)))
    decomposed = unicodedata.normalize("NFKD", shortened)
    plain = "".join(char for char in decomposed if not unicodedata.combining(char))
    return TOKEN.findall(plain.replace("\u2212", "-").casefold())


def _without_markers(text: str) -> str:
    """Drop the numbers of a numbered list, of which there are at least 1 and 2."""
    numbers = {int(marker) for marker in MARKER.findall(text)}
    return MARKER.sub("", text) if {1, 2} <= numbers else text


def _number_at(tokens: Sequence[str], start: int) -> tuple[Decimal | None, int]:
    """Return the number that starts at a token and the index behind it; None and the next if there is none."""
    total, group, end = Decimal(0), None, start
    smallest_scale = 10**12
    in_digits = False
    while end < len(tokens):
        token = tokens[end]
        if token[-1].isdecimal() and _is_number(token):
            if end > start:
                break
            group, in_digits = Decimal(token.replace(",", "")), True
        elif token in SMALL or token in TENS:
            value = SMALL.get(token, TENS.get(token, 0))
            if group is not None and (in_digits or not _may_add(group, value)):
                break
            group = (group or 0) + Decimal(value)
        elif token == "hundred" and (group is None or in_digits or 1 <= group <= 9):
            group, in_digits = (1 if group is None else group) * Decimal(100), False
        elif (
            (scale := SCALES.get(token, 0)) and scale < smallest_scale and (end == start or group is not None)
        ):
            total += (1 if group is None else group) * Decimal(scale)
            group, in_digits, smallest_scale = None, False, scale
        elif token == "and" and end > start and _joins(tokens, end, group, in_digits):
            pass
        else:
            break
        end += 1
    return (None, start + 1) if end == start else (total + (group or 0), end)


def _may_add(group: Decimal, value: int) -> bool:
    """Whether a spelled number below 100 may follow a group such as "three hundred" or "forty"."""
    if group > 0 and group % 100 == 0:
        return value > 0
    return group % 100 >= 20 and group % 10 == 0 and 1 <= value <= 9


def _joins(tokens: Sequence[str], place: int, group: Decimal | None, in_digits: bool) -> bool:
    """Whether an "and" is inside a number, as in "two hundred and six"."""
    follows = place + 1 < len(tokens) and (tokens[place + 1] in SMALL or tokens[place + 1] in TENS)
    return follows and not in_digits and (group is None or (group > 0 and group % 100 == 0))


def _digits(value: Decimal) -> str:
    """Write a number in plain digits, without trailing zeros behind the point."""
    return f"{value.normalize():f}" if value else "0"


def _is_number(word: str) -> bool:
    return word.lstrip("-")[:1].isdecimal()


def _contains(words: Sequence[str], part: Sequence[str]) -> bool:
    """Whether words contain others in a row."""
    return any(tuple(words[at : at + len(part)]) == tuple(part) for at in range(len(words) - len(part) + 1))
