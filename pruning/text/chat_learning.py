"""Learn a chat format from a chat template, by rendering conversations in a limited child process.

A template comes from a stranger, so it never runs in this process. The child renders a fixed list of conversations;
from the first ones the format is learned, and the others, of which it knows nothing, it has to write as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import chain
from typing import TYPE_CHECKING, Any

from pruning.errors import ModelError, RecipeError
from pruning.limited_child import Exhausted, run_limited
from pruning.loading.files import first_line
from pruning.text import template_probe
from pruning.text.chat import CONTENT_RULES, ChatFormat, Message, PlainText
from pruning.text.control_tokens import control_tokens, find_control_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEMORY_BYTES = 500_000_000

CPU_SECONDS = 4
"""A real template takes a tenth of that."""

SECONDS = 60.0
"""How long the child may take on a busy machine."""

DATE = date(2026, 1, 1)
"""The date that a format has, if its template prints one: the same on every day, so that results can be repeated."""

OTHER_DATE = "1987-11-23"

MAX_FORMATS = 100

MAX_TEMPLATE_CHARACTERS = 1_000_000

_QUESTION, _ANSWER, _NEXT, _SYSTEM = "questionA7", "answerK4", "questionR9", "systemW2"

_SPACED = ("  two words\n", "\n\nlines\nof text \n\n", "\t\u00a0tab\u2003", "word ", "\nword")

_THOUGHTS = (
    "<think>\nbecause\n</think>\n\nfine",
    "<think>\n\n</think>\n\n\n none \n",
    "\n<think> so </think>it is",
    "why\n</think> that",
)

_UNSEEN = (
    " Is 3 < 4 & 5 > 2?  {{ 7 * 7 }} {% raw %} \"quoted\" 'text' \\n <b>bold</b>\n",
    "def area(radius):\n    return 3.14 * radius ** 2  # m²\n\n\nprint(area(2))",
    "Größe, Русский, العربية, 中文字符, 👩‍👩‍👧‍👦, e\u0301",
    "\n - one\n - two\n\n| a | b |\n",
    "42",
    "user\nassistant\nsystem\n### Instruction:",
    "\x1f\u2028edges\u2028\x1f",
)

_LONG = "A long text, with a few words. " * 400


@dataclass(frozen=True)
class Probe:
    """A conversation that the template is tried out on.

    Attributes:
        messages: The conversation.
        add_generation_prompt: Whether the model is to answer next.
        date: The date that the template is told, in ISO format; empty for that of the format.
    """

    messages: tuple[Message, ...]
    add_generation_prompt: bool
    date: str = ""


@dataclass(frozen=True)
class Rendered:
    """What became of a probe: its `text`, or why there is none."""

    text: str = ""
    failure: str = ""


class _NotLearned(Exception):
    """There is no chat format; the message is a sentence that says why."""


def learn_chat_format(tokenizer: PreTrainedTokenizerBase, *, date: date = DATE) -> ChatFormat | PlainText:
    """Learn what the chat template of a tokenizer writes around the messages of a conversation.

    Formats are remembered in this process, by template, special tokens and date.

    Args:
        tokenizer: The tokenizer.
        date: The date to write, if the template writes one.

    Returns:
        The format, or why there is none.

    Raises:
        ModelError: The child process that renders the template could not be started.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template and template:
            return PlainText("None of the tokenizer's chat templates is the default one.")
        template = template.get("default")
    if not template:
        return PlainText("The tokenizer has no chat template.")
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE_CHARACTERS:
        return PlainText("The tokenizer's chat template is not a text, or too long a one.")
    if not tokenizer.is_fast:
        return PlainText(f"{type(tokenizer).__name__} does not tell where its tokens stand in a text.")
    variables = json.loads(json.dumps(tokenizer.special_tokens_map, default=str))
    added = sorted((token.content, token.special) for token in tokenizer.added_tokens_decoder.values())
    key = hashlib.sha256(json.dumps([template, variables, added, str(date)]).encode()).hexdigest()
    if key not in _formats:
        learned = _learn(template, variables, tokenizer, date.isoformat())
        if len(_formats) >= MAX_FORMATS:
            _formats.clear()
        _formats[key] = learned
    return _formats[key]


_formats: dict[str, ChatFormat | PlainText] = {}
"""What this process has learned, by the digest of what it was learned from."""


