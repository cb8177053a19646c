"""Broken networks, killed processes: what is published or kept is whole, or it is not there.

Run as a program, this file is the process that gets killed: it has imported everything once, and forks.
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import pruning
from pruning.distillation import checkpoint
from pruning.files import PREFIX, cache_folder
from pruning.loading import files, offline

KILLS = int(os.environ.get("SECATEUR_KILLS", "200"))
CUT = pruning.Recipe(base="tiny", steps=[pruning.Neurons(fraction=0.25, criterion="l2", repair=False)])

FORKING = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(Path(pruning.__file__).parents[1]),
}

PASSING = {
    "dropped": {"drop": True},
    "answer lost": {"kept": True},
    "408": {"status": 408},
    "429": {"status": 429},
    "429, wait": {"status": 429, "headers": {"Retry-After": "3"}},
    "429, window": {"status": 429, "headers": {"RateLimit": '"api";r=0;t=3'}},
    "500": {"status": 500},
    "503": {"status": 503},
}
REFUSALS = {401: "Sign in again", 403: "no right", 409: "Choose another name", 413: "too large"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from tests.helpers.models import loaded

    return pruning.run(CUT, base=loaded("llama"), evaluate=False).save(
        tmp_path_factory.mktemp("saved") / "cut"
    )


@pytest.fixture
def pauses(monkeypatch):
    """How long the client and the product waited for the Hub, in seconds; no time passes."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture
def signed_in(hub, pauses, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "ada-token")
    return hub


def is_whole(hub, repo_id, folder):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return repo_id in hub.repos and hub.repos[repo_id].files.items() >= files.items()


def afresh(hub):
    """Forget what was published; the next publisher sends everything."""
    hub.faults.clear()
    hub.repos.clear()
    hub.lfs.clear()
    hub.requests.clear()


def refused(folder, repo_id="ada/cut", **options):
    with pytest.raises(pruning.SavingError) as error:
        pruning.publish(folder, repo_id, **options)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 450
    return message


def requests_of_a_publication(hub, folder):
    """ "METHOD path" of all that is asked of the Hub when nothing goes wrong."""
    pruning.publish(folder, "ada/cut")
    asked = [f"{method} {path}" for method, path, _ in hub.requests]
    afresh(hub)
    return asked


def test_a_publication_asks_for_what_is_tested_here(signed_in, saved):
    asked = requests_of_a_publication(signed_in, saved)
    for part in (
        "whoami",
        "/create",
        "validate-yaml",
        "/preupload/",
        "/batch",
        "PUT ",
        "/verify",
        "/commit/",
    ):
        assert [request for request in asked if part in request], part
    assert 9 <= len(asked) < 16


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_outlived_at_every_request(signed_in, saved, fault):
    hub = signed_in
    for turn in range(len(requests_of_a_publication(hub, saved))):
        hub.fail(".", after=turn, **PASSING[fault])
        assert pruning.publish(saved, "ada/cut") == f"{hub.url}/ada/cut"
        assert is_whole(hub, "ada/cut", saved)
        assert len(hub.repos["ada/cut"].history) == 2, "created and committed once"
        assert hub.faults[0].times == 0, "the fault never struck"
        afresh(hub)


@pytest.mark.parametrize("fault", ["dropped", "answer lost", "429", "503"])
def test_a_hub_that_dies_at_any_request(signed_in, saved, fault):
    hub = signed_in
    for turn in range(len(requests_of_a_publication(hub, saved))):
        hub.fail(".", after=turn, times=10**6, **PASSING[fault])
        message = refused(saved)
        # A Hub that does not answer cannot be asked to remove anything: the message names what may exist.
        if hub.repos:
            assert "ada/cut may exist" in message
            assert is_whole(hub, "ada/cut", saved) or not set(hub.repos["ada/cut"].files) - {".gitattributes"}
        hub.faults.clear()
        assert pruning.publish(saved, "ada/cut")
        assert is_whole(hub, "ada/cut", saved)
        afresh(hub)


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_at_any_request_is_final_and_leaves_nothing(signed_in, saved, status):
    hub = signed_in
    for turn, request in enumerate(requests_of_a_publication(hub, saved)):
        hub.fail(".", after=turn, status=status)
        message = refused(saved)
        assert REFUSALS[status] in message
        assert not hub.repos
        assert [f"{method} {path}" for method, path, answer in hub.requests if answer == status] == [request]
        assert pruning.publish(saved, "ada/cut")
        afresh(hub)


