"""What a visitor finds when the page opens."""

from datetime import date
from types import SimpleNamespace

import pytest

from page.layout import build_page
from page.sections import first_visit
from page.server import links
from page.server.form import CONTROLS
from page.server.jobs import Watch
from page.server.session import audience, job_name, jobs
from page.server.warm_up import WarmUp
from page.store.keys import Base
from page.workers.messages import Done, Evaluation, Prompt, PrunedSummary, Texts
from page.workers.tasks import CompareTask, EvaluateTask, PruneTask
from pruning import Layers, Recipe, catalog
from pruning.architectures.shape import Shape
from pruning.errors import ModelError
from tests.helpers import models
from tests.helpers.saved import cut
from tests.page.sections.conftest import read_all

DAY = date(2026, 11, 26)
MODEL = catalog.MODELS[catalog.DEFAULT_MODEL]
REVISION = MODEL.offline.revision


@pytest.fixture
def opened(monkeypatch):
    """`opened(request)` returns what the page shows after it has opened. All is recorded, and the model is known."""
    warm_up = WarmUp()
    warm_up.shape_known.set()
    demo = build_page(warm_up)
    (load,) = (fn for fn in demo.fns.values() if fn.api_name.startswith("show_first"))
    pruned = cut(models.loaded("llama"))
    shape = Shape.of(models.loaded("llama").model.config)
    summary = PrunedSummary(
        pruned.recipe, pruned.report, shape, pruned.shape, pruned.source, Prompt("", True)
    )
    results = {
        PruneTask: summary,
        CompareTask: Texts("Paris.", "Lyon."),
        EvaluateTask: Evaluation(None, pruned.report),
    }
    monkeypatch.setattr(first_visit, "picture_and_note", lambda *values: ("picture", "note", None, ""))
    monkeypatch.setattr(
        first_visit,
        "fit_sliders",
        lambda model, *_: [None] * sum(control.slider is not None for control in CONTROLS),
    )
    monkeypatch.setattr(first_visit, "recall", lambda task, visitor: Done(results[type(task)], DAY))
    monkeypatch.setattr(
        "page.sections.recipe_box.look_up", lambda *_: SimpleNamespace(shape=shape, source=pruned.source)
    )

    def show(request):
        *_, last = read_all(load.fn(request, None))
        assert set(last) <= set(load.outputs)
        return {part.elem_id or part.get_block_name(): value for part, value in last.items()}

    return show


def test_recorded_results_are_there_with_the_page_for_packaged_weights(monkeypatch):
    for module in ("page.store.packaged", "page.sections.first_visit"):
        monkeypatch.setattr(f"{module}.packaged_base", lambda name: Base(MODEL.hub_id, REVISION))
    demo = build_page(WarmUp())
    values = {block.elem_id: getattr(block, "value", None) for block in demo.blocks.values()}
    assert "The capital of France is Paris." in values["texts"]
    assert "117,926,208" in values["measures"]
    assert "20% of the MLP neurons removed" in values["result-heading"]
    assert "Recorded on" in values["result-heading"]


def test_without_packaged_weights_the_page_waits_for_the_first_press(monkeypatch):
    def missing(name):
        raise ModelError("not installed")

    monkeypatch.setattr("page.store.packaged.packaged_base", missing)
    demo = build_page(WarmUp())
    values = {block.elem_id: getattr(block, "value", None) for block in demo.blocks.values()}
    assert "texts empty" in values["texts"]
    assert not values["result-heading"]


def test_the_default_results_are_shown_whole_and_can_be_used(opened, request_of):
    shown = opened(request_of())
    assert "Lyon." in shown["texts"]
    assert shown["export"].visible
    assert "Recorded on 26 November 2026." in shown["result-heading"]
    assert "Ready." in shown["status"]
    assert shown["run-live"].visible


def test_a_link_opens_with_its_own_results_or_with_none(opened, request_of, monkeypatch):
    request = request_of()
    request.query_params = {
        links.PARAMETER: links.encode(Recipe(base="smollm2-135m", steps=(Layers(count=2),)))
    }
    assert "2 layers (influence) removed" in opened(request)["result-heading"]
    monkeypatch.setattr(first_visit, "recall", lambda task, visitor: None)
    shown = opened(request)
    assert "texts empty" in shown["texts"]
    assert shown["result-heading"] == ""


def test_a_visitor_who_pressed_before_keeps_their_own_results(opened, request_of):
    request = request_of()
    name = job_name(request)
    jobs.replace(name, Watch(name))
    shown = opened(request)
    assert "texts" not in shown
    assert shown["picture"] == "picture"


def test_a_visitor_who_moved_a_control_before_keeps_what_they_see(opened, request_of):
    request = request_of()
    audience.use(request.session_hash, "home")
    assert "picture" in opened(request)
    audience.note_move(request.session_hash)
    shown = opened(request)
    assert "picture" not in shown
    assert "texts" not in shown
    assert "Ready." in shown["status"]
