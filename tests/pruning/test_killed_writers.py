"""A process that is killed while it writes leaves a whole file or folder, or none."""

import json
import os

import pytest

from tests.helpers.forker import forking_process

KILLS = int(os.environ.get("SECATEUR_KILLS", "60"))


@pytest.fixture
def forker(tmp_path):
    with forking_process(tmp_path / "home") as process:
        yield process


def test_no_writer_that_is_killed_leaves_damage(forker, tmp_path):
    forker.order(order="kill_writers", kills=KILLS, folder=str(tmp_path))
    results = forker.read()
    print(f"\n{json.dumps(results)}")
    assert results.keys() == {"saved model", "converted weights", "statistics", "distillation", "quality"}
    assert sum(result["kills"] for result in results.values()) == KILLS
    for name, result in results.items():
        assert result["damaged"] == [], name
        assert result["left"] == [], name
    # A small file is written too fast for every writer to be interrupted.
    assert sum(result["interrupted"] for result in results.values()) > KILLS / 10
