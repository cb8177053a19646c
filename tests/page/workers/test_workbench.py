"""The models that visitors share: bounded, rebuilt from their recipe, private ones for their owner only."""

import gc
import time
import weakref
from dataclasses import replace

import pytest

from page.workers.storage import Storage
from page.workers.workbench import Visitor, Workbench
from pruning import Calibration, Distillation, ModelError, Neurons, Recipe
from pruning.calibration import cache
from pruning.distillation.progress import TrainingProgress
from tests.helpers import models

ADA, BOB = Visitor("ada:1"), Visitor("bob:2")
CUSTOM_TEXT = "The keeper climbed the stairs and lit the lamp at dusk. " * 60


@pytest.fixture
def bench(monkeypatch):
    """A workbench with room for everything. Its bases are small random models, public unless their name
    says otherwise."""

    loaded = models.loaded("llama")

    def load(name, **settings):
        source = replace(loaded.source, name=name, public="private" not in name)
        return replace(loaded, model=models.tiny("llama"), source=source)

    monkeypatch.setattr("pruning.loading.load.load", load)
    return Workbench(max_bytes=10**9)


def recipe(fraction, base="public", **values):
    return Recipe(base=base, steps=[Neurons(fraction=fraction, criterion="l2", repair=False)], **values)


def test_a_recipe_is_pruned_once_for_everyone(bench):
    assert bench.prune(recipe(0.25), ADA) is bench.prune(recipe(0.25), BOB)


def test_an_evicted_model_is_rebuilt_the_same_from_its_recipe(bench):
    first = {name: value.clone() for name, value in bench.prune(recipe(0.25), ADA).model.state_dict().items()}
    bench.max_bytes = 1
    bench.prune(recipe(0.5), ADA)
    made = []
    again = bench.prune(recipe(0.25), ADA, made.append)
    assert made
    assert all((value == first[name]).all() for name, value in again.model.state_dict().items())


def test_shared_tensors_are_counted_once(bench):
    base = bench.load("public", ADA)
    alone = bench.bytes
    pruned = bench.prune(recipe(0.25), ADA)
    shared = {p.data_ptr() for p in base.model.parameters()}
    own = sum(p.nbytes for p in pruned.model.parameters() if p.data_ptr() not in shared)
    assert bench.bytes == alone + own


def test_the_least_recently_used_is_evicted_first(bench):
    bench.load("public", ADA)
    references = {f: weakref.ref(bench.prune(recipe(f), ADA).model) for f in (0.25, 0.5)}
    bench.prune(recipe(0.25), ADA)
    bench.max_bytes = bench.bytes
    bench.prune(recipe(0.75), ADA)
    gc.collect()
    assert references[0.25]() is not None
    assert references[0.5]() is None
    assert bench.bytes <= bench.max_bytes


def test_a_model_in_use_is_not_evicted(bench):
    held = bench.prune(recipe(0.25), ADA)
    bench.max_bytes = 1
    bench.prune(recipe(0.5), ADA)
    bench.prune(recipe(0.75), ADA)
    made = []
    assert bench.prune(recipe(0.25), ADA, made.append) is held
    assert not made


def test_a_private_model_belongs_to_its_owner_and_is_dropped_with_them(bench):
    private = recipe(0.25, base="private")
    made = bench.prune(private, ADA)
    assert bench.prune(private, ADA) is made
    assert bench.prune(private, BOB) is not made
    bench.forget("ada")
    assert bench.prune(private, ADA) is not made


def test_a_private_model_is_not_kept_for_a_visitor_without_a_name(bench):
    assert bench.load("private", Visitor()) is not bench.load("private", Visitor())


def test_another_token_in_the_same_session_is_another_owner(bench):
    assert bench.load("private", Visitor("ada:1")) is not bench.load("private", Visitor("ada:2"))


def test_a_custom_text_belongs_to_its_owner_and_leaves_nothing_behind(bench):
    own = recipe(0.25, calibration=Calibration.custom(CUSTOM_TEXT, tokens=256))
    own = own.model_copy(update={"steps": (Neurons(fraction=0.25, criterion="activation"),)})
    made = bench.prune(own, ADA)
    assert bench.prune(own, BOB) is not made
    assert cache.total_bytes() > 0
    bench.forget("ada")
    bench.forget("bob")
    assert cache.total_bytes() == 0


def test_forgetting_one_visitor_keeps_what_was_computed_for_others_and_on_bundled_texts(bench):
    def reads_again(text, visitor):
        reports = []
        bench.layer_influences("public", text, 0, visitor, reports.append)
        return any(report.text == "Measuring the layers, windows" for report in reports)

    adas = Calibration.custom(CUSTOM_TEXT, tokens=256)
    bobs = Calibration.custom(CUSTOM_TEXT.upper(), tokens=256)
    bundled = Calibration(text="story", tokens=256)
    for text, visitor in ((adas, ADA), (bobs, BOB), (bundled, ADA)):
        assert reads_again(text, visitor)
    bench.forget("ada")
    assert not reads_again(bobs, BOB)
    assert not reads_again(bundled, BOB)
    assert reads_again(adas, ADA)


