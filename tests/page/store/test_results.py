"""Results are kept whole or not at all, within a bound, and are made again if they are damaged."""

import json
import os
import signal
import subprocess
import sys
import threading
from datetime import date

import pytest

from page.store import results
from page.store.results import Entry, Key, ResultStore, write_prepared

DAY = date(2026, 11, 26)


def key(number=1, kind="texts"):
    return Key(kind, f"{number:064x}")


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "results", tmp_path / "prepared")


def test_a_result_comes_back_with_the_day_on_which_it_was_made(store):
    assert store.find(key()) is None
    store.keep(key(), {"before": "a", "after": "b"}, DAY)
    assert store.find(key()) == Entry({"before": "a", "after": "b"}, DAY)
    assert store.find(key(2)) is None
    assert store.find(key(kind="cut")) is None


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": 1}',
        json.dumps(
            {"format": 1, "kind": "texts", "key": "0" * 64, "made": "2026-11-26", "value": 1}
        ).encode(),
        json.dumps({"format": 1, "kind": "texts", "key": key().digest, "made": "soon", "value": 1}).encode(),
        json.dumps(
            {"format": 9, "kind": "texts", "key": key().digest, "made": "2026-11-26", "value": 1}
        ).encode(),
        b" " * (results.MAX_ENTRY + 1),
    ],
    ids=range(11),
)
def test_a_damaged_result_is_made_again(store, damage):
    store.keep(key(), 1, DAY)
    (file,) = store.folder.glob("*.json")
    file.write_bytes(damage)
    assert store.find(key()) is None
    assert not file.exists()
    store.keep(key(), 2, DAY)
    assert store.find(key()) == Entry(2, DAY)


def test_the_least_recently_used_result_goes_first(tmp_path):
    store = ResultStore(tmp_path / "results", tmp_path / "prepared", max_bytes=3 * 1150)
    for number in range(3):
        store.keep(key(number), "x" * 1000, DAY)
        os.utime(store.folder / f"{key(number).name}.json", (number, number))
    assert store.find(key(0)) is not None
    store.keep(key(3), "x" * 1000, DAY)
    assert [store.find(key(number)) is not None for number in range(4)] == [True, False, True, True]


def test_a_result_that_is_too_large_is_not_kept(store):
    store.keep(key(), "x" * results.MAX_ENTRY, DAY)
    assert store.find(key()) is None


def test_a_full_disk_costs_nothing_but_the_result(store, files_of_at_most):
    with files_of_at_most(10):
        store.keep(key(), "x" * 1000, DAY)
    assert store.find(key()) is None


def test_prepared_results_are_pinned(tmp_path):
    write_prepared(tmp_path / "prepared" / "one.json", {key(): Entry("prepared", DAY)})
    (tmp_path / "prepared" / "two.json").write_text("damaged")
    store = ResultStore(tmp_path / "results", tmp_path / "prepared", max_bytes=1)
    store.keep(key(2), "other", DAY)
    assert store.find(key()) == Entry("prepared", DAY)
    assert store.find(key(2)) is None


def test_a_prepared_result_that_turns_out_to_be_damaged_is_made_again(tmp_path):
    write_prepared(tmp_path / "prepared" / "one.json", {key(): Entry("damaged", DAY)})
    store = ResultStore(tmp_path / "results", tmp_path / "prepared")
    store.remove(key())
    assert store.find(key()) is None
    store.keep(key(), "made again", DAY)
    assert store.find(key()).value == "made again"


@pytest.mark.parametrize(("kind", "digest"), [("../x", "0" * 64), ("texts", "../../x"), ("", "0" * 64)])
def test_a_key_names_no_other_file(kind, digest):
    with pytest.raises(ValueError, match="not the key"):
        Key(kind, digest)


WRITER = """
import os, sys
from pathlib import Path
from page.store.results import Key, ResultStore
from page.store import results

store = ResultStore(Path(sys.argv[1]), Path(sys.argv[1]) / "none")
key = Key("texts", "1".rjust(64, "0"))
store.keep(key, "old")
write = Path.write_text
def half(self, text, **settings):
    write(self, text[: len(text) // 2], **settings)
    os.kill(os.getpid(), 9)
Path.write_text = half
store.keep(key, "new")
"""


def test_a_writer_that_is_killed_leaves_the_old_result(store):
    ended = subprocess.run([sys.executable, "-c", WRITER, str(store.folder)], timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert store.find(key()).value == "old"
    store.keep(key(), "new", DAY)
    assert store.find(key()).value == "new"
    assert [path.name for path in store.folder.iterdir()] == [f"{key().name}.json"]


def test_results_are_whole_while_others_are_written(store):
    def write(letter):
        for _ in range(20):
            store.keep(key(), letter * 10_000, DAY)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        entry = store.find(key())
        assert entry is None or len(set(entry.value)) == 1
    assert len(store.find(key()).value) == 10_000
