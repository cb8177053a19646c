"""A recipe, carried out: the same weights each time, and on the real model the quality promised."""

import json
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import pruning
from pruning import (
    Calibration,
    Cancelled,
    Layers,
    ModelError,
    Neurons,
    Recipe,
    RecipeError,
    perplexity,
    pipeline,
    preview,
    prune,
    request,
    run,
)
from pruning import pruned as pruned_model
from pruning.evaluation.perplexity import Quality
from pruning.loading import given
from pruning.pipeline import evaluate_pruned
from pruning.progress import silent
from pruning.text.passages import GENRES, passage
from tests.helpers.chat import named
from tests.helpers.models import FAMILIES, count, folder_of, loaded, save_tiny, tiny, trained

WIKITEXT = Path(__file__).parents[3] / "shared" / "data" / "wikitext-2" / "valid.txt"
QUICK = Calibration(text="story", tokens=512, window=128)


def recipe_of(*steps, base="x", **values):
    return Recipe(base=base, calibration=QUICK, steps=[Neurons(**step) for step in steps], **values)


def assert_equal(one, other):
    left, right = one.model.state_dict(), other.model.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_recipe_gives_the_same_weights(family, tmp_path):
    recipe = recipe_of({"fraction": 0.3}, {"width": 20, "criterion": "random"}, base="x", seed=5)
    once = prune(recipe, loaded(family))
    again = prune(Recipe.parse(recipe.to_yaml()), pruning.load(str(save_tiny(tmp_path, family))))
    assert_equal(once, again)
    other = prune(recipe.model_copy(update={"seed": 6}), loaded(family))
    assert not all(map(torch.equal, once.model.parameters(), other.model.parameters()))


def test_a_recipe_enters_each_stage_once(tmp_path, monkeypatch):
    stages = []
    walk = {
        "find": ("pruning.request.find", request.find),
        "check": ("pruning.recipe.Recipe.check", Recipe.check),
        "load": ("pruning.loading.given.load", given.load),
        "prune": ("pruning.pipeline.apply_steps", pipeline.apply_steps),
        "evaluate": ("pruning.pipeline.evaluate_pruned", pipeline.evaluate_pruned),
        "save": ("pruning.pruned.save_model", pruned_model.save_model),
    }

    def recorded(stage, function):
        def call(*arguments, **options):
            stages.append(stage)
            return function(*arguments, **options)

        return call

    for stage, (name, function) in walk.items():
        monkeypatch.setattr(name, recorded(stage, function))
    run(recipe_of({"fraction": 0.3}, base=str(folder_of("llama")))).save(tmp_path / "smaller")
    assert stages == ["find", "check", "load", "prune", "evaluate", "save"]


def test_the_layers_that_remain_are_recorded_and_read_back(tmp_path):
    base = save_tiny(tmp_path / "base", "llama", num_hidden_layers=6)
    steps = [Layers(layers=(1, 4)), Layers(layers=(0,))]
    pruned = run(Recipe(base=str(base), calibration=QUICK, steps=steps), evaluate=False)
    assert pruned.layers == pruned.recipe.kept_layers == (2, 3, 5)
    folder = pruned.save(tmp_path / "smaller")
    assert pruning.load(str(folder)).source.kept_layers == (2, 3, 5)
    whole = run(recipe_of({"fraction": 0.3}, base=str(base)), evaluate=False)
    assert whole.layers == tuple(range(6))
    assert whole.recipe.kept_layers is None


def test_a_model_that_can_chat_is_asked_questions_for_its_card(tmp_path):
    words = named("chatml")
    tiny("llama", vocab_size=len(words)).save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    recipe = recipe_of({"fraction": 0.3, "criterion": "l2"}, base=str(tmp_path / "base"))
    pruned = run(recipe, progress=silent)
    assert all(sample.is_question for sample in pruned.report.samples)
    card = (pruned.save(tmp_path / "cut") / "README.md").read_text(encoding="utf-8")
    first = pruned.report.samples[0]
    assert f"{first.prompt}\n\nbase:   {first.base.splitlines()[0] if first.base else ''}" in card


def test_run_loads_cuts_and_measures():
    base, lines = folder_of("llama"), []
    pruned = run(recipe_of({"fraction": 0.3}, base=str(base)), progress=lines.append)
    assert pruned.recipe.revision.startswith("sha256:")
    assert pruned.recipe.base == str(base)
    report = pruned.report
    assert report.after.parameters == count(pruned.model) < report.before.parameters
    assert report.after.bytes == 4 * report.after.parameters
    assert isinstance(report.before.quality, Quality)
    assert report.before.quality != report.after.quality
    assert report.before.tokens_per_second > 0 < report.after.tokens_per_second
    assert len(report.samples) == 3
    assert not any(sample.is_question for sample in report.samples)
    assert set(report.seconds) == {"calibrate", "cut", "evaluate"}
    stages = {line.text for line in lines}
    assert {"Reading the weights", "Cutting"} <= stages
    assert {"Ranking neurons, layers", "Repairing, layers", "Reading the calibration text, windows"} <= stages
    json.dumps(pruned.to_dict())
    assert_equal(pruned, prune(pruned.recipe, loaded("llama")))


