"""A broken network or a killed process: what is published is whole, or the Hub is unchanged."""

import os
import signal
import threading

import pytest

import pruning
from tests.helpers.forker import forking_process
from tests.helpers.models import loaded
from tests.helpers.pauses import skip_pauses
from tests.helpers.saved import content, cut

TRANSIENT = {
    "dropped": {"drop": True},
    "reply lost": {"reply_lost": True},
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
    return cut(loaded("llama")).save(tmp_path_factory.mktemp("saved") / "cut")


@pytest.fixture
def pauses(monkeypatch):
    """The seconds that the client and the product wait for the Hub, in which no time passes."""
    return skip_pauses(monkeypatch)


@pytest.fixture
def signed_in(hub, pauses, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "ada-token")
    return hub


def is_whole(hub, folder):
    return "ada/cut" in hub.repos and hub.repos["ada/cut"].files.items() >= content(folder).items()


def publish(hub, folder, **options):
    """Publish a folder, and check that all of it arrives."""
    assert pruning.publish(folder, "ada/cut", **options) == f"{hub.url}/ada/cut"
    assert is_whole(hub, folder)


def reset(hub):
    """Remove what was published, so that the next publisher sends everything."""
    hub.faults.clear()
    hub.repos.clear()
    hub.lfs.clear()
    hub.requests.clear()


def refused(folder, **options):
    """Return the message with which publishing fails."""
    with pytest.raises(pruning.SavingError) as error:
        pruning.publish(folder, "ada/cut", **options)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 450
    return message


def requests_of_a_publication(hub, folder):
    """Return the "METHOD path" of every request if nothing goes wrong."""
    publish(hub, folder)
    requests = [f"{method} {path}" for method, path, _ in hub.requests]
    reset(hub)
    return requests


def test_a_publication_makes_the_requests_that_are_disturbed_here(signed_in, saved):
    requests = requests_of_a_publication(signed_in, saved)
    stages = ("whoami", "/create", "/preupload/", "/batch", "PUT ", "/verify", "validate-yaml", "/commit/")
    first = [next(at for at, request in enumerate(requests) if stage in request) for stage in stages]
    assert first == sorted(first)
    assert 9 <= len(requests) < 16


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_transient_fault_at_any_request_is_retried(signed_in, saved, fault):
    hub = signed_in
    for turn in range(len(requests_of_a_publication(hub, saved))):
        hub.fail(".", after=turn, **TRANSIENT[fault])
        publish(hub, saved)
        assert len(hub.repos["ada/cut"].history) == 2, "it is created and committed once"
        assert hub.faults[0].times == 0, "the fault did not occur"
        reset(hub)


@pytest.mark.parametrize("fault", ["dropped", "reply lost", "429", "503"])
def test_a_hub_that_dies_at_any_request(signed_in, saved, fault):
    hub = signed_in
    for turn in range(len(requests_of_a_publication(hub, saved))):
        hub.fail(".", after=turn, times=10**6, **TRANSIENT[fault])
        message = refused(saved)
        # A Hub that does not answer cannot remove anything: the message names what may be left there.
        if hub.repos:
            assert "ada/cut may exist" in message
            assert is_whole(hub, saved) or not set(hub.repos["ada/cut"].files) - {".gitattributes"}
        hub.faults.clear()
        publish(hub, saved)
        reset(hub)


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_at_any_request_is_final_and_leaves_nothing(signed_in, saved, status):
    hub = signed_in
    for turn, request in enumerate(requests_of_a_publication(hub, saved)):
        hub.fail(".", after=turn, status=status)
        message = refused(saved)
        assert REFUSALS[status] in message
        assert not hub.repos
        assert [f"{method} {path}" for method, path, reply in hub.requests if reply == status] == [request]
        publish(hub, saved)
        reset(hub)


def test_a_failed_update_leaves_the_model_on_the_hub_unchanged(signed_in, saved, tmp_path):
    hub, other = signed_in, tmp_path / "other"
    other.mkdir()
    for name, data in (content(saved) | {"generation_config.json": b"{}"}).items():
        (other / name).write_bytes(data)
    publish(hub, saved)
    hub.requests.clear()
    publish(hub, other)
    for turn in range(2, len(hub.requests)):
        publish(hub, saved)
        before = hub.repos["ada/cut"].sha
        hub.fail(".", after=turn, status=403)
        assert "ada/cut was not changed." in refused(other)
        assert hub.repos["ada/cut"].sha == before
        hub.fail(".", after=turn, times=10**6, drop=True)
        assert "ada/cut was not changed." in refused(other)
        assert hub.repos["ada/cut"].sha == before
        hub.faults.clear()
        publish(hub, other)


def test_a_commit_by_another_user_meanwhile_is_kept(signed_in, saved):
    hub = signed_in

    def commit(method, path):
        if "/commit/" in path:
            hub.repos["ada/cut"].commit(hub.repos["ada/cut"].files | {"notes.txt": b"mine"})

    hub.watch = commit
    assert "the repository was changed in the meantime" in refused(saved)
    assert hub.repos["ada/cut"].files["notes.txt"] == b"mine"


@pytest.mark.parametrize("part", ["whoami", "PUT ", "/commit/"])
def test_a_short_wait_is_accepted_and_a_long_one_refused(signed_in, saved, pauses, part):
    signed_in.fail(part, status=429, headers={"Retry-After": "3600"})
    assert "too many requests. Try again in 60 minutes" in refused(saved)
    assert not pauses
    assert not signed_in.repos
    signed_in.fail(part, status=429, headers={"Retry-After": "20"})
    publish(signed_in, saved)
    assert 20 <= sum(pauses) <= 22


def test_a_request_is_tried_four_times_within_seven_seconds(signed_in, saved, pauses):
    signed_in.fail("/commit/", status=503, times=10**6)
    assert "Nothing was left on the Hub" in refused(saved)
    assert [status for _, path, status in signed_in.requests if "/commit/" in path] == [503] * 4
    assert sum(pauses) == 1 + 2 + 4


@pytest.mark.parametrize(
    "part", ["whoami", "api/models/ada/cut$", "/create", "/preupload/", "PUT ", "/commit/"]
)
def test_a_hub_that_stops_answering_is_given_up(signed_in, saved, part, monkeypatch):
    monkeypatch.setattr("pruning.loading.client.READ_TIMEOUT", 0.5)
    signed_in.fail(part, stall=20)
    publish(signed_in, saved)
    reset(signed_in)
    monkeypatch.setattr("pruning.loading.client.READ_TIMEOUT", 0.1)
    signed_in.fail(part, stall=20, times=8)
    assert "The connection to the Hub broke (ReadTimeout)" in refused(saved)
    monkeypatch.setattr("pruning.loading.client.READ_TIMEOUT", 60)
    signed_in.faults.clear()
    publish(signed_in, saved)


def test_a_token_that_expires_at_any_request(signed_in, saved):
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
        publish(hub, saved)
        reset(hub)


def test_waiting_for_the_hub_can_be_cancelled(signed_in, saved):
    def stop(progress):
        if "retrying" in progress.text:
            raise pruning.Cancelled("Stopped.")

    signed_in.fail("/commit/", status=503, times=10**6)
    with pytest.raises(pruning.Cancelled, match=r"Stopped\. Nothing was left on the Hub"):
        pruning.publish(saved, "ada/cut", progress=stop)
    assert not signed_in.repos


def test_a_private_model_is_not_published_to_a_public_repository(signed_in, saved):
    publish(signed_in, saved, private=False)
    before = signed_in.repos["ada/cut"].sha
    assert "exists already and is public" in refused(saved)
    assert signed_in.repos["ada/cut"].sha == before
    publish(signed_in, saved, private=False)


@pytest.fixture(scope="module")
def forker(tmp_path_factory):
    with forking_process(tmp_path_factory.mktemp("home")) as process:
        yield process


def test_a_publisher_that_is_killed_at_any_request_can_be_repeated(signed_in, saved, forker):
    hub, pids = signed_in, []
    for turn in range(len(requests_of_a_publication(hub, saved))):
        started = threading.Event()

        def kill(method, path, turn=turn, started=started):
            if len(hub.requests) == turn:
                started.wait(60)
                os.kill(pids[-1], signal.SIGKILL)

        hub.watch = kill
        forker.order(order="publish", folder=str(saved), repo_id="ada/cut", endpoint=hub.url)
        pids.append(forker.read())
        started.set()
        assert forker.read() == -signal.SIGKILL
        hub.watch = None
        publish(hub, saved)
        reset(hub)
