"""Try a tokenizer out in a limited process of its own, which `pruning.limited_child` starts.

A tokenizer.json is a program: its normalizers can turn one letter into a terabyte, and its regular expressions can
take years. This program reads one, checks what it is made of, and lets it encode texts of growing length. It
imports nothing but the standard library and `tokenizers`, so that it starts fast and needs little memory.

Argument: the model's folder; with `-`, one tokenizer.json is read from the standard input. It prints a JSON object
with the reason of a refusal, or null.
"""

import base64
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

JSON_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
MERGES_FILE = "merges.txt"
OTHER_FILES = (*JSON_FILES, MERGES_FILE)
"""The files beside tokenizer.json that are checked. All that decides on a tokenizer is in these."""

MAX_DEPTH = 16
MAX_PARTS = 24
MAX_CONTENT = 16
MAX_GROWTH = 64
MAX_PATTERN = 1_500
MAX_PATTERNS = 6_000
MAX_SETTINGS_BYTES = 2_000_000
MAX_TOKENS = 2_000_000
MAX_TOKEN_CHARACTERS = 4_000
MAX_ADDED = 50_000
MAX_ADDED_CHARACTERS = 2_000_000
MAX_ID = 10_000_000
MAX_REPLACEMENT_BYTES = 200

MAX_TOKENS_PER_CHARACTER = 40
"""One Arabic ligature is 33 bytes long once it is normalized, and a byte may be a token."""

MAX_SPECIAL_TOKENS = 64
MAX_CHARACTERS_PER_TOKEN = 1_000

LENGTHS = (60, 250, 1_000, 4_000, 16_000, 64_000)
"""Each text is encoded at the first four lengths, and at the next ones while time grows faster than length."""
SUSPICIOUS_GROWTH = 1.4
SUSPICIOUS_SECONDS = 0.003
FAST_SECONDS = 0.05
"""A time that is this short says nothing about how the time grows."""
SLOW_SECONDS = 0.4
SHORT, SHORT_SECONDS = 250, 0.05
"""How long a short text may take: before one that is longer takes hours."""
MAX_GROWTH_OF_TIME = 9
"""Texts that are four times as long may take this many times as long, once they take `SLOW_SECONDS`."""
SECONDS_PER_CHARACTER = 1e-4

KINDS = {
    "normalizer": "BertNormalizer Strip StripAccents NFC NFD NFKC NFKD Sequence Lowercase Nmt Precompiled Replace "
    "Prepend ByteLevel",
    "pre_tokenizer": "BertPreTokenizer ByteLevel CharDelimiterSplit Metaspace Whitespace Sequence Split Punctuation "
    "WhitespaceSplit Digits UnicodeScripts FixedLength",
    "post_processor": "Roberta RobertaProcessing Bert BertProcessing ByteLevel Template TemplateProcessing Sequence",
    "decoder": "BPEDecoder ByteLevel WordPiece Metaspace CTC Sequence Replace Fuse Strip ByteFallback",
}
MODELS = ("BPE", "WordPiece", "WordLevel", "Unigram")
ONCE = ("ByteLevel", "Metaspace", "BertNormalizer", "BertPreTokenizer", "Precompiled", "Prepend")
FORBIDDEN = ("gguf_file", "fast_tokenizer_files", "tokenizer_object", "vocab", "merges", "init_inputs")

TEXTS = (
    "The old man walked to the harbor, counted 1,234 boats (and 5 gulls), and said: “It's late!”\n\n",
    "def area(radius):\n\treturn 3.14159 * radius ** 2  # m²\n\n",
    "  \t \n \r\n   x   ",
    "Größe, façade, naïve; Ελληνικά, Русский, العربية, हिन्दी, 中文字符, 日本語, 한국어, 👩‍👩‍👧‍👦🏳️‍🌈 ﷺ ẞ İ é\u0301",
)
"""Mixed texts, repeated to each length."""

CHARACTERS = "aAzZ0 \n\t.-_'/中한éع\u0301👍\u200d\ufdfa\0\x7f�▁Ġ"
"""What long runs are made of: one of each kind that regular expressions know."""

PAIRS = ("ab", "a ", "A1", "a.", " \n", "\r\n", "' ", "aA", "1.", "中a")


class Refused(Exception):
    """The tokenizer is refused; the message says why."""


