"""Saving and publishing: what lies there afterwards, and that nothing does after a failure."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from transformers import AutoModelForCausalLM, AutoTokenizer

import pruning
from pruning.cli import main
from pruning.evaluation.perplexity import Perplexity, Quality
from pruning.report import Sample
from tests.helpers.models import folder_of, loaded, save_tiny, trained
from tests.helpers.pauses import skip_pauses
from tests.helpers.saved import content, cut

FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "recipe.yaml",
    "tokenizer.json",
    "tokenizer_config.json",
}

CONTINUE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
ids = tokenizer(sys.argv[2], return_tensors="pt")
new = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids.input_ids.shape[1]:]
sys.stdout.write(tokenizer.decode(new, skip_special_tokens=True))
"""


@pytest.fixture(scope="module")
def pruned():
    return cut(loaded("llama"))


@pytest.fixture(scope="module")
def saved(pruned, tmp_path_factory):
    return pruned.save(tmp_path_factory.mktemp("saved") / "cut")


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    return cut(loaded("llama"), fraction=0.5).save(tmp_path_factory.mktemp("saved") / "smaller")


@pytest.fixture
def signed_in(hub, monkeypatch):
    """Signed in as ada; the client's pauses between attempts take no time."""
    monkeypatch.setenv("HF_TOKEN", "ada-token")
    skip_pauses(monkeypatch)
    return hub


def refused(saved, repo_id="ada/cut", **options):
    with pytest.raises(pruning.SavingError) as error:
        pruning.publish(saved, repo_id, **options)
    message = str(error.value)
    assert "\n" not in message
    assert "token-" not in message
    assert len(message) < 400
    return message


def logits(model):
    with torch.inference_mode():
        return model(torch.arange(2, 40)[None]).logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_a_saved_model_is_an_ordinary_one(tmp_path, family):
    base = loaded(family)
    pruned = cut(base)
    folder = pruned.save(tmp_path / "deep" / "cut")
    assert {path.name for path in folder.iterdir()} == FILES
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(model), logits(pruned.model))
    assert model.num_parameters() == pruned.report.after.parameters < base.model.num_parameters()
    assert model.generation_config.eos_token_id == base.model.generation_config.eos_token_id
    words = "The old man walked"
    assert AutoTokenizer.from_pretrained(folder)(words).input_ids == base.tokenizer(words).input_ids
    assert pruning.load(str(folder)).source.license is None


def test_the_precision_of_the_base_is_kept(tmp_path):
    base = pruning.load(str(save_tiny(tmp_path / "half", "llama", dtype=torch.bfloat16)))
    pruned = cut(base)
    folder = pruned.save(tmp_path / "cut")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    weights = pruned.model.state_dict()
    assert all(torch.equal(tensor.float(), weights[name]) for name, tensor in model.state_dict().items())
    assert (folder / "model.safetensors").stat().st_size < 1.1 * pruned.report.after.bytes


def test_the_card(hub, tmp_path):
    readme = b"---\nlicense: apache-2.0\n---\n"
    hub.add_model("ada/tiny", content(folder_of("llama")) | {"README.md": readme})
    base = pruning.load("ada/tiny", token=False)
    pruned = cut(base, evaluate=True)
    folder = pruned.save(tmp_path / "tiny-cut")
    card = ModelCard.load(folder / "README.md")
    data, report = card.data, pruned.report
    assert (data.base_model, data.license, data.library_name) == ("ada/tiny", "apache-2.0", "transformers")
    assert {"secateur", "pruned", "neurons"} <= set(data.tags)
    measured = {
        result.dataset_type: result.metric_value
        for result in data.eval_results
        if result.metric_type == "perplexity"
    }
    assert measured == {
        f"secateur-heldout-{genre}": pytest.approx(result.value, abs=1e-3)
        for genre, result in report.after.quality.genres.items()
    }
    assert f"{report.before.parameters:,} → **{report.after.parameters:,} parameters**" in card.text
    assert "No retraining" in card.text
    assert "No evaluation of safety" in card.text
    assert all(sample.prompt in card.text for sample in report.samples)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", (folder / "README.md").read_bytes().decode())
    assert base.source.revision in card.text

    recipe = (folder / "recipe.yaml").read_text()
    assert recipe in card.text
    assert pruning.Recipe.parse(recipe) == pruned.recipe
    assert pruned.recipe.revision == base.source.revision


def test_a_card_without_measurements_says_so(saved):
    card = ModelCard.load(saved / "README.md")
    assert "Quality was not measured." in card.text
    assert card.data.eval_results is None
    assert card.data.base_model is None


def test_measurements_that_are_no_numbers_are_no_results(pruned, tmp_path):
    results = {value: Perplexity(value, 9, 9, "a story") for value in (2.0, math.inf)}
    before, after = (Quality(result, {"story": result}) for result in results.values())
    report = replace(
        pruned.report,
        before=replace(pruned.report.before, quality=before),
        after=replace(pruned.report.after, quality=after),
    )
    card = ModelCard.load(replace(pruned, report=report).save(tmp_path / "cut") / "README.md")
    assert card.data.eval_results is None
    assert "| a story | 9 | 9 | 2.00 | inf | inf |" in card.text


