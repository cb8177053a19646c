"""Folders for what took minutes to make: bounded, by owner, whole or not at all."""

import os

import pytest

from page.workers.storage import Storage
from pruning import PruningError

SIZE = 1000


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "kept", 10 * SIZE)


def put(storage, key, owner="", size=SIZE, used_at=None):
    with storage.new(key, owner) as folder:
        (folder / "file").write_bytes(bytes(size))
    if used_at is not None:
        os.utime(storage.find(key, owner), (used_at, used_at))


def test_what_is_everyones_is_found_by_everyone(storage):
    put(storage, "model")
    assert storage.find("model", "ada:1") == storage.find("model", "bob:2") == storage.find("model", "")


def test_what_is_one_owners_is_found_by_no_other(storage):
    put(storage, "model", "ada:1")
    assert storage.find("model", "ada:1") is not None
    assert all(storage.find("model", owner) is None for owner in ("", "ada:2", "bob:1", "ad"))


def test_an_owner_is_forgotten_with_all_accounts_and_nobody_else(storage):
    for owner in ("", "ada:1", "ada:2", "adam:1", "bob:1"):
        put(storage, "model", owner)
    storage.forget("ada")
    left = [
        owner for owner in ("ada:1", "ada:2", "adam:1", "bob:1") if storage._path("model", owner).exists()
    ]
    assert left == ["adam:1", "bob:1"]
    storage.forget("nobody")


def test_the_least_recently_used_leaves_first(storage):
    for number in range(10):
        put(storage, str(number), owner=f"ada:{number % 2}" if number % 3 else "", used_at=1000 + number)
    os.utime(storage.find("0", ""), (2000, 2000))
    put(storage, "new", size=2 * SIZE)
    found = [number for number in range(10) if storage.find(str(number), f"ada:{number % 2}")]
    assert found == [0, 3, 4, 5, 6, 7, 8, 9]
    assert storage.bytes <= storage.max_bytes


def test_nothing_is_left_of_an_entry_that_failed(storage, tmp_path):
    def fail():
        with storage.new("model", "ada:1") as folder:
            (folder / "file").write_bytes(bytes(SIZE))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert storage.find("model", "ada:1") is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_first_of_two_writers_wins(storage):
    with storage.new("model", "") as first, storage.new("model", "") as second:
        (first / "file").write_text("first")
        (second / "file").write_text("second")
    assert (storage.find("model", "") / "file").read_text() == "second"


@pytest.mark.parametrize("size", [11 * SIZE, 10**18])
def test_what_does_not_fit_is_refused_before_it_is_written(storage, size):
    with pytest.raises(PruningError, match=r"needs .* GB of disk space"):
        storage.make_room(size)


def test_room_is_made_before_writing(storage):
    for number in range(10):
        put(storage, str(number))
    storage.make_room(5 * SIZE)
    assert storage.bytes <= 5 * SIZE


def test_the_place_of_an_entry_cannot_be_guessed(storage):
    put(storage, "model")
    other = Storage(storage.folder, storage.max_bytes)
    assert other.find("model", "") is None
