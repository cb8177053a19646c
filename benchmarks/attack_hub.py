"""The Hub of the attacks: repositories that a stranger could publish, on loopback, in a process of its own.

To add a hostile model, add an entry to `models`: the files in which it differs from an honest one.
"""

import io
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import pyarrow
from pyarrow import parquet

from tests.helpers.hub import CLIENT_ENV, LoopbackHub, endpoints, repos
from tests.helpers.models import folder_of

OWNER, OWNER_TOKEN = "ada", "ada-token"
SECRET = "ada/secret"
STALL_SECONDS = 14
"""How long the Hub needs for whatever has "slow" in its name."""

Files = dict[str, bytes]


@cache
def honest() -> Files:
    """Return the files of a small honest model."""
    folder = folder_of("llama")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(file: str, **values: object) -> Files:
    """Return a JSON file of the honest model with other values."""
    return {file: json.dumps(json.loads(honest()[file]) | values).encode()}


def config(**values: object) -> Files:
    """Return a config with other values."""
    return changed("config.json", **values)


def tokenizer(**parts: object) -> Files:
    """Return a tokenizer with other parts."""
    return changed("tokenizer.json", **parts)


def replaced(letter: str, content: str, times: int) -> Files:
    """Return a tokenizer that replaces a letter by a text, several times in a row."""
    step = {"type": "Replace", "pattern": {"String": letter}, "content": content}
    return tokenizer(normalizer={"type": "Sequence", "normalizers": [step] * times})


def split(pattern: str) -> Files:
    """Return a tokenizer that splits texts by a regular expression."""
    part = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = json.loads(honest()["tokenizer.json"])["pre_tokenizer"]
    return tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [part, level]})


def words(count: int) -> list[dict[str, object]]:
    """Return that many added tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return [{"id": 320 + number, "content": f"<word-{number}>", **flags} for number in range(count)]


def card(front_matter: str) -> Files:
    """Return a model card with metadata."""
    return {"README.md": f"---\n{front_matter}\n---\nA model.".encode()}


def aliases(levels: int, key: str) -> str:
    """Return YAML whose value doubles tenfold with each level."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, levels)]
    return "\n".join([*lines, f"license: other\n{key}: *a{levels - 1}"])


def generation(**values: object) -> Files:
    """Return settings for generating text."""
    return {"generation_config.json": json.dumps({"eos_token_id": 1, **values}).encode()}


def models() -> Mapping[str, Files]:
    """Return the hostile models by name: the files in which each differs from an honest one."""
    return {
        "replace-bomb": replaced("A", "A" * 1000, 4),
        "replace-chain": replaced("a", "a" * 16, 12),
        "replace-space": replaced(" ", " " * 12, 16),
        "quadratic": split("[a-z ]+(?:Ω|ω)"),
        "exponential": split("(?:[a-z ]+)+Ω"),
        "panic": tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAAgICAgP////8="}),
        "added-words": tokenizer(added_tokens=words(300_000)),
        "many-layers": config(num_hidden_layers=4000),
        "countless-layers": config(num_hidden_layers=10**9),
        "huge-vocabulary": config(vocab_size=10**9),
        "wrong-types": config(num_hidden_layers="3", hidden_size=[32], head_dim={"a": 1}, rope_theta=None),
        "not-numbers": config(hidden_size=float("nan"), intermediate_size=float("inf"), vocab_size=-1),
        "nested-config": {"config.json": b'{"a":' * 200_000 + b"1" + b"}" * 200_000},
        "long-config": config(layer_types=["full_attention"] * 60_000),
        "license-bomb": card(aliases(8, "license_name")),
        "license-link": card(aliases(9, "license_link")),
        "heavy-yaml": card("tags:\n" + "- {a: [b, c], d: 'e'}\n" * 45_000),
        "nested-yaml": card("license: " + "[" * 50_000),
        "recipe-bomb": {"recipe.yaml": aliases(9, "kept_layers").encode()},
        "texts": {f"notes-{number}.txt": bytes([number]) * 5_000_000 for number in range(40)},
        "many-beams": generation(num_beams=4000, num_return_sequences=4000),
        "odd-generation": generation(
            stop_strings=["a"],
            bad_words_ids=[[5]],
            cache_implementation="quantized",
            penalty_alpha=0.6,
            top_k=4,
        ),
        "code": changed(
            "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "mallory/code--tok.Evil"]}
        ),
        "code-in-config": config(auto_map={"AutoModelForCausalLM": "mallory/code--model.Evil"}),
        **{f"slow-{number}": {} for number in range(40)},
    }


def parquet_bomb() -> bytes:
    """Return a small Parquet file with one row of 100,000,000 characters."""
    file = io.BytesIO()
    table = pyarrow.table({"text": ["a" * 100_000_000]})
    parquet.write_table(table, file, compression="zstd", use_dictionary=False)
    return file.getvalue()


class HostileHub(LoopbackHub):
    """The loopback Hub, with the extra endpoints that a signed-in page calls."""

    def call(self, method: str, url: Any, headers: Any, body: bytes) -> Any:
        result = super().call(method, url, headers, body)
        return result | {"avatarUrl": ""} if url.path == "/api/whoami-v2" else result


def _serve(connection: Connection) -> None:
    """Serve the Hub until the other end hangs up."""
    # What the real Hub does once, when a repository is pushed: hash the files, and read the card.
    entries: dict[tuple[str, int], dict[str, Any]] = {}
    plain: Callable[[str, bytes], dict[str, Any]] = repos.entry

    def entry(path: str, content: bytes) -> dict[str, Any]:
        key = (path, id(content))
        if key not in entries:
            entries[key] = plain(path, content)
        return entries[key]

    repos.entry = endpoints.entry = entry
    repos.front_matter = lambda _: {}
    with HostileHub() as hub:
        hub.add_user(OWNER_TOKEN, OWNER)
        hub.add_model("honest/small", honest())
        hub.add_model(SECRET, honest(), private=True)
        for name, files in models().items():
            hub.add_model(f"mallory/{name}", honest() | files)
        hub.add_dataset("mallory/bomb", {"data/train-00000-of-00001.parquet": parquet_bomb()})
        hub.fail("slow", stall=STALL_SECONDS, times=-1)
        connection.send(hub.url)
        with suppress(EOFError):
            connection.recv()


@contextmanager
def hostile_hub() -> Iterator[dict[str, str]]:
    """Serve the Hub, and yield the environment variables of a page that uses it."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        yield CLIENT_ENV | {"HF_ENDPOINT": here.recv(), "HF_TOKEN": OWNER_TOKEN}
    finally:
        here.close()
        process.join(10)
        process.kill()


__all__ = ["OWNER", "SECRET", "hostile_hub", "models"]
