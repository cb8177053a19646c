"""The loopback hub, seen through the real huggingface_hub and transformers clients."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub import (
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCardData,
    hf_hub_download,
    metadata_load,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save_file

from tests.helpers.hub import LoopbackHub
from tests.helpers.hub.repos import front_matter

CARD = """---
license: apache-2.0
base_model: acme/whole
library_name: transformers
tags:
- pruned
- 'it''s: small'
---
# Cut
"""

LOAD = """
import json, sys
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

config = AutoConfig.from_pretrained(sys.argv[1])
ids = AutoTokenizer.from_pretrained(sys.argv[1])("w1 w2 w3", return_tensors="pt").input_ids
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(json.dumps([config.model_type, ids.tolist(), model(ids).logits.sum().item()]))
"""


@pytest.fixture
def ada(hub):
    return HfApi(endpoint=hub.url, token="ada-token")


@pytest.fixture
def bob(hub):
    return HfApi(endpoint=hub.url, token="bob-token")


@pytest.fixture
def anyone(hub):
    return HfApi(endpoint=hub.url, token=False)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    (path / "notes").mkdir(parents=True)
    (path / "README.md").write_text(CARD)
    (path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (path / "notes" / "cut.txt").write_text("head 3")
    save_file(
        {"a": torch.ones(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)},
        path / "model.safetensors",
    )
    return path


def contents(folder):
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes() for name, path in found.items() if not name.startswith((".cache", ".git"))
    }


def test_whoami_names_the_holder_of_the_token(ada):
    me = ada.whoami()
    assert (me["name"], me["orgs"][0]["name"], me["auth"]["accessToken"]["role"]) == (
        "ada",
        "acme",
        "write",
    )


def test_upload_describe_download(hub, ada, folder, tmp_path):
    created = ada.create_repo("acme/cut", private=True)
    commit = ada.upload_folder(repo_id="acme/cut", folder_path=folder)
    info = ada.model_info("acme/cut", files_metadata=True)
    assert created.repo_id == commit.repo_url.repo_id == info.id == "acme/cut"
    assert (info.private, info.gated, info.sha, info.author) == (True, False, commit.oid, "acme")
    assert info.card_data.to_dict() == metadata_load(folder / "README.md")
    assert {"pruned", "license:apache-2.0", "base_model:acme/whole", "text-generation"} <= set(info.tags)
    assert info.config == {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    assert (info.safetensors.parameters, info.safetensors.total) == ({"F32": 12, "BF16": 5}, 17)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings}
    assert siblings["model.safetensors"].lfs.size == (folder / "model.safetensors").stat().st_size
    assert siblings["config.json"].lfs is None
    assert ("PUT", f"/lfs/{siblings['model.safetensors'].lfs.sha256}", 200) in hub.requests

    asked = {"endpoint": hub.url, "token": "ada-token", "cache_dir": tmp_path / "cache"}
    cached = snapshot_download("acme/cut", **asked)
    plain = snapshot_download("acme/cut", **asked, local_dir=tmp_path / "plain")
    assert contents(Path(cached)) == contents(Path(plain)) == contents(folder)


def test_uploading_the_same_again_commits_nothing(hub, ada, folder):
    ada.create_repo("ada/cut")
    first = ada.upload_folder(repo_id="ada/cut", folder_path=folder)
    assert (
        ada.upload_folder(repo_id="ada/cut", folder_path=folder).oid == first.oid == hub.repos["ada/cut"].sha
    )


def test_revisions_and_deletions(hub, ada, anyone, folder, tmp_path):
    before = hub.add_model("ada/cut", folder).sha
    ada.create_commit(
        "ada/cut",
        [CommitOperationDelete("config.json")],
        commit_message="Drop",
        parent_commit=before,
    )
    assert anyone.model_info("ada/cut", expand=["sha"]).sha == hub.repos["ada/cut"].sha != before
    assert anyone.file_exists("ada/cut", "config.json", revision=before)
    assert not anyone.file_exists("ada/cut", "config.json")
    assert [item.path for item in anyone.list_repo_tree("ada/cut", "notes")] == ["notes/cut.txt"]
    assert [item.path for item in anyone.get_paths_info("ada/cut", ["notes", "none"])] == ["notes"]
    assert anyone.list_repo_refs("ada/cut").branches[0].target_commit == hub.repos["ada/cut"].sha
    with pytest.raises(RevisionNotFoundError):
        anyone.model_info("ada/cut", revision="v2")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("ada/cut", "none.json", endpoint=hub.url, token=False, cache_dir=tmp_path / "cache")
    with pytest.raises(HfHubHTTPError, match="412"):
        ada.create_commit(
            "ada/cut",
            [CommitOperationDelete("README.md")],
            commit_message="x",
            parent_commit=before,
        )


@pytest.mark.parametrize(
    ("asked", "status", "sent", "span"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("lines=1", 200, b"0123456789", None),
    ],
)
def test_ranges(hub, asked, status, sent, span):
    hub.add_model("ada/digits", {"digits.bin": b"0123456789"})
    got = httpx2.get(f"{hub.url}/ada/digits/resolve/main/digits.bin", headers={"Range": asked})
    assert (got.status_code, got.content, got.headers.get("Content-Range")) == (status, sent, span)


def test_a_private_repository_is_nowhere_for_others(hub, ada, bob, anyone):
    hub.add_model("ada/secret", {"config.json": b"{}"}, private=True)
    assert ada.repo_exists("ada/secret")
    for api, status in [(bob, 404), (anyone, 401)]:
        with pytest.raises(RepositoryNotFoundError) as refusal:
            api.model_info("ada/secret")
        assert refusal.value.response.status_code == status
    ada.update_repo_settings("ada/secret", visibility="public")
    assert anyone.model_info("ada/secret").private is False


def test_a_gate_hides_the_files_but_not_the_model(hub, bob, tmp_path):
    repo = hub.add_model("ada/gated", {"config.json": b"{}"}, gated=True)
    assert bob.model_info("ada/gated").gated == "auto"
    for token, status in [("bob-token", 403), (False, 401)]:
        with pytest.raises(GatedRepoError) as refusal:
            hf_hub_download("ada/gated", "config.json", endpoint=hub.url, token=token, cache_dir=tmp_path)
        assert refusal.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            bob.auth_check("ada/gated", token=token)
    repo.granted.add("bob")
    bob.auth_check("ada/gated")
    assert hf_hub_download(
        "ada/gated", "config.json", endpoint=hub.url, token="bob-token", cache_dir=tmp_path
    )


def test_files_of_a_data_set(hub, tmp_path):
    hub.add_dataset("ada/words", {"raw/part.txt": b"one two"})
    asked = {"endpoint": hub.url, "token": False, "cache_dir": tmp_path}
    file = hf_hub_download("ada/words", "raw/part.txt", repo_type="dataset", **asked)
    assert Path(file).read_bytes() == b"one two"
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("ada/words", "raw/part.txt", **asked)


def test_names_taken_and_names_of_others(hub, ada, bob):
    ada.create_repo("acme/cut")
    with pytest.raises(HfHubHTTPError, match="You already created this model repo") as taken:
        ada.create_repo("acme/cut")
    assert taken.value.response.status_code == 409
    assert ada.create_repo("acme/cut", exist_ok=True).repo_id == "acme/cut"
    with pytest.raises(HfHubHTTPError, match="rights to create a model") as foreign:
        bob.create_repo("acme/other")
    assert foreign.value.response.status_code == 403
    hub.add_user("ada-read", "ada", role="read")
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        HfApi(endpoint=hub.url, token="ada-read").create_repo("ada/cut")
    assert list(hub.repos) == ["acme/cut"]


def test_only_owners_write(hub, bob, folder):
    hub.add_model("ada/cut", {"config.json": b"{}"})
    with pytest.raises(HfHubHTTPError, match="write access"):
        bob.upload_folder(repo_id="ada/cut", folder_path=folder)
    with pytest.raises(HfHubHTTPError, match="write access"):
        bob.delete_repo("ada/cut")
    assert hub.repos["ada/cut"].files == {"config.json": b"{}"}


def test_delete_repo(hub, ada):
    ada.create_repo("cut")
    ada.delete_repo("ada/cut")
    assert hub.repos == {}
    with pytest.raises(RepositoryNotFoundError):
        ada.delete_repo("ada/cut")
    ada.delete_repo("ada/cut", missing_ok=True)


def test_an_expired_token_opens_nothing(hub, ada, folder):
    hub.add_model("ada/open", {"config.json": b"{}"})
    hub.expire("ada-token")
    calls = [
        ada.whoami,
        lambda: ada.model_info("ada/open"),
        lambda: ada.create_repo("ada/cut"),
        lambda: ada.upload_folder(repo_id="ada/open", folder_path=folder),
    ]
    for call in calls:
        with pytest.raises(HfHubHTTPError) as refusal:
            call()
        assert refusal.value.response.status_code == 401
        assert not isinstance(refusal.value, RepositoryNotFoundError)


def test_front_matter_reads_what_huggingface_hub_writes():
    result = EvalResult("text-generation", "text", "Wiki: raw, test", "perplexity", 12.5, verified=False)
    widget = [{"text": "é # '1'"}]
    data = ModelCardData(
        model_name="cut", language=["en", "fr"], tags=[], widget=widget, eval_results=[result]
    )
    assert front_matter(f"---\n{data.to_yaml()}\n---\n# Cut\n") == data.to_dict()
    assert front_matter("# No metadata\n---\n") == front_matter("---\n---\n") == {}
    for broken in ["a: b: c", "- a\n- b", "a:\n    b: 1\n  c: 2", "a: [b", "just text"]:
        with pytest.raises(ValueError, match="the metadata is no"):
            front_matter(f"---\n{broken}\n---\n")


def test_a_broken_card_is_refused_before_the_upload(hub, ada, folder):
    ada.create_repo("ada/cut")
    (folder / "README.md").write_text("---\nlicense: mit: or not\n---\n")
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        ada.upload_folder(repo_id="ada/cut", folder_path=folder)
    assert list(hub.repos["ada/cut"].files) == [".gitattributes"]


def test_the_client_retries_a_preupload_and_a_put(hub, ada, folder):
    ada.create_repo("ada/cut")
    hub.fail("POST .*/preupload/", 503)
    hub.fail("PUT /lfs/", drop=True)
    ada.upload_folder(repo_id="ada/cut", folder_path=folder)
    assert [status for method, path, status in hub.requests if "/preupload/" in path] == [503, 200]
    assert [status for method, path, status in hub.requests if method == "PUT"] == [None, 200]
    assert contents(folder).items() <= hub.repos["ada/cut"].files.items()


def test_the_client_gives_up_at_once_on_the_rest(hub, ada, folder, tmp_path):
    hub.fail("GET /api/whoami-v2", 429, headers={"Retry-After": "1"})
    with pytest.raises(HfHubHTTPError, match="rate limit"):
        ada.whoami()
    hub.fail("POST /api/repos/create", drop=True)
    with pytest.raises(httpx2.RemoteProtocolError):
        ada.create_repo("ada/cut")
    ada.create_repo("ada/cut")
    hub.fail("POST .*/commit/main", 500)
    with pytest.raises(HfHubHTTPError, match="500"):
        ada.upload_folder(repo_id="ada/cut", folder_path=folder)
    hub.fail("GET .*/resolve/", 503)
    with pytest.raises(HfHubHTTPError, match="503"):
        hf_hub_download(
            "ada/cut",
            ".gitattributes",
            endpoint=hub.url,
            cache_dir=tmp_path / "cache",
            token="ada-token",
        )
    assert [status for _, _, status in hub.requests if status != 200] == [429, None, 500, 503]


def test_faults_of_the_connection(hub, ada):
    hub.fail("POST /api/repos/create", reply_lost=True, after=1)
    ada.create_repo("first")
    with pytest.raises(httpx2.RemoteProtocolError):
        ada.create_repo("second")
    assert list(hub.repos) == ["ada/first", "ada/second"]
    file = f"{hub.url}/ada/first/resolve/main/.gitattributes"
    hub.fail("GET .*/resolve/", truncated=True)
    with pytest.raises(httpx2.RemoteProtocolError, match="without sending complete"):
        httpx2.get(file)
    hub.fail("GET .*/resolve/", stall=20)
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(file, timeout=0.2)
    assert httpx2.get(file).content == hub.repos["ada/first"].files[".gitattributes"]


def test_a_closed_hub_refuses_connections():
    with LoopbackHub() as hub:
        pass
    with pytest.raises(httpx2.ConnectError):
        HfApi(endpoint=hub.url, token="any").whoami()


def test_transformers_loads_from_the_hub_in_a_process_of_its_own(hub, tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(tmp_path / "tiny")
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).eval()
    model.save_pretrained(tmp_path / "tiny")
    hub.add_model("ada/tiny", tmp_path / "tiny", private=True)

    env = os.environ | hub.env(tmp_path / "home", token="ada-token")
    loaded = subprocess.run([sys.executable, "-c", LOAD, "ada/tiny"], env=env, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    with torch.no_grad():
        expected = model(torch.tensor([[1, 2, 3]])).logits.sum().item()
    assert json.loads(loaded.stdout) == ["llama", [[1, 2, 3]], pytest.approx(expected, rel=1e-4)]
    assert {method for method, _, status in hub.requests if status in (200, 206)} == {"GET", "HEAD"}