def test_a_model_that_was_there_stays_as_it_was(signed_in, saved, tmp_path):
    hub = signed_in
    pruning.publish(saved, "ada/cut")
    other = tmp_path / "other"
    other.mkdir()
    for file in saved.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "generation_config.json").write_text("{}")
    before = hub.repos["ada/cut"].sha
    hub.requests.clear()
    pruning.publish(other, "ada/cut")
    turns = len(hub.requests)
    for turn in range(2, turns):
        pruning.publish(saved, "ada/cut")
        before = hub.repos["ada/cut"].sha
        hub.fail(".", after=turn, status=403)
        assert "ada/cut is as it was." in refused(other)
        assert hub.repos["ada/cut"].sha == before
        hub.fail(".", after=turn, times=10**6, drop=True)
        assert "ada/cut is as it was." in refused(other)
        assert hub.repos["ada/cut"].sha == before
        hub.faults.clear()
        pruning.publish(other, "ada/cut")
        assert is_whole(hub, "ada/cut", other)


def test_somebody_else_writes_meanwhile(signed_in, saved):
    hub = signed_in

    def write(method, path):
        if "/commit/" in path:
            hub.repos["ada/cut"].commit(hub.repos["ada/cut"].files | {"notes.txt": b"mine"})

    hub.watch = write
    assert "somebody has changed the repository meanwhile" in refused(saved)
    assert hub.repos["ada/cut"].files["notes.txt"] == b"mine"


@pytest.mark.parametrize("part", ["whoami", "PUT ", "/commit/"])
def test_nobody_waits_for_an_hour(signed_in, saved, pauses, part):
    signed_in.fail(part, status=429, headers={"Retry-After": "3600"})
    assert "too many requests. Try again in 60 minutes" in refused(saved)
    assert not pauses
    assert not signed_in.repos
    signed_in.fail(part, status=429, headers={"Retry-After": "20"})
    assert pruning.publish(saved, "ada/cut")
    assert 20 <= sum(pauses) <= 22


def test_tries_are_few_and_further_and_further_apart(signed_in, saved, pauses):
    signed_in.fail("/commit/", status=503, times=10**6)
    assert "Nothing was left on the Hub" in refused(saved)
    assert len([path for _, path, _ in signed_in.requests if "/commit/" in path]) == 4
    assert sum(pauses) == 1 + 2 + 4


@pytest.mark.parametrize(
    "part", ["whoami", "api/models/ada/cut$", "/create", "/preupload/", "PUT ", "/commit/"]
)
def test_a_stall(signed_in, saved, part, monkeypatch):
    monkeypatch.setattr("pruning.loading.client.READ_TIMEOUT", 0.5)
    signed_in.fail(part, stall=20)
    assert pruning.publish(saved, "ada/cut")
    assert is_whole(signed_in, "ada/cut", saved)
    afresh(signed_in)
    monkeypatch.setattr("pruning.loading.client.READ_TIMEOUT", 0.1)
    signed_in.fail(part, stall=20, times=8)
    assert "The connection to the Hub broke (ReadTimeout)" in refused(saved)
    monkeypatch.setattr("pruning.loading.client.READ_TIMEOUT", 60)
    signed_in.faults.clear()
    assert pruning.publish(saved, "ada/cut")


def test_a_token_that_expires_half_way(signed_in, saved):
    hub = signed_in
    for turn in range(len(requests_of_a_publication(hub, saved))):

        def expire(method, path, turn=turn):
            if len(hub.requests) == turn:
                hub.expire("ada-token")

        hub.watch = expire
        message = refused(saved)
        assert "may have expired. Sign in again" in message
        assert ("ada/cut may exist" in message) == ("ada/cut" in hub.repos)
        hub.watch = None
        hub.tokens["ada-token"].expired = False
        assert pruning.publish(saved, "ada/cut")
        assert is_whole(hub, "ada/cut", saved)
        afresh(hub)


