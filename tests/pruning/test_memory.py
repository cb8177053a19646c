"""How much memory this process may use."""

import os
import resource
import subprocess
import sys

import pytest

from pruning import memory
from pruning.child_environment import child_environment

GB = 10**9


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """An empty tree of cgroups."""
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    return tmp_path


def write(folder, **values):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("__", ".")).write_text(str(value))


def test_a_container_of_version_2_bounds_both_figures(cgroups):
    stat = f"anon 1\ninactive_file {GB // 2}\nactive_file 0\n"
    write(cgroups, memory__max=2 * GB, memory__current=GB, memory__stat=stat)
    assert memory.total_memory() == 2 * GB
    assert memory.available_memory() == 2 * GB - (GB - GB // 2)


def test_a_container_of_version_1_bounds_both_figures(cgroups):
    stat = "total_inactive_file 0\ntotal_active_file 0\n"
    limits = {"memory__limit_in_bytes": 2 * GB, "memory__usage_in_bytes": GB, "memory__stat": stat}
    write(cgroups / "memory", **limits)
    assert memory.total_memory() == 2 * GB
    assert memory.available_memory() == GB


@pytest.mark.parametrize("value", ["max", str(2**63 - 4096)])
def test_a_container_without_a_limit_changes_nothing(cgroups, value):
    unlimited = memory.total_memory()
    write(cgroups, memory__max=value, memory__current=GB)
    write(cgroups / "memory", memory__limit_in_bytes=value, memory__usage_in_bytes=GB)
    assert memory.total_memory() == unlimited


def test_a_limit_on_the_address_space_counts_too():
    code = (
        "from pruning.memory import total_memory, available_memory; print(total_memory(), available_memory())"
    )
    limit = 3 * GB

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", code], preexec_fn=limited, capture_output=True, text=True, check=True
    )
    total, available = map(int, done.stdout.split())
    assert total == limit
    assert 0 < available < limit


def test_private_memory_leaves_out_what_is_mapped(tmp_path):
    file = tmp_path / "mapped"
    file.write_bytes(bytes(50_000_000))
    code = """
import mmap, os, sys
from pruning.memory import private_memory
before = private_memory(os.getpid())
file = open(sys.argv[1], "rb")
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
assert not any(mapped[start] for start in range(0, len(mapped), 4096))
after_file = private_memory(os.getpid())
own = b"x" * 50_000_000
print(after_file - before, private_memory(os.getpid()) - after_file)
"""
    arguments = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    file_bytes, own_bytes = map(int, done.stdout.split())
    assert file_bytes < 5_000_000
    assert own_bytes > 45_000_000
    assert memory.private_memory(2**22 + 1) == 0


def test_children_get_what_they_need_and_no_secret(monkeypatch):
    secrets = ("HF_TOKEN", "OAUTH_CLIENT_SECRET", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_DB")
    for name in (*secrets, "SECATEUR_API_KEY", "HF_HOME", "SECATEUR_CACHE"):
        monkeypatch.setenv(name, "value")
    environment = child_environment(HF_HUB_OFFLINE="1")
    assert environment.keys() & {*secrets, "SECATEUR_API_KEY"} == set()
    assert environment["PATH"] == os.environ["PATH"]
    assert {"HF_HOME", "SECATEUR_CACHE", "HF_HUB_OFFLINE"} <= environment.keys()
