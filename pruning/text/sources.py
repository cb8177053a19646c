"""The user's own text in whatever form it is given: a file, texts, conversations, rows of a dataset, or tokens."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from pruning.errors import RecipeError
from pruning.loading import datasets
from pruning.progress import Reporter, silent

HUB = "hub:"
"""How the address of a dataset on the Hub begins: `hub:OWNER/NAME[:COLUMN]`."""

Kind = Literal["text", "messages", "tokens"]
"""What a content holds: a text; or on each line, as JSON, a conversation, or a list of token ids."""

AnySource = str | os.PathLike[str] | Iterable[Any]
"""A file, `hub:OWNER/NAME[:COLUMN]`, texts, conversations, rows of a dataset, or batches of tokens."""

CHARACTERS_PER_TOKEN = 12
"""How much is read of what has no end: more than any tokenizer needs for a token of ordinary text."""

MAX_ROWS = 100_000
"""The most rows, batches or conversations that are read."""


@dataclass(frozen=True)
class Content:
    """What was read.

    Attributes:
        text: The text, or a line of JSON for each conversation or row of tokens.
        kind: Which of these it is.
        address: Where it comes from: the name of a file, or the address of a dataset; None if it was in memory.
    """

    text: str
    kind: Kind = "text"
    address: str | None = None


def read_text(file: Path) -> str:
    """Return the text of a file as it is, line ends included.

    Raises:
        RecipeError: If the file cannot be read or is not UTF-8 text.
    """
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecipeError(f"{file} cannot be read: {reason}.") from None


def read_source(source: AnySource, tokens: int, progress: Reporter = silent) -> Content:
    """Read the user's own text.

    Args:
        source: A text file; a JSONL file or rows with `text`, `prompt` and `completion`, or `messages`; a dataset on
            the Hub as `hub:OWNER/NAME[:COLUMN]`; texts; a conversation or several, as lists of messages with `role` and
            `content`; or batches of token ids, as a `DataLoader` yields them.
        tokens: About how many tokens are needed: of what may have no end, no more is read.
        progress: Called while a dataset is downloaded.

    Raises:
        RecipeError: It is empty, or of no known form.
        ModelError: The dataset cannot be read.
    """
    if isinstance(source, str) and source.startswith(HUB):
        return _read_hub(source, tokens, progress)
    if isinstance(source, str | os.PathLike):
        return _read_file(Path(source))
    if isinstance(source, Mapping):
        raise RecipeError(
            f"The calibration text is a {type(source).__name__} with the parts {', '.join(map(str, source))[:100]}. "
            "Give one of them."
        )
    if not isinstance(source, Iterable):
        raise RecipeError(f"A {type(source).__name__} is not a calibration text. Give a file, texts or rows.")
    return _read_items(iter(source), tokens, None)


def _read_hub(address: str, tokens: int, progress: Reporter) -> Content:
    name, _, column = address.removeprefix(HUB).partition(":")
    kept: list[str] = []
    length = 0
    for row in datasets.dataset_texts(name, column or "text", progress=progress):
        if row.startswith("[{") and len(row) >= datasets.MAX_CHARACTERS:
            continue  # A conversation that was cut off is not one.
        kept.append(row)
        length += len(row)
        if length >= tokens * CHARACTERS_PER_TOKEN:
            break
    items: Iterable[Any] = kept
    if kept and kept[0].startswith("[{"):  # A column of conversations.
        items = [_parse(row, f"Row {number} of {name}") for number, row in enumerate(kept, start=1)]
    return _read_items(iter(items), tokens, address)


def _read_file(file: Path) -> Content:
    text = read_text(file)
    if file.suffix.lower() not in (".jsonl", ".ndjson"):
        return Content(text, "text", file.name)
    lines = ((number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip())
    rows = (_parse(line, f"Line {number} of {file.name}") for number, line in lines)
    # A file has an end, and all of it is read, as of a text file.
    return _read_items(rows, MAX_ROWS * 1_000, file.name)


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise RecipeError(f"{place} is not JSON. Write one object on each line.") from None


def _read_items(items: Iterator[Any], tokens: int, address: str | None) -> Content:
    """Read texts, rows, conversations or batches: the first one says which."""
    first = next(items, None)
    if first is None:
        raise RecipeError("The calibration text is empty. Give one with something in it.")
    items = chain([first], islice(items, MAX_ROWS - 1))
    for kind, fits, read in _FORMS:
        if fits(first):
            return Content(read(items, tokens), kind, address)
    raise RecipeError(
        f"A calibration text of {type(first).__name__} is not known. Give texts, rows with text, prompt and completion "
        "or messages, conversations, or batches of token ids."
    )


def _is_message(item: object) -> bool:
    return isinstance(item, Mapping) and "role" in item


def _is_conversation(item: object) -> bool:
    if isinstance(item, Mapping):
        return "messages" in item or {"prompt", "completion"} <= item.keys()
    return isinstance(item, list | tuple) and bool(item) and _is_message(item[0])


def _is_text(item: object) -> bool:
    if isinstance(item, Mapping):
        return isinstance(item.get("text"), str | list)
    return isinstance(item, str) or (isinstance(item, list | tuple) and bool(item) and _is_text(item[0]))


def _is_batch(item: object) -> bool:
    return _ids_of(item) is not None


def _read_texts(items: Iterator[Any], tokens: int) -> str:
    texts: list[str] = []
    length = 0
    for number, item in enumerate(items, start=1):
        values = item.get("text") if isinstance(item, Mapping) else item
        for value in values if isinstance(values, list | tuple) else [values]:
            value = value.get("text") if isinstance(value, Mapping) else value
            if not isinstance(value, str):
                raise RecipeError(
                    f"Row {number} of the calibration text has no text. Give one, or leave it out."
                )
            texts.append(value)
            length += len(value)
        if length >= tokens * CHARACTERS_PER_TOKEN:
            break
    return "\n\n".join(texts)


def _read_single_conversation(items: Iterator[Any], tokens: int) -> str:
    return _read_conversations(iter([list(items)]), tokens)


def _read_conversations(items: Iterator[Any], tokens: int) -> str:
    lines: list[str] = []
    length = 0
    for number, item in enumerate(items, start=1):
        messages = _messages_of(item)
        if messages is None:
            raise RecipeError(
                f"Conversation {number} of the calibration text is not a list of messages with role and content."
            )
        lines.append(json.dumps(messages, ensure_ascii=False))
        length += sum(len(message["content"]) for message in messages)
        if length >= tokens * CHARACTERS_PER_TOKEN:
            break
    return "\n".join(lines)


def _messages_of(item: Any) -> list[dict[str, str]] | None:
    """Return the messages of a row or a list, or None if they are not what they should be."""
    if isinstance(item, Mapping):
        if "messages" in item:
            item = item["messages"]
        else:
            parts = (("user", item.get("prompt")), ("assistant", item.get("completion")))
            item = [message for role, part in parts for message in _as_messages(role, part)]
    if not isinstance(item, list | tuple) or not item:
        return None
    messages = [
        {"role": str(message["role"]), "content": _content_of(message.get("content"))}
        for message in item
        if _is_message(message)
    ]
    return messages if len(messages) == len(item) and all(each["content"] for each in messages) else None


def _as_messages(role: str, part: Any) -> list[Any]:
    return [{"role": role, "content": part}] if isinstance(part, str) else list(part or [])


def _content_of(content: Any) -> str:
    """Return the text of a message, also if it is given in parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