def test_waiting_for_the_hub_can_be_stopped(signed_in, saved):
    def stop(progress):
        if "retrying" in progress.text:
            raise pruning.Cancelled("Stopped.")

    signed_in.fail("/commit/", status=503, times=10**6)
    with pytest.raises(pruning.Cancelled, match=r"Stopped\. Nothing was left on the Hub"):
        pruning.publish(saved, "ada/cut", progress=stop)
    assert not signed_in.repos


def test_a_public_repository_does_not_get_a_private_model(signed_in, saved):
    pruning.publish(saved, "ada/cut", private=False)
    assert "exists already and is public" in refused(saved)
    assert pruning.publish(saved, "ada/cut", private=False)


class Forker:
    """A process that has imported everything and forks to carry out what it is told."""

    def __init__(self, env):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def hear(self):
        line = self.process.stdout.readline()
        assert line, "the forking process died"
        return json.loads(line)

    def close(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def forker(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    forker = Forker(FORKING | {"HF_HOME": str(home), "SECATEUR_CACHE": str(home / "secateur")})
    yield forker
    forker.close()


def test_a_publisher_that_is_killed_at_any_request(hub, saved, forker, monkeypatch):
    pids = []
    monkeypatch.setenv("HF_TOKEN", "ada-token")
    for turn in range(len(requests_of_a_publication(hub, saved))):
        started = threading.Event()

        def kill(method, path, turn=turn, started=started):
            if len(hub.requests) == turn:
                started.wait(60)
                os.kill(pids[-1], signal.SIGKILL)

        hub.watch = kill
        forker.tell(publish=str(saved), to="ada/cut", at=hub.url)
        pids.append(forker.hear())
        started.set()
        assert forker.hear() == -signal.SIGKILL
        hub.watch = None
        assert pruning.publish(saved, "ada/cut")
        assert is_whole(hub, "ada/cut", saved)
        afresh(hub)


def test_killed_at_random_no_writer_leaves_damage(forker, tmp_path):
    forker.tell(kills=KILLS, under=str(tmp_path))
    found = forker.hear()
    print(f"\n{json.dumps(found)}")
    assert sum(each["kills"] for each in found.values()) == KILLS
    for name, each in found.items():
        assert each["damaged"] == [], name
        assert each["left"] == [], name
    # A small file is written too fast for every writer to be met at work.
    assert sum(each["interrupted"] for each in found.values()) > KILLS / 10


def _carry_out_orders():
    for line in sys.stdin:
        order = json.loads(line)
        if "publish" in order:
            os.environ["HF_ENDPOINT"] = order["at"]
            pid = _fork(lambda order=order: pruning.publish(order["publish"], order["to"], token="ada-token"))
            print(pid, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        else:
            print(json.dumps(_kill_writers(order["kills"], Path(order["under"]))), flush=True)


def _fork(work):
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(2, 1)  # What it prints is no answer.
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


class _Writer:
    """Something that is written to disk: how, and whether what lies there is good, bad or nothing."""

    def __init__(self, place, write, is_good):
        self.place, self.write, self._is_good = place, write, is_good

    def found(self):
        if not self.place.exists():
            return "nothing"
        try:
            return "good" if self._is_good() else "bad"
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def clear(self):
        from pruning.files import discard

        discard(self.place)


def _writers(under):
    """What the product writes: a saved model, converted weights, statistics, a measured quality, and how
    far a distillation has come."""
    import torch

    from pruning.calibration.statistics import Statistics, read_statistics
    from pruning.evaluation import base_quality, perplexity
    from pruning.evaluation.perplexity import Perplexity, Quality
    from pruning.text.passages import GENRES
    from tests.helpers.models import loaded, tiny

    base = loaded("llama")

    def same(model, folder):
        there = pruning.load(str(folder)).model.state_dict()
        return all(torch.equal(there[name], tensor) for name, tensor in model.state_dict().items())

    cut = pruning.run(CUT, base=base, evaluate=False)
    saved = under / "saved" / "cut"
    converted = under / "models" / "converted"

    windows = [torch.arange(2, 66), torch.arange(66, 130)]
    sites = [f"model.layers.{layer}.mlp.down_proj" for layer in range(3)]
    versions = [Statistics(tiny("llama", seed=seed), sites, windows[:1], windows[1:]) for seed in (0, 1)]
    file = under / "statistics" / "kept.safetensors"
    turns = iter(range(10**9))

    def matches(kept, statistics):
        return all(
            torch.equal(kept.moments[site].square, statistics.moments[site].square)
            and torch.equal(kept.gram(site).gram, statistics.gram(site).gram)
            for site in sites
        )

    def whole_statistics():
        kept = read_statistics(file)
        return kept is not None and any(matches(kept, each) for each in versions)

    score = Perplexity(25.5, 2048, 512, "held out")
    quality = Quality(score, dict.fromkeys(GENRES, score))
    perplexity.quality = lambda *_: quality
    measured = cache_folder() / "quality" / f"{perplexity.digest(base.source.revision)}.json"

    def measure():
        measured.unlink(missing_ok=True)
        base_quality.stored_quality(base)

    def training(learnt):
        """The weights that learn, and their optimiser as accelerate wraps it."""
        weights = {
            name: torch.nn.Parameter(tensor.detach() * learnt)
            for name, tensor in base.model.named_parameters()
        }
        return weights, SimpleNamespace(optimizer=torch.optim.AdamW(weights.values()))

    weights, optimizer = training(1.0)
    for tensor in weights.values():
        tensor.grad = torch.ones_like(tensor)
    optimizer.optimizer.step()
    state, kept_at = checkpoint.TrainingState(step=1), under / "distilled" / "checkpoint"

    def goes_on():
        again, optimizer = training(0.0)
        resumed, _ = checkpoint.load_checkpoint(kept_at, "run", again, optimizer)
        return resumed.step == 1 and all(torch.equal(again[name], weights[name]) for name in weights)

    return {
        "saved model": _Writer(saved, lambda: cut.save(saved), lambda: same(cut.model, saved)),
        "converted weights": _Writer(
            converted,
            lambda: offline._keep_converted(base.model, base.tokenizer, converted),
            lambda: files.is_complete(converted) and same(base.model, converted),
        ),
        "statistics": _Writer(file, lambda: versions[next(turns) % 2].save(file), whole_statistics),
        "distillation": _Writer(
            kept_at,
            lambda: checkpoint.save_checkpoint(kept_at, "run", state, weights, {}, optimizer),
            goes_on,
        ),
        "quality": _Writer(
            measured, measure, lambda: Quality.from_dict(json.loads(measured.read_text())) == quality
        ),
    }


def _kill_writers(kills, under):
    chance = random.Random(0)
    writers = _writers(under)
    results = {}
    for number, (name, writer) in enumerate(writers.items()):
        share = kills * (number + 1) // len(writers) - kills * number // len(writers)
        seconds = statistics.median(_seconds_to_write(writer) for _ in range(3))
        result = {"kills": 0, "interrupted": 0, "found good": 0, "damaged": [], "seconds to write": seconds}
        for _ in range(share):
            writer.clear()
            # More often early: files are written at once, and then read back for long.
            _kill_one(writer, seconds, 2 * seconds * chance.random() ** 2)
            result["kills"] += 1
            result["interrupted"] += bool(_left(writer.place))
            state = writer.found()
            result["found good"] += state == "good"
            if state not in ("good", "nothing"):
                result["damaged"].append(state)
        # The next start: what was left is cleared away, and writing works.
        writer.clear()
        writer.write()
        result["left"] = [*_left(writer.place), *([] if writer.found() == "good" else ["not written"])]
        results[name] = result
    return results


def _kill_one(writer, seconds, moment):
    """Let a process write again and again, half as long at rest as at work, and kill it at a moment."""
    ready, go = os.pipe()

    def write_for_ever():
        os.write(go, b"x")
        while True:
            if writer.place.is_dir():
                writer.clear()
            writer.write()
            time.sleep(seconds / 2)

    pid = _fork(write_for_ever)
    os.read(ready, 1)
    time.sleep(moment)
    os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == -signal.SIGKILL, "the writer failed before it was killed"
    os.close(ready)
    os.close(go)


def _seconds_to_write(writer):
    writer.clear()
    start = time.perf_counter()
    writer.write()
    return time.perf_counter() - start


def _left(place):
    return [path.name for path in place.parent.iterdir() if path.name.startswith(PREFIX)]


if __name__ == "__main__":
    _carry_out_orders()