def test_a_private_model_is_dropped_after_long_without_use(bench, monkeypatch):
    made = bench.load("private", ADA)
    monkeypatch.setattr("page.workers.workbench.IDLE_SECONDS", 0.0)
    time.sleep(0.01)
    assert bench.load("private", ADA) is not made


def test_one_owners_text_stays_while_another_owner_has_the_same(bench):
    own = recipe(0.25, calibration=Calibration.custom(CUSTOM_TEXT, tokens=256))
    own = own.model_copy(update={"steps": (Neurons(fraction=0.25, criterion="activation"),)})
    for visitor in (ADA, BOB):
        bench.prune(own, visitor)
    kept = cache.total_bytes()
    bench.forget("ada")
    assert cache.total_bytes() == kept
    bench.forget("bob")
    assert cache.total_bytes() < kept


@pytest.fixture
def other_bench(bench, tmp_path):
    """Two workbenches of two workers, which keep in the same folder what took minutes."""
    bench.models = Storage(tmp_path / "kept", 10**9)
    return Workbench(10**9, bench.models)


def test_a_distilled_model_outlives_its_worker(bench, other_bench):
    made = bench.distill(recipe(0.25), Distillation(steps=1), ADA)
    told = []
    found = other_bench.prune(made.recipe, BOB, told.append)
    assert not [event for event in told if "Distilling" in str(event)]
    assert found.report == made.report
    values = made.model.state_dict()
    assert all((value == values[name]).all() for name, value in found.model.state_dict().items())


def test_two_trainings_by_minutes_are_two_models_each_with_its_own_report(bench, other_bench):
    """A visitor who stops early must not hand the next one the model that they have."""

    def stop(event):
        if isinstance(event, TrainingProgress):
            event.stop()

    asked = Distillation(minutes=0.05)
    stopped = bench.distill(recipe(0.25), asked, ADA, stop)
    whole = bench.distill(recipe(0.25), asked, BOB)
    seconds = [made.report.notes[-1][0].seconds for made in (stopped, whole)]
    assert [made.recipe.steps[-1].minutes * 60 for made in (stopped, whole)] == pytest.approx(
        seconds, abs=0.01
    )
    assert seconds[0] < seconds[1]
    for made in (stopped, whole):
        found = other_bench.prune(made.recipe, BOB)
        assert found.report == made.report
        assert found.recipe == made.recipe


def test_a_distilled_private_model_is_its_owners_alone_and_leaves_with_them(bench, other_bench):
    made = bench.distill(recipe(0.25, base="private"), Distillation(steps=1), ADA)

    def trains(visitor):
        told = []
        Workbench(10**9, bench.models).prune(made.recipe, visitor, told.append)
        return any("Distilling" in str(event) for event in told)

    assert not trains(ADA)
    assert trains(BOB)
    bench.models.forget("ada")
    assert trains(ADA)


def test_a_model_that_one_worker_measured_is_not_measured_again_by_another(bench, other_bench):
    *_, measured = bench.iter_evaluate(recipe(0.25), ADA)
    (found,) = other_bench.iter_evaluate(recipe(0.25), BOB)
    assert found.report == measured.report
    assert found.report.is_complete


def test_a_report_on_a_private_model_is_its_owners_alone(bench, other_bench):
    private = recipe(0.25, base="private")
    list(bench.iter_evaluate(private, ADA))
    assert len(list(other_bench.iter_evaluate(private, ADA))) == 1
    assert len(list(Workbench(10**9, bench.models).iter_evaluate(private, BOB))) > 1


def test_a_full_disk_costs_the_next_worker_time_and_nothing_else(bench, other_bench):
    bench.models.max_bytes = 1
    made = bench.distill(recipe(0.25), Distillation(steps=1), ADA)
    assert bench.models.bytes == 0
    assert bench.prune(made.recipe, BOB) is made


@pytest.mark.parametrize("name", ["", None, 5, "x" * 300])
def test_what_cannot_be_a_name_is_refused(bench, name):
    with pytest.raises(ModelError, match="is not a model"):
        bench.load(name, ADA)


def test_the_text_of_a_visitor_whose_leaving_was_missed_is_dropped(bench, monkeypatch):
    bench.base_texts.keep("ada:1", "asked", "Ada's")
    bench.base_texts.keep("", "asked by all", "everyone's")
    monkeypatch.setattr("page.workers.workbench.IDLE_SECONDS", -1.0)
    bench.load("public", Visitor())
    assert bench.base_texts.find("ada:1", "asked") is None
    assert bench.base_texts.find("ada:1", "asked by all") == "everyone's"