def parse(text: str, name: str) -> dict[str, Any]:
    """Return the JSON object in a text."""
    try:
        values = json.loads(text)
    except RecursionError:
        raise Refused(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise Refused(f"{name} is not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise Refused(f"{name} is not a JSON object")
    return values


def read(file: Path) -> str:
    """Return the text of a file."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise Refused(f"{file.name} cannot be read as UTF-8 text") from None


def check_other_files(folder: Path) -> None:
    """Check the files beside tokenizer.json: what they hold is added to the tokenizer, or makes one."""
    files = {name: parse(read(folder / name), name) for name in JSON_FILES if (folder / name).is_file()}
    settings = files.get("tokenizer_config.json", {})
    for key in FORBIDDEN:
        if settings.get(key):
            raise Refused(f"tokenizer_config.json sets {key}, which names another tokenizer")
    added = settings.get("added_tokens_decoder") or {}
    require(isinstance(added, dict), "added_tokens_decoder in tokenizer_config.json is not a JSON object")
    for number in added:
        require(
            number.isdecimal() and len(number) < 9 and int(number) <= MAX_ID,
            f"a token has the id {number[:40]!r}",
        )
    check_added([token.get("content") if isinstance(token, dict) else token for token in added.values()])
    check_added(list(files.get("added_tokens.json", {})))
    check_ids(files.get("added_tokens.json", {}).values())
    check_tokens(files.get("vocab.json", {}))
    check_ids(files.get("vocab.json", {}).values())
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        for value in numbers_in(
            {key: value for key, value in files.get(name, {}).items() if key != "model_max_length"}
        ):
            require(abs(value) <= 1e12, f"{name} holds the number {value:.0e}")
    if (folder / MERGES_FILE).is_file():
        longest = max(map(len, read(folder / MERGES_FILE).splitlines()), default=0)
        require(longest <= 2 * MAX_TOKEN_CHARACTERS, f"a line of {MERGES_FILE} is too long")


def numbers_in(values: Any, depth: int = 0) -> Iterator[float]:
    """Yield each number in nested JSON."""
    require(depth < MAX_DEPTH, "it is nested too deeply")
    for value in (
        values.values() if isinstance(values, dict) else values if isinstance(values, list) else (values,)
    ):
        if isinstance(value, (dict, list)):
            yield from numbers_in(value, depth + 1)
        elif isinstance(value, (int, float)):
            yield value


def require(holds: bool, reason: str) -> None:
    """Refuse the tokenizer for a reason unless something holds."""
    if not holds:
        raise Refused(reason)


def check_tokens(tokens: Any) -> None:
    """Bound the number of tokens and the length of each."""
    require(len(tokens) <= MAX_TOKENS, f"it has {len(tokens):,} tokens")
    for token in tokens:
        require(isinstance(token, str), "a token is not text")
        require(len(token) <= MAX_TOKEN_CHARACTERS, f"a token has {len(token):,} characters")


def check_ids(ids: Any) -> None:
    """Refuse numbers of tokens that are none."""
    for number in ids:
        valid = isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= MAX_ID
        require(valid, f"a token has the id {str(number)[:40]!r}")


def check_added(contents: list[Any]) -> None:
    """Bound the tokens that were added to a vocabulary."""
    require(len(contents) <= MAX_ADDED, f"{len(contents):,} tokens were added to it")
    check_tokens(contents)
    require(sum(map(len, contents)) <= MAX_ADDED_CHARACTERS, "the tokens that were added to it are too long")


def check_structure(values: dict[str, Any]) -> set[str]:
    """Check what a tokenizer is made of, and return the characters of its regular expressions."""
    known = {"version", "truncation", "padding", "added_tokens", "model", *KINDS}
    require(
        values.keys() <= known,
        f"it has a part that is not known: {', '.join(sorted(values.keys() - known))[:100]}",
    )
    check_model(values.get("model"))
    added = values.get("added_tokens") or []
    require(
        isinstance(added, list) and all(isinstance(token, dict) for token in added), "added_tokens is damaged"
    )
    check_added([token.get("content") for token in added])
    check_ids(token.get("id", 0) for token in added)
    for setting in ("truncation", "padding"):
        require(
            all(0 <= value <= 1e7 for value in numbers_in(values.get(setting))),
            f"its {setting} is not usable",
        )
    parts = {kind: list(parts_of(values.get(kind))) for kind in KINDS}
    patterns: list[str] = []
    for kind, allowed in KINDS.items():
        settings = json.dumps(values.get(kind))
        require(
            len(settings) <= MAX_SETTINGS_BYTES, f"its {kind} is described by {len(settings):,} characters"
        )
        require(len(parts[kind]) <= MAX_PARTS, f"its {kind} has {len(parts[kind])} parts")
        for part in parts[kind]:
            require(
                part.get("type") in allowed.split(),
                f"its {kind} has the unknown type {str(part.get('type'))[:40]!r}",
            )
            patterns += check_part(part)
        counts = Counter(part["type"] for part in parts[kind])
        for once in ONCE:
            require(counts[once] <= 1, f"its {kind} has {counts[once]} parts of the type {once}")
        growth = 1.0
        for part in parts[kind]:
            growth *= growth_of(part)
        require(growth <= MAX_GROWTH, f"its {kind} makes texts up to {growth:.0e} times longer")
    require(sum(map(len, patterns)) <= MAX_PATTERNS, "its regular expressions are too long")
    return characters_of(patterns)


def check_model(model: Any) -> None:
    """Check the vocabulary of a tokenizer and its merges."""
    require(isinstance(model, dict), "it has no model")
    require(
        model.get("type", "BPE") in MODELS, f"its model has the unknown type {str(model.get('type'))[:40]!r}"
    )
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        check_tokens(vocab)
        check_ids(vocab.values())
    else:
        require(isinstance(vocab, list), "it has no vocabulary")
        require(
            all(isinstance(entry, list) and len(entry) == 2 for entry in vocab), "its vocabulary is damaged"
        )
        check_tokens([entry[0] for entry in vocab])
        require(all(isinstance(entry[1], (int, float)) for entry in vocab), "its vocabulary is damaged")
    merges = model.get("merges") or []
    require(isinstance(merges, list) and len(merges) <= 2 * MAX_TOKENS, "its merges are damaged")
    for merge in merges:
        pair = merge if isinstance(merge, list) else [merge]
        require(len(pair) <= 2 and all(isinstance(part, str) for part in pair), "its merges are damaged")
        require(sum(map(len, pair)) <= MAX_TOKEN_CHARACTERS, "one of its merges is too long")
    rest = {key: value for key, value in model.items() if key not in ("vocab", "merges")}
    require(len(json.dumps(rest)) <= 10_000, "its model has too many settings")
    require(
        all(abs(value) <= 1e9 for value in numbers_in(rest)), "its model holds a number that is too large"
    )


def parts_of(part: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the parts of a sequence of normalizers, pre-tokenizers, post-processors or decoders, nested or not."""
    if part is None:
        return
    require(isinstance(part, dict) and depth < MAX_DEPTH, "its parts are nested too deeply")
    if part.get("type") != "Sequence":
        yield part
        return
    for key in ("normalizers", "pretokenizers", "processors", "decoders"):
        inner = part.get(key) or []
        require(isinstance(inner, list), "its parts are damaged")
        for each in inner:
            yield from parts_of(each, depth + 1)


def check_part(part: dict[str, Any]) -> list[str]:
    """Check one part, and return its regular expressions."""
    for key in ("content", "prepend", "replacement", "prefix", "suffix", "cleanup", "delimiter"):
        value = part.get(key)
        require(
            not isinstance(value, str) or len(value) <= MAX_CONTENT, f"{key} of {part['type']} is too long"
        )
    if part["type"] == "Precompiled":
        check_charsmap(part.get("precompiled_charsmap"))
    pattern = part.get("pattern")
    if not isinstance(pattern, dict):
        return []
    text = next(iter(pattern.values()), None)
    if not isinstance(text, str) or not 0 < len(text) <= MAX_PATTERN:
        raise Refused(f"the pattern of {part['type']} is not usable")
    if "Regex" not in pattern:
        return []
    check_pattern(text)
    return [text]


def check_pattern(pattern: str) -> None:
    """Refuse regular expressions that can take exponential time."""
    plain = re.sub(r"\\\\", "", pattern)
    require(
        not re.search(r"\\[1-9kg]|\(\?[(<&R0-9~](?![=!])|\(\*", plain),
        "a regular expression refers to itself",
    )
    bare = re.sub(r"\[(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]", "x", re.sub(r"\\[^\[\]]", "x", plain))
    require(not re.search(r"\)(?:[*+]|\{)", bare), "a regular expression repeats a group")
    require(not re.search(r"\{\d{4,}|,\d{4,}\}", bare), "a regular expression repeats too often")


def check_charsmap(encoded: Any) -> None:
    """Refuse a table of characters that replaces one by a long text."""
    try:
        table = base64.b64decode(encoded or "", validate=True)
    except (TypeError, ValueError):
        raise Refused("its precompiled_charsmap is damaged") from None
    size = int.from_bytes(table[:4], "little")
    require(not table or size + 4 <= len(table), "its precompiled_charsmap is damaged")
    longest = max(map(len, table[4 + size :].split(b"\0")))
    require(longest <= MAX_REPLACEMENT_BYTES, f"it replaces characters by {longest:,} bytes")


def growth_of(part: dict[str, Any]) -> float:
    """Return how many times longer a part may make a text, by its replacements."""
    if part["type"] != "Replace":
        return 1.0
    pattern = part.get("pattern")
    text = pattern.get("String", "") if isinstance(pattern, dict) else ""
    return max(1.0, len(str(part.get("content", ""))) / max(1, len(str(text))))


def characters_of(patterns: list[str]) -> set[str]:
    """Return the characters that regular expressions name."""
    joined = "".join(patterns)
    escaped = re.findall(r"\\[xuU]\{?([0-9a-fA-F]{2,6})", joined)
    named = {
        chr(int(code, 16)) for code in escaped if int(code, 16) < 0xD800 or 0xE000 <= int(code, 16) < 0x110000
    }
    return {character for character in {*joined, *named} if character not in CHARACTERS}


def probe(text: str, characters: set[str]) -> None:
    """Load a tokenizer and let it encode texts of growing length."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - after the files were checked

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:
        raise Refused(f"it cannot be read ({' '.join(str(error).split())[:200]})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special = len(tokenizer.encode("").ids)
    require(special <= MAX_SPECIAL_TOKENS, f"it adds {special:,} tokens to every text")
    for character in CHARACTERS + "".join(sorted(characters)):
        encode(tokenizer, 4 * character)
    for unit in TEXTS:
        grow(tokenizer, unit, at_least=5)
    for unit in (*CHARACTERS, *PAIRS, *sorted(characters)[:200]):
        grow(tokenizer, unit)


def grow(tokenizer: Any, unit: str, at_least: int = 4) -> None:
    """Encode texts of growing length, and refuse a tokenizer that takes much longer for each character."""
    before = rate = 0.0
    for number, length in enumerate(LENGTHS):
        text = (unit * (length // len(unit) + 1))[:length]
        started = time.process_time()
        encode(tokenizer, text)
        seconds = time.process_time() - started
        slow = before and seconds > SLOW_SECONDS and seconds > MAX_GROWTH_OF_TIME * max(before, FAST_SECONDS)
        allowed = SHORT_SECONDS if length <= SHORT else SLOW_SECONDS + SECONDS_PER_CHARACTER * length
        if slow or seconds > allowed:
            raise Refused(f"encoding {length:,} characters takes it {seconds:.2f} seconds")
        suspicious = seconds > SUSPICIOUS_SECONDS and seconds / length > SUSPICIOUS_GROWTH * rate
        if number + 1 >= at_least and not suspicious:
            return
        before, rate = seconds, seconds / length


def encode(tokenizer: Any, text: str) -> None:
    """Encode a text and decode its beginning, and refuse one that becomes much longer."""
    try:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    except Exception as error:
        raise Refused(f"it cannot encode every text ({' '.join(str(error).split())[:200]})") from None
    require(
        len(ids) <= 100 + MAX_TOKENS_PER_CHARACTER * len(text),
        f"it makes {len(ids):,} tokens of {len(text):,} characters",
    )
    decoded = tokenizer.decode(ids[:100])
    require(
        len(decoded) <= MAX_CHARACTERS_PER_TOKEN * 100, f"it makes {len(decoded):,} characters of 100 tokens"
    )


def main(place: str) -> str | None:
    """Return why a tokenizer is refused, or None."""
    try:
        if place == "-":
            text = sys.stdin.buffer.read().decode("utf-8")
        else:
            check_other_files(Path(place))
            if not (Path(place) / "tokenizer.json").is_file():
                return None
            text = read(Path(place) / "tokenizer.json")
        probe(text, check_structure(parse(text, "tokenizer.json")))
    except Refused as reason:
        return str(reason)
    except MemoryError:
        return "it takes too much memory"
    except Exception as error:
        return f"it cannot be read ({type(error).__name__})"
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            return "it is damaged: the library that reads it stops"
        raise
    return None


if __name__ == "__main__":
    print(json.dumps({"refused": main(sys.argv[1])}), flush=True)