def _learn(
    template: str, variables: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, date: str
) -> ChatFormat | PlainText:
    tokens = control_tokens(tokenizer, [])
    stages = {
        "pieces": _PIECES,
        "dates": tuple(replace(probe, date=OTHER_DATE) for probe in _PIECES),
        "question_rule": tuple(_question_probes()),
        "answer_rule": tuple(_answer_probes(_NEXT)),
        "last_answer_rule": tuple(_answer_probes(None)),
        "system_rule": tuple(Probe(_conversation(_QUESTION, system=content), True) for content in _SPACED),
        "first_question_rule": tuple(
            Probe(_conversation(content, system=_SYSTEM), True) for content in _SPACED
        ),
        "turns": tuple(_turn_probes()),
        "contents": tuple(_content_probes(sorted(tokens)[:8])),
        "system": tuple(_system_probes((*_UNSEEN, *sorted(tokens)[:8]))),
        "again": _PIECES,
    }
    try:
        rendered = _render(template, variables, stages, date)
        learned = _with_rules(_pieces(rendered["pieces"]), stages, rendered)
        for stage, reason in _CHECKS.items():
            if _wrong(learned, stages[stage], rendered[stage]):
                raise _NotLearned(reason)
        if rendered["again"] != rendered["pieces"]:
            raise _NotLearned("The chat template writes different texts for the same conversation.")
    except _NotLearned as reason:
        return PlainText(str(reason))
    if learned.system_before is not None and _wrong(learned, stages["system"], rendered["system"]):
        learned = _without_system(
            learned, "The chat template moves it, or changes it, in some conversations."
        )
    if rendered["dates"] != rendered["pieces"]:
        learned = replace(learned, date=date)
    return _with_stop_tokens(learned, tokenizer)


_CHECKS = {
    "turns": "The chat template rewrites earlier turns of a conversation.",
    "contents": "The chat template writes some messages in another way than others.",
}

_FAILURES = {
    "syntax": "The chat template is not one that Jinja can read.",
    "memory": "The chat template takes too much memory.",
    "forbidden": "The chat template asks for something that its sandbox forbids.",
    "raises": "The chat template refuses an ordinary conversation.",
    "long": "The chat template writes far more than it is given.",
}

_EXHAUSTED = "The chat template takes too much time or memory."


def _conversation(*contents: str, system: str | None = None) -> tuple[Message, ...]:
    """Return messages of the user and the assistant in turns."""
    turns = [
        {"role": "assistant" if number % 2 else "user", "content": content}
        for number, content in enumerate(contents)
    ]
    return tuple(turns if system is None else [{"role": "system", "content": system}, *turns])


_PIECES = (
    Probe(_conversation(_QUESTION), True),
    Probe(_conversation(_QUESTION, _ANSWER, _NEXT), True),
    Probe(_conversation(_QUESTION, _ANSWER), False),
    Probe(_conversation(_QUESTION), False),
    Probe(_conversation(_QUESTION, system=_SYSTEM), True),
)


def _question_probes() -> Iterator[Probe]:
    for content in _SPACED:
        yield Probe(_conversation(content), True)
        yield Probe(_conversation(content, _ANSWER, content), True)


def _answer_probes(following: str | None) -> Iterator[Probe]:
    for content in (*_SPACED, *_THOUGHTS):
        if following is None:
            yield Probe(_conversation(_QUESTION, content), False)
        else:
            yield Probe(_conversation(_QUESTION, content, following), True)


def _system_probes(contents: Sequence[str]) -> Iterator[Probe]:
    for content in contents:
        yield Probe(_conversation(content, system=content), True)
        yield Probe(_conversation(_QUESTION, content, _NEXT, system=content), True)
        yield Probe(_conversation(_QUESTION, _ANSWER, content, _ANSWER, system=content), False)


def _turn_probes() -> Iterator[Probe]:
    words = [f"word{number}" for number in range(12)]
    for turns in (2, 3, 6):
        yield Probe(_conversation(*words[: 2 * turns - 1]), True)
        yield Probe(_conversation(*words[: 2 * turns]), False)
    # The same words again: a turn may be told apart by its place alone.
    yield Probe(_conversation("no", "no", "no", "no", "no"), True)
    yield Probe(_conversation("no", "no", "no", "no"), False)


def _content_probes(tokens: Sequence[str]) -> Iterator[Probe]:
    contents = [*_UNSEEN, _LONG, *tokens, *(f" {token}\n\nand more" for token in tokens)]
    for first, second in zip(contents, chain(contents[1:], contents[:1]), strict=True):
        yield Probe(_conversation(first), True)
        yield Probe(_conversation(first, second, second), True)
        yield Probe(_conversation(first, second), False)
    yield Probe(_conversation(*contents[:7]), True)
    yield Probe(_conversation(_QUESTION, "<think>\n more\n</think>\n\nthen", _NEXT, _ANSWER, _QUESTION), True)


def _render(
    template: str, variables: Mapping[str, Any], stages: Mapping[str, Sequence[Probe]], date: str
) -> dict[str, list[Rendered]]:
    """Render the probes of all stages in one child process.

    Raises:
        _NotLearned: The template cannot be rendered within the limits.
    """
    probes = [
        {
            "messages": probe.messages,
            "add_generation_prompt": probe.add_generation_prompt,
            "date": probe.date or date,
        }
        for probe in chain.from_iterable(stages.values())
    ]
    request = {"template": template, "variables": variables, "probes": probes}
    try:
        answer = run_limited(
            template_probe.__file__,
            content=json.dumps(request).encode(),
            packages=["jinja2", "markupsafe"],
            memory=MEMORY_BYTES,
            cpu_seconds=CPU_SECONDS,
            seconds=SECONDS,
        )
        if "failure" in answer:
            raise _NotLearned(_FAILURES[answer["failure"]])
        results = iter([Rendered(**result) for result in answer["results"]])
        return {stage: [next(results) for _ in of_stage] for stage, of_stage in stages.items()}
    except Exhausted:
        raise _NotLearned(_EXHAUSTED) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"A chat template could not be tried out: {first_line(error)}. Try again."
        ) from error