def _read_batches(items: Iterator[Any], tokens: int) -> str:
    lines: list[str] = []
    count = 0
    for number, item in enumerate(items, start=1):
        rows = _ids_of(item)
        if rows is None:
            raise RecipeError(f"Batch {number} of the calibration text holds no token ids.")
        for row in rows:
            if row and count < tokens:
                lines.append(json.dumps(row))
                count += len(row)
        if count >= tokens:
            break
    return "\n".join(lines)


def parse_conversations(text: str) -> Iterator[list[dict[str, str]]]:
    """Yield the conversations of a content of the kind `messages`.

    Raises:
        RecipeError: It holds something else.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"Conversation {number} of the calibration text"
        if (messages := _messages_of(_parse(line, place))) is None:
            raise RecipeError(f"{place} is not a list of messages with role and content.")
        yield messages


def parse_rows(text: str) -> Iterator[list[int]]:
    """Yield the rows of a content of the kind `tokens`.

    Raises:
        RecipeError: It holds something else.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"Row {number} of the calibration text"
        rows = _as_rows(_parse(line, place))
        if rows is None or not rows[0]:
            raise RecipeError(f"{place} is not a list of token ids.")
        yield rows[0]


def _ids_of(item: Any) -> list[list[int]] | None:
    """Return the token ids of a batch or a row, without padding; None if it holds none."""
    mask = None
    if hasattr(item, "keys") and "input_ids" in item:
        item, mask = item["input_ids"], item.get("attention_mask")
    elif isinstance(item, list | tuple) and item and getattr(item[0], "ndim", 0) > 1:
        item = item[0]  # A TensorDataset gives its tensors side by side: the ids come first.
    rows = _as_rows(item)
    if rows is None or mask is None:
        return rows
    kept = _as_rows(mask) or []
    return [
        [number for number, keep in zip(row, marks, strict=True) if keep]
        for row, marks in zip(rows, kept, strict=True)
    ]


def _as_rows(values: Any) -> list[list[int]] | None:
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, list | tuple) and values and isinstance(values[0], int):
        values = [values]
    if not isinstance(values, list | tuple) or not values:
        return None
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in values]
    if all(isinstance(row, list | tuple) and all(type(number) is int for number in row) for row in rows):
        return [list(row) for row in rows]
    return None


_FORMS: tuple[tuple[Kind, Any, Any], ...] = (
    ("messages", _is_message, _read_single_conversation),
    ("messages", _is_conversation, _read_conversations),
    ("tokens", _is_batch, _read_batches),
    ("text", _is_text, _read_texts),
)
"""What a calibration text may consist of: how its first item is recognized, and how all of them are read."""
