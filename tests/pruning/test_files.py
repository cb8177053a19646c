"""Readers find the old file or the new one, never a part of one, even if the writer fails or is killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pruning
from pruning import files
from pruning.files import cache_folder, discard, new_folder, replacing, temporary_folder

WRITER = """
import sys
from pathlib import Path
from pruning.files import new_folder, replacing

with replacing(Path("file")) as file, new_folder(Path("folder")) as folder:
    file.write_text("half")
    (folder / "part").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def write(context_manager, target, failure=None):
    with context_manager(target) as temporary:
        (temporary / "part" if temporary.is_dir() else temporary).write_text("new")
        if failure:
            raise failure


def visible(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_file_is_created_and_then_replaced(tmp_path):
    target = tmp_path / "deep" / "file"
    for text in ("first", "second"):
        with replacing(target) as temporary:
            temporary.write_text(text)
        assert target.read_text() == text
    assert [path.name for path in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_failing_writer_leaves_the_old_file(tmp_path, failure):
    target = tmp_path / "out" / "file"
    target.parent.mkdir()
    target.write_text("old")
    with pytest.raises(failure):
        write(replacing, target, failure)
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_killed_writer_leaves_the_old_file_and_creates_no_folder(tmp_path):
    (tmp_path / "file").write_text("old")
    command, pipes = [sys.executable, "-c", WRITER], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    env = os.environ | {"PYTHONPATH": str(Path(pruning.__file__).parents[1])}
    with subprocess.Popen(command, **pipes, cwd=tmp_path, env=env) as writer:
        assert writer.stdout.readline() == b"writing\n"
        writer.kill()
    assert (tmp_path / "file").read_text() == "old"
    assert visible(tmp_path) == {"file"}
    assert len(os.listdir(tmp_path)) > 1
    write(replacing, tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"], "the killed writer's temporary folder is removed"
    write(new_folder, tmp_path / "folder")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "part").read_text() == "new"


def test_a_new_folder_appears_only_when_complete(tmp_path):
    target = tmp_path / "deep" / "folder"
    with new_folder(target) as temporary:
        (temporary / "part").write_text("x")
        assert not target.exists()
    assert visible(target) == {"part"}
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_failing_writer_leaves_no_folder(tmp_path, failure):
    with pytest.raises(failure):
        write(new_folder, tmp_path / "out" / "folder", failure)
    assert not os.listdir(tmp_path / "out")


def test_an_existing_file_or_filled_folder_is_not_overwritten(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "part").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(FileExistsError):
            write(new_folder, tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "part").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    write(new_folder, tmp_path / "empty")
    assert visible(tmp_path / "empty") == {"part"}


def test_of_two_writers_the_first_to_finish_wins(tmp_path):
    target = tmp_path / "out" / "folder"
    slower = new_folder(target)
    slower.__enter__()
    write(new_folder, target)
    with pytest.raises(FileExistsError):
        slower.__exit__(None, None, None)
    assert visible(target) == {"part"}
    assert os.listdir(target.parent) == ["folder"]


def test_a_temporary_folder_in_use_is_not_removed(tmp_path):
    with new_folder(tmp_path / "slow") as slow:
        (slow / "part").write_text("x")
        write(new_folder, tmp_path / "fast")
        write(replacing, tmp_path / "file")
        assert (slow / "part").exists()
    assert visible(tmp_path) == {"slow", "fast", "file"}


@pytest.mark.parametrize("locks", [True, False])
def test_abandoned_folders_are_removed_by_lock_or_else_by_age(tmp_path, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(files, "fcntl", None)
    for name, age in ((".secateur-old", 2 * files.ABANDONED_AFTER_SECONDS), (".secateur-new", 10)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / ".secateur-link").symlink_to(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    write(replacing, tmp_path / "file")
    remaining = {"file", "mine", ".secateur-link"}
    assert set(os.listdir(tmp_path)) == (remaining if locks else remaining | {".secateur-new"})


def test_without_a_parent_the_systems_temporary_folder_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
        (folder / "part").write_text("x")
    assert not os.listdir(tmp_path)


def test_files_that_are_already_small_enough_are_kept(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 100)
    (tmp_path / "folder").mkdir()
    files.trim_folder(tmp_path, 100)
    assert visible(tmp_path) == {"file", "folder"}
    files.trim_folder(tmp_path, 99)
    assert visible(tmp_path) == {"folder"}


def test_touching_a_missing_file_creates_nothing(tmp_path):
    files.touch(tmp_path / "none")
    assert not os.listdir(tmp_path)


def test_discarding_removes_a_folder_and_accepts_a_missing_one(tmp_path):
    write(new_folder, tmp_path / "folder")
    for _ in range(2):
        discard(tmp_path / "folder")
        assert not os.listdir(tmp_path)


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", "/somewhere")
    assert str(cache_folder()) == "/somewhere"
    monkeypatch.delenv("SECATEUR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert str(cache_folder()) == "/caches/secateur"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert str(cache_folder()) == "/home/ada/.cache/secateur"


def test_trimming_removes_the_least_recently_used_files(tmp_path):
    for age, name in enumerate(["newest", "middle", "oldest"]):
        file = tmp_path / name
        file.write_bytes(b"x" * 100)
        os.utime(file, (1e9 - age, 1e9 - age))
    files.trim_folder(tmp_path, 300)
    assert len(list(tmp_path.iterdir())) == 3
    files.touch(tmp_path / "oldest")
    files.trim_folder(tmp_path, 250)
    assert {file.name for file in tmp_path.iterdir()} == {"newest", "oldest"}
    files.trim_folder(tmp_path / "none", 0)