def test_nothing_saved_tells_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_sesame")
    base = pruning.load(str(save_tiny(tmp_path / "my-base", "llama")), token="hf_sesame")
    folder = cut(base).save(tmp_path / "cut")
    for name, text in content(folder).items():
        for secret in (b"hf_sesame", str(tmp_path).encode(), b"/tmp", b"/root", b"/home"):
            assert secret not in text, name
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["base"] == "my-base"


def test_samples_stay_in_their_fences(pruned, tmp_path):
    wild = [
        "```\n# Heading\n<script>alert(1)</script>",
        "``````\n---\n",
        "![x](http://example.org) | a | b |",
    ]
    report = replace(pruned.report, samples=tuple(Sample("Say", text, text) for text in wild))
    folder = replace(pruned, report=report).save(tmp_path / "cut")
    tokens = MarkdownIt().enable("table").parse(ModelCard.load(folder / "README.md").text)
    fenced = [token.content for token in tokens if token.type == "fence"]
    assert all(any(text in block for block in fenced) for text in wild)
    outside = "".join(token.content for token in tokens if token.type != "fence")
    assert not any(word in outside for word in ("alert", "Heading", "example.org"))
    assert "secateur" in ModelCard.load(folder / "README.md").data.tags


def test_a_folder_with_something_in_it_is_left_alone(pruned, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(pruning.SavingError, match="Choose another folder"):
            pruned.save(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} <= {"full", "file", "state"}
    assert content(tmp_path / "full") == {"mine.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    assert content(pruned.save(tmp_path / "empty")).keys() == FILES


@pytest.mark.parametrize("size", [100, 5_000])
def test_a_full_disk(pruned, tmp_path, size, files_of_at_most):
    weights = pruned.model.state_dict()
    before = {name: tensor.clone() for name, tensor in weights.items()}
    with files_of_at_most(size), pytest.raises(pruning.SavingError, match="could not be written") as error:
        pruned.save(tmp_path / "out" / "cut")
    assert "\n" not in str(error.value)
    assert "Make room" in str(error.value)
    assert not list((tmp_path / "out").iterdir())
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.items())


def test_a_failure_in_the_middle_leaves_nothing(pruned, tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            assert os.listdir(folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(pruned, tokenizer=Broken()).save(tmp_path / "out" / "cut")

    def stop(progress):
        if "back" in str(progress):
            raise pruning.Cancelled("Stopped.")

    with pytest.raises(pruning.Cancelled):
        pruned.save(tmp_path / "out" / "cut", progress=stop)
    assert not list((tmp_path / "out").iterdir())


def test_a_model_that_would_load_differently_is_not_kept(pruned, tmp_path):
    with pytest.raises(pruning.SavingError, match="same logits"):
        replace(pruned, storage_dtype=torch.float16).save(tmp_path / "out" / "cut")
    assert not list((tmp_path / "out").iterdir())


def test_publish_is_private_unless_told_otherwise(signed_in, pruned, saved):
    hub = signed_in
    assert pruning.publish(saved, "ada/cut") == f"{hub.url}/ada/cut"
    repo = hub.repos["ada/cut"]
    assert repo.private
    assert repo.files.items() >= content(saved).items()
    pruning.publish(saved, "acme/cut", private=False)
    assert not hub.repos["acme/cut"].private
    pruning.publish(pruned, "by-name")
    assert hub.repos["ada/by-name"].files.keys() >= FILES
    assert b"# by-name" in hub.repos["ada/by-name"].files["README.md"]


@pytest.mark.parametrize(
    "name", ["", "a b", "ada/", "/cut", "ada/x/y", "ada/..", "ada/a--b", "x" * 97, "ada/cut.git", "ada/ü"]
)
def test_names_that_are_none(signed_in, saved, name):
    with pytest.raises(pruning.SavingError, match=r"is not a valid repository name|may not publish under"):
        pruning.publish(saved, name)
    assert not signed_in.repos


def test_the_name_of_somebody_else(signed_in, saved):
    with pytest.raises(pruning.SavingError, match=r"may not publish under bob\. Choose one of: ada, acme"):
        pruning.publish(saved, "bob/cut")
    assert not signed_in.repos


def test_a_name_that_is_taken(signed_in, saved):
    repo = signed_in.add_model("ada/cut", {"README.md": b"Mine.", "model-2.safetensors": b"x"})
    before = repo.sha
    with pytest.raises(pruning.SavingError, match="ada/cut is taken"):
        pruning.publish(saved, "ada/cut")
    assert repo.sha == before
    with pytest.raises(pruning.SavingError, match="exists already and is public"):
        pruning.publish(saved, "ada/cut", overwrite=True)
    pruning.publish(saved, "ada/cut", overwrite=True, private=False)
    assert repo.files.keys() == FILES | {"model-2.safetensors", "secateur.json"}


def test_publishing_again_replaces_the_model(signed_in, saved, smaller):
    pruning.publish(saved, "ada/cut")
    repo = signed_in.repos["ada/cut"]
    repo.commit(repo.files | {"added_tokens.json": b"{}", "figure.png": b"x"})
    pruning.publish(smaller, "ada/cut")
    added = {"added_tokens.json", "figure.png", "secateur.json"}
    assert repo.files.keys() == FILES | added | {".gitattributes"}
    assert repo.files.items() >= content(smaller).items()


def test_a_folder_that_holds_no_saved_model(signed_in, tmp_path):
    for folder in (tmp_path / "none", folder_of("llama")):
        with pytest.raises(pruning.SavingError, match="is not a model saved by Secateur"):
            pruning.publish(folder, "ada/cut")
    assert not signed_in.repos


def test_a_card_that_was_broken_by_hand(signed_in, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "cut")
    (folder / "README.md").write_text("---\nlicense: mit: or not\n---\n")
    assert "The model card, README.md, cannot be read" in refused(folder)
    assert not [path for method, path, _ in signed_in.requests if method != "GET"]


def test_tokens_that_do_not_open(hub, saved, monkeypatch):
    assert "You are not signed in" in refused(saved)
    hub.add_user("ada-read", "ada", role="read")
    assert "no right to do that" in refused(saved, token="ada-read")
    hub.expire("ada-token")
    for token in ("ada-token", "tökén", "hf_sesame\n"):
        message = refused(saved, token=token)
        assert token.strip() not in message
        assert "Sign in again" in message
    assert "may have expired. Sign in again" in refused(saved, token="ada-token")
    assert not hub.repos


def test_no_hub(signed_in, saved, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "The connection to the Hub broke (ConnectError) while trying to sign in" in refused(
        saved, token="ada-token"
    )


STAGES = {
    "create": "POST /api/repos/create",
    "validate": "POST /api/validate-yaml",
    "upload": "PUT /lfs/",
    "commit": "POST .*/commit/",
}
FAULTS = {
    403: "no right",
    409: "Choose another name",
    413: "too large",
    429: "too many requests",
    503: "an internal error",
    "dropped": "connection to the Hub broke",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_failure_leaves_the_hub_as_it_was(signed_in, saved, smaller, stage, fault):
    hub = signed_in
    broken = {"drop": True} if fault == "dropped" else {"status": fault}
    hub.fail(STAGES[stage], times=20, **broken)
    assert FAULTS[fault] in refused(saved)
    assert not hub.repos

    hub.faults.clear()
    assert pruning.publish(saved, "ada/cut")
    before = hub.repos["ada/cut"].sha
    if stage != "create":
        hub.fail(STAGES[stage], times=20, **broken)
        assert FAULTS[fault] in refused(smaller)
        assert hub.repos["ada/cut"].sha == before


def test_a_repository_that_cannot_be_removed_is_named(signed_in, saved):
    signed_in.fail("POST .*/commit/", 503, times=20)
    signed_in.fail("DELETE", 503, times=20)
    assert "ada/cut may exist, empty or complete, and could not be removed" in refused(saved)
    signed_in.faults.clear()
    assert pruning.publish(saved, "ada/cut")


def test_stopping_an_upload_removes_what_was_created(signed_in, saved):
    def stop(progress):
        if "Uploading" in str(progress):
            assert "ada/cut" in signed_in.repos
            raise pruning.Cancelled("Stopped.")

    with pytest.raises(pruning.Cancelled):
        pruning.publish(saved, "ada/cut", progress=stop)
    assert not signed_in.repos


def test_publish_from_the_shell(hub, saved, tmp_path, monkeypatch, capsys):
    command = ["-m", "pruning", "publish", str(saved), "ada/cut", "--json"]
    env = os.environ | hub.env(tmp_path / "home", "ada-token")
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"url": f"{hub.url}/ada/cut"}
    assert hub.repos["ada/cut"].files.items() >= content(saved).items()
    # A refusal needs no process of its own, which takes seconds to start.
    monkeypatch.setenv("HF_TOKEN", "bob-token")
    monkeypatch.setattr(sys, "argv", ["pruning", "publish", str(saved), "ada/cut", "--public"])
    status = main()
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert "Error: You are signed in as bob" in err


def test_a_published_model_says_the_same_when_it_comes_back(signed_in, tmp_path):
    base = trained()
    steps = [pruning.Neurons(fraction=0.2, criterion="peak_to_peak", repair=False)]
    pruned = pruning.prune(pruning.Recipe(base="tiny", steps=steps), base)
    pruning.publish(pruned, "ada/smaller")
    prompt = "Once upon a time"
    env = os.environ | signed_in.env(tmp_path / "home", "ada-token")
    command = [sys.executable, "-c", CONTINUE, "ada/smaller", prompt]
    told = subprocess.run(command, env=env, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout == pruning.generate(pruned, prompt, pruning.Sampling(max_new_tokens=24), chat=False)
    assert pruned.report.after.parameters < base.model.num_parameters()