def _pieces(rendered: Sequence[Rendered]) -> ChatFormat:
    """Return the texts around the messages, from conversations of words that are in no template."""
    alone, several, answered, unanswered, with_system = rendered
    for each in (alone, several, answered):
        if each.failure:
            raise _NotLearned(_FAILURES[each.failure])
    first = _split(alone.text, [_QUESTION])
    if first is None:
        raise _NotLearned("The chat template changes or leaves out what the user writes.")
    middle = _split(several.text, [_QUESTION, _ANSWER, _NEXT])
    last = _split(answered.text, [_QUESTION, _ANSWER])
    if middle is None or last is None:
        raise _NotLearned(_CHECKS["turns"])
    opening, prompt = first
    _, answer_before, turn, _ = middle
    _, last_before, end = last
    if [opening, opening, prompt] != [middle[0], last[0], middle[-1]]:
        raise _NotLearned(_CHECKS["turns"])
    learned = ChatFormat(opening, prompt, answer_before, last_before, turn, end)
    if (question := _split(unanswered.text, [_QUESTION])) and question[0] == opening:
        learned = replace(learned, question_end=question[1])
    system = _split(with_system.text, [_SYSTEM, _QUESTION])
    if with_system.failure:
        return _without_system(learned, "The chat template refuses one.")
    if system is None or system[2] != prompt:
        return _without_system(learned, "The chat template leaves it out, or writes it elsewhere.")
    return replace(learned, system_before=system[0], system_after=system[1])


def _split(text: str, words: Sequence[str]) -> list[str] | None:
    """Return what stands around words in a text; None unless it has each once, in this order."""
    pieces = []
    for word in words:
        before, found, text = text.partition(word)
        if not found:
            return None
        pieces.append(before)
    pieces.append(text)
    return None if any(word in piece for word in words for piece in pieces) else pieces


def _without_system(learned: ChatFormat, reason: str) -> ChatFormat:
    return replace(learned, system_before=None, system_after="", no_system_reason=reason)


def _with_rules(
    learned: ChatFormat, stages: Mapping[str, Sequence[Probe]], rendered: Mapping[str, Sequence[Rendered]]
) -> ChatFormat:
    """Find what becomes of the contents of messages."""
    reasons = {
        "question_rule": "The chat template changes what the user writes.",
        "answer_rule": _CHECKS["turns"],
        "last_answer_rule": "The chat template changes what the assistant writes.",
    }
    for rule, reason in reasons.items():
        better = _fit(learned, rule, stages[rule], rendered[rule])
        if better is None:
            raise _NotLearned(reason)
        learned = better
    if learned.system_before is None:
        return learned
    for rule in ("system_rule", "first_question_rule"):
        better = _fit(learned, rule, stages[rule], rendered[rule])
        if better is None:
            return _without_system(learned, "The chat template changes it.")
        learned = better
    return learned


def _fit(
    learned: ChatFormat, rule: str, probes: Sequence[Probe], rendered: Sequence[Rendered]
) -> ChatFormat | None:
    """Return the format with the first rule by which it writes the probes as they are; None if there is none."""
    for name, function in CONTENT_RULES.items():
        changes: dict[str, Any] = {rule: name}
        candidate = replace(learned, **changes)
        if rule == "last_answer_rule":
            # What the rule itself writes before an answer was found before it.
            prefix = function(_ANSWER).removesuffix(_ANSWER)
            if not learned.last_answer_before.endswith(prefix):
                continue
            candidate = replace(candidate, last_answer_before=learned.last_answer_before.removesuffix(prefix))
        if not _wrong(candidate, probes, rendered):
            return candidate
    return None


def _wrong(learned: ChatFormat, probes: Sequence[Probe], rendered: Sequence[Rendered]) -> bool:
    """Return whether a format writes a probe in another way than the template does."""
    for probe, expected in zip(probes, rendered, strict=True):
        try:
            text = learned.render(probe.messages, probe.add_generation_prompt)
        except RecipeError:
            continue  # It would not write it at all.
        if expected != Rendered(text):
            return True
    return False


def _with_stop_tokens(learned: ChatFormat, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """Find the tokens with which a model ends its answer: the first that follow one."""
    tokens = control_tokens(tokenizer, [learned.turn, learned.end])
    ends: dict[str, str] = {}
    for text in (learned.end, learned.turn):
        place = next(find_control_tokens(text, tokens), None)
        if place and not text[: place.start()].strip():
            ends[text[: place.end()]] = place[0]
    end_of_turn = next((text for text in ends if learned.turn.startswith(text)), "") if len(ends) == 1 else ""
    if not learned.end.startswith(end_of_turn):
        end_of_turn = ""
    return replace(learned, end_of_turn=end_of_turn, stop_tokens=tuple(dict.fromkeys(ends.values())))