def test_pinned_recipe_refuses_another_base(tmp_path):
    pinned = recipe_of({"fraction": 0.3}, base=str(folder_of("llama"))).pinned("sha256:" + "0" * 64)
    with pytest.raises(ModelError, match="not the one that the recipe was made for"):
        run(pinned, evaluate=False)


def test_impossible_steps_are_refused_before_any_work():
    read = []
    base = loaded("gpt2")
    recipe = recipe_of({"fraction": 0.3}, {"width": 40})
    with pytest.raises(RecipeError, match="removes none of the 34 neurons"):
        prune(recipe, base, progress=read.append)
    assert read == []


def test_every_stage_can_be_stopped():
    base = loaded("llama")
    stages = []
    prune(recipe_of({"fraction": 0.3}), base, progress=lambda progress: stages.append(progress.text))
    before = count(base.model)
    for stage in dict.fromkeys(stages):

        def stop(progress, stage=stage):
            if progress.text == stage:
                raise Cancelled("Stopped.")

        with pytest.raises(Cancelled):
            prune(recipe_of({"fraction": 0.3, "multiple_of": 2}, seed=len(stage)), base, progress=stop)
    assert count(base.model) == before
    assert not any(module._forward_pre_hooks for module in base.model.modules())


def test_recipes_in_threads_do_not_disturb_one_another():
    base, results = loaded("mistral", seed=9), {}
    recipes = [
        recipe_of({"width": width, "criterion": "peak_to_peak", "repair": True}) for width in (10, 20, 30)
    ]

    def work(recipe):
        results[recipe.digest] = prune(recipe, base)

    threads = [threading.Thread(target=work, args=(recipe,)) for recipe in recipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for recipe in recipes:
        assert_equal(results[recipe.digest], prune(recipe, base))


def test_calibration_is_read_once_for_every_ratio_and_criterion():
    base, read = loaded("qwen3", seed=9), []
    handle = base.model.base_model.register_forward_pre_hook(lambda *_: read.append(1))
    prune(recipe_of({"fraction": 0.3}), base)
    windows = len(read)
    for step in ({"fraction": 0.5}, {"width": 9, "criterion": "wanda"}, {"fraction": 0.2, "repair": False}):
        prune(recipe_of(step), base)
    assert len(read) == windows > 0
    handle.remove()


def test_better_criteria_lose_less_of_what_was_learnt():
    base = trained()

    def lost(**step):
        pruned = prune(recipe_of({"fraction": 0.5} | step).model_copy(update={"calibration": LONG}), base)
        return evaluate_pruned(pruned, base).report.after.quality.overall.value

    assert lost() < lost(repair=False) < lost(criterion="random")
    assert lost(criterion="random", repair=True) < lost(criterion="random")


LONG = Calibration(tokens=4096, window=64)


@pytest.fixture(scope="module", params=["bundled", pytest.param("wikitext", marks=pytest.mark.shared)])
def promise(request):
    """A text to calibrate on, another of the same kind to evaluate on, and what 20 % and 50 % may cost."""
    if request.param == "bundled":
        passages = {
            split: [passage(genre, split) for genre in GENRES] for split in ("calibration", "heldout")
        }
        heldout = "\n\n".join(text[:2000] for text in passages["heldout"])
        return "\n\n".join(passages["calibration"]), heldout, 1.5, 3.3
    if not WIKITEXT.is_file():
        pytest.skip(f"WikiText-2 is not at {WIKITEXT}")
    text = WIKITEXT.read_text(encoding="utf-8")
    return text[: len(text) // 2], text[len(text) // 2 :], 1.35, 2.2


@pytest.mark.real
@pytest.mark.timeout(600)
def test_real_model_keeps_the_quality_promised(smollm2, promise):
    first, second, ratio_20, ratio_50 = promise
    calibration = Calibration.custom(first, tokens=8192)

    def measured(model, tokens=2048):
        return perplexity(model, smollm2.tokenizer, second, tokens=tokens, window=512)

    def cut(tokens=2048, **step):
        recipe = Recipe(base="smollm2-135m", calibration=calibration, steps=[Neurons(**step)])
        return measured(prune(recipe, smollm2).model, tokens).value

    base = measured(smollm2.model)
    assert base.tokens == 2048
    assert 10 < base.value < 40
    assert cut(fraction=0.2) <= ratio_20 * base.value
    assert cut(fraction=0.5) <= ratio_50 * base.value
    # One window is enough to see that a model is ruined.
    least = 20 * measured(smollm2.model, 512).value
    assert cut(512, fraction=0.2, criterion="gate_up_unpaired") > least
    assert cut(512, fraction=0.2, criterion="l1") > least


@pytest.mark.real
def test_real_model_is_counted_right(smollm2, tmp_path):
    recipe = Recipe(base="smollm2-135m", steps=[Neurons(fraction=0.2, criterion="peak_to_peak")])
    pruned = prune(recipe, smollm2)
    assert pruned.report.before.parameters == count(smollm2.model) == 134_515_008
    assert pruned.report.after.parameters == count(pruned.model)
    smollm2.model.config.save_pretrained(tmp_path)
    assert preview(Recipe(base=str(tmp_path), steps=recipe.steps)).after.parameters == count(pruned.model)
    pruned.model.save_pretrained(tmp_path / "cut")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", local_files_only=True).eval()
    ids = torch.arange(5, 37)[None]
    assert torch.equal(reloaded(ids).logits, pruned.model(ids).logits)
