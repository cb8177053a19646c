"""What the download and the push show while they run and in the end."""

import json

import pytest

from page.sections.export import FORM_INFO, offer_forms
from page.server.queue import JobKey
from page.server.session import jobs
from page.workers.export import NOTES, ZIP, ExportTask, PublishTask
from page.workers.messages import Progress
from pruning import Calibration, Neurons, Recipe, SavingError
from pruning.architectures.shape import Shape
from pruning.sharing.gguf import GGUF_TYPES, gguf_types
from tests.helpers.models import config

pytestmark = pytest.mark.usefixtures("pools")

RECIPE = Recipe(base="smollm2-135m", steps=(Neurons(fraction=0.2),))
DOWNLOAD, PUSH = "download", "push"


@pytest.fixture(autouse=True)
def any_cost(monkeypatch):
    """The model is never loaded here, so what it costs is not known."""
    monkeypatch.setattr("page.server.jobs.check_task", lambda task, visitor, seconds: None)


@pytest.fixture(autouse=True)
def signed_in(monkeypatch):
    monkeypatch.setattr("page.sections.export.publishing_token", lambda visitor, typed: "token")


@pytest.fixture
def start(handler, request_of):
    """`start(kind)` returns the name of the job and the updates of its status line."""

    def run(kind):
        request = request_of()
        arguments = ("zip",) if kind == DOWNLOAD else ("smaller", True, "")
        name = {DOWNLOAD: "prepare", PUSH: "push"}[kind]
        updates = handler(name)(request, None, RECIPE, None, "", *arguments)
        return JobKey(request.session_hash, kind), (update[f"{name}-status"] for update in updates)

    return run


def work(monkeypatch, function):
    monkeypatch.setattr(ExportTask, "perform", function)
    monkeypatch.setattr(PublishTask, "perform", function)


@pytest.mark.parametrize("kind", [DOWNLOAD, PUSH])
def test_a_stopped_export_shows_as_stopped(kind, start, monkeypatch):
    def endless(task, context):
        while True:
            context.emit(Progress("Saving"))

    work(monkeypatch, endless)
    name, shown = start(kind)
    assert 'class="status busy"' in next(shown)
    jobs.stop(JobKey(name.session, name.kind))
    *_, last = shown
    assert 'class="status stopped"' in last
    assert "Stopped." in last


@pytest.mark.parametrize("kind", [DOWNLOAD, PUSH])
def test_a_failed_export_shows_the_reason(kind, start, monkeypatch):
    def fail(task, context):
        raise SavingError("The disk is full.")

    work(monkeypatch, fail)
    (last,) = start(kind)[1]
    assert 'class="status failed"' in last
    assert "The disk is full." in last


def test_a_download_is_offered_under_the_name_of_its_file(handler, request_of, monkeypatch, tmp_path):
    def write(task, context):
        file = tmp_path / f"{task.name}.zip"
        file.write_bytes(b"zip")
        return file

    monkeypatch.setattr(ExportTask, "perform", write)
    (update,) = handler("prepare")(request_of(), None, RECIPE, None, "", "zip")
    assert update["download"].value["orig_name"] == f"smollm2-135m-pruned-{RECIPE.digest[:6]}.zip"
    assert "Ready." in update["prepare-status"]


def test_a_gguf_file_comes_with_the_lines_that_run_it(handler, request_of, monkeypatch, tmp_path):
    def write(task, context):
        file = tmp_path / f"{task.name}-{task.form}.gguf"
        file.write_bytes(b"GGUF")
        (tmp_path / NOTES).write_text(json.dumps(["llama.cpp: llama-cli -m <a file>"]))
        return file

    monkeypatch.setattr(ExportTask, "perform", write)
    (update,) = handler("prepare")(request_of(), None, RECIPE, None, "", "q4_0")
    assert update["download"].value["orig_name"].endswith("-q4_0.gguf")
    assert "llama-cli -m &lt;a file&gt;" in update["prepare-status"]


@pytest.mark.parametrize("name", ["", "  ", None, 5])
def test_a_push_needs_a_name(name, handler, request_of):
    (update,) = handler("push")(request_of(), None, RECIPE, None, "", name, True, "")
    assert "Enter a name for the repository." in update["push-status"]


def test_a_push_says_before_any_work_that_nobody_is_signed_in(handler, request_of, monkeypatch):
    monkeypatch.setattr("page.sections.export.publishing_token", lambda visitor, typed: False)
    work(monkeypatch, lambda task, context: pytest.fail("it works"))
    (update,) = handler("push")(request_of(), None, RECIPE, None, "", "smaller", True, "")
    assert "Nobody is signed in to Hugging Face on this machine." in update["push-status"]


def test_there_is_nothing_to_export_before_the_first_result(handler, request_of):
    (update,) = handler("prepare")(request_of(), None, None, None, "", "zip")
    assert "press Prune first" in update["prepare-status"]


def test_an_export_that_needs_the_visitors_own_text_asks_for_it(handler, request_of):
    own = RECIPE.model_copy(update={"calibration": Calibration.custom("text " * 300)}).without_custom_text()
    (update,) = handler("prepare")(request_of(), None, own, None, "", "zip")
    assert "paste it again" in update["prepare-status"]


@pytest.mark.parametrize("private", [None, True, "no"])
def test_a_push_is_private_unless_the_visitor_says_no(private, handler, request_of, monkeypatch):
    asked = []
    work(monkeypatch, lambda task, context: asked.append(task.private))
    list(handler("push")(request_of(), None, RECIPE, None, "", "smaller", private, ""))
    list(handler("push")(request_of(), None, RECIPE, None, "", "smaller", False, ""))
    assert asked == [True, False]


@pytest.mark.parametrize(
    ("family", "sizes", "offered"),
    [
        ("gpt2", {"n_embd": 256, "n_inner": 1024}, set(GGUF_TYPES)),
        ("gpt2", {"n_embd": 64, "n_inner": 96}, {"f16", "bf16", "q8_0", "q5_0", "q4_0"}),
        ("gpt2", {"n_embd": 256, "n_inner": 1000}, {"f16", "bf16"}),
        ("opt", {}, set()),
    ],
)
def test_only_forms_that_the_model_can_have_are_offered(family, sizes, offered):
    choice = offer_forms(gguf_types(Shape.of(config(family, **sizes))), ZIP)
    forms = [form for _, form in choice.choices]
    assert forms[0] == choice.value == "zip"
    assert set(forms[1:]) == offered
    left_out = [name.upper() for name in GGUF_TYPES if name not in offered]
    said = choice.info.removeprefix(FORM_INFO)
    assert all(name in said for name in left_out) or "Not as GGUF: " in said
    assert bool(said) == bool(left_out)


def test_the_choice_follows_the_cut_and_stays_what_it_was_if_it_can():
    shape = Shape.of(config("gpt2", n_embd=256, n_inner=1024))
    uncut, cut = (gguf_types(each) for each in (shape, Neurons(intermediate_size=1000).reshape(shape)))
    assert ("GGUF Q4_K_S", "q4_k_s") in offer_forms(uncut, ZIP).choices
    offered = offer_forms(cut, ZIP)
    assert [form for _, form in offered.choices] == ["zip", "f16", "bf16"]
    assert "992 or 1024" in offered.info
    chosen = [offer_forms(each, form).value for form in ("f16", "q4_k_s") for each in (uncut, cut)]
    assert chosen == ["f16", "f16", "q4_k_s", ZIP]
