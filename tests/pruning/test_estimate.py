"""What a recipe takes, estimated from the config alone, against what it took."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pruning
from pruning import (
    Calibration,
    Channels,
    Distillation,
    Heads,
    Layers,
    Neurons,
    Recipe,
    Reconstruction,
    Vocabulary,
    Weights,
)
from pruning.architectures.shape import Shape
from pruning.calibration import cache
from pruning.errors import RecipeError
from pruning.estimate import estimate, generating, next_tokens, perplexities, search, sweep, token_losses
from pruning.evaluation import inspection, perplexity
from pruning.shape_search.search import search as search_shapes
from pruning.shape_search.sweep import iter_sweep
from pruning.steps import STEPS
from pruning.steps.base import Step
from tests.helpers import models
from tests.helpers.flops import count_flop

FACTOR = 1.5
SHORT = Calibration(tokens=1024, window=128)

SAMPLES = {
    "layers": (Layers(count=1, protect=False),),
    "angular": (Layers(count=1, method="angular", protect=False, repair=False),),
    "heads": (Heads(groups=1),),
    "neurons": (Neurons(fraction=0.25),),
    "most neurons": (Neurons(fraction=0.7),),
    "channels": (Channels(hidden_size=24),),
    "weights": (Weights(fraction=0.5),),
    "reconstruction": (Reconstruction(epochs=2),),
    "distillation": (Distillation(steps=3, batch=3, micro_batch_size=2, window=64),),
    "distillation of all": (
        Distillation(steps=2, batch=2, window=128, embeddings=True, hidden_loss_weight=1.0),
    ),
    "samples": (Distillation(steps=1, text={"text": "self_generated"}, samples=512),),
    "several": (Neurons(fraction=0.25), Reconstruction(epochs=1), Distillation(steps=1)),
}


def recipe(*steps, calibration=SHORT):
    return Recipe(base="base", steps=steps, calibration=calibration)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "phi3"])
def test_operations_are_those_that_a_recipe_does(family, sample):
    base, asked = models.loaded(family), recipe(*SAMPLES[sample])
    shape = Shape.of(base.model.config)
    try:
        asked.check(shape)
    except RecipeError:
        pytest.skip("the family cannot be cut so")
    cache.clear()
    done = count_flop(lambda: pruning.prune(asked, base))
    estimated = estimate(asked, shape, free=10**9).flop
    assert done / FACTOR < estimated < done * FACTOR


@pytest.mark.parametrize("family", ["opt", "gpt_neox", "qwen3", "gemma3_text"])
def test_operations_of_an_evaluation_are_those_that_it_does(family):
    base = models.loaded(family)
    done = count_flop(lambda: perplexity.evaluate(base, tokens=500))
    assert done / FACTOR < perplexities(Shape.of(base.model.config), 500).flop < done * FACTOR


def test_operations_of_a_generation_are_those_that_it_does():
    base = models.loaded("llama")
    ids = torch.arange(20)[None]
    done = count_flop(
        lambda: base.model.generate(
            ids, max_new_tokens=30, min_new_tokens=30, do_sample=False, pad_token_id=0
        )
    )
    assert done / FACTOR < generating([Shape.of(base.model.config)], 20, 30).flop < done * FACTOR


def test_operations_of_an_inspection_are_those_that_it_does():
    base, text = models.loaded("qwen3"), models.PROMPT * 8
    shape, tokens = Shape.of(base.model.config), len(base.tokenizer(text).input_ids)
    done = count_flop(lambda: inspection.next_tokens(base, text))
    assert done / FACTOR < next_tokens(shape, tokens).flop < done * FACTOR
    done = count_flop(lambda: inspection.losses_by_token([base, base], text))
    assert done / FACTOR < token_losses([shape, shape], tokens).flop < done * FACTOR


def test_operations_of_a_sweep_and_of_a_search_are_those_that_they_do():
    base = models.loaded("llama", num_hidden_layers=4)
    shape = Shape.of(base.model.config)
    cache.clear()
    done = count_flop(lambda: list(iter_sweep(base, ["l1", "activation"], calibration=SHORT)))
    estimated = sweep(shape, ["l1", "activation"], SHORT, free=10**9).flop
    assert done / FACTOR < estimated < 3 * done  # The statistics are computed once, and counted for each.
    cache.clear()
    budget = pruning.Budget(int(0.75 * shape.parameters))
    done = count_flop(lambda: search_shapes(base, budget, calibration=SHORT, thorough=False))
    assert done / FACTOR < search(shape, SHORT, thorough=False, free=10**9).flop < 3 * done


def test_a_training_by_minutes_takes_its_minutes():
    shape = Shape.of(models.config("llama"))
    by_steps, by_minutes = (
        estimate(recipe(Distillation(**length)), shape, free=10**9)
        for length in ({"steps": 1000}, {"minutes": 5})
    )
    assert (by_steps.seconds, by_minutes.seconds) == (0, 300)
    assert by_minutes.flop < by_steps.flop


def test_statistics_that_do_not_fit_are_read_in_several_passes():
    shape = Shape.of(models.config("llama"))
    roomy, tight = (estimate(recipe(Neurons(fraction=0.25)), shape, free=free) for free in (10**9, 100_000))
    assert tight.flop > 1.5 * roomy.flop
    assert tight.memory < roomy.memory


def test_another_teacher_is_counted_beside_the_base():
    shape = Shape.of(models.config("llama"))
    large = Shape.of(models.config("llama", hidden_size=1024, intermediate_size=4096, num_hidden_layers=8))
    asked = recipe(Distillation(steps=1, teacher="someone/large"))
    cost = estimate(asked, shape, free=10**9, teachers={"someone/large": large})
    assert cost.memory > 4 * large.parameters
    assert cost.flop > estimate(asked, shape, free=10**9).flop


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_every_step_knows_its_own_cost(step):
    assert step.cost is not Step.cost


def test_a_step_without_a_cost_cannot_be_made():
    class Free(Step):
        step: str = "free"

        def reshape(self, shape):
            return shape

        def apply(self, context):
            raise NotImplementedError

        def describe(self):
            return "free"

    with pytest.raises(TypeError, match="cost"):
        Free()


NOISE = 80_000_000
"""Memory that does not count: what the allocator keeps, and half of what an estimate adds for it."""

MEMORY_SAMPLES = {
    "layers": (Layers(count=2),),
    "layers by perplexity": (Layers(count=2, method="perplexity"),),
    "heads": (Heads(groups=1),),
    "neurons": (Neurons(fraction=0.3),),
    "channels": (Channels(fraction=0.3),),
    "vocabulary": (Vocabulary(fraction=0.01),),
    "weights": (Weights(fraction=0.5),),
    "reconstruction": (Reconstruction(epochs=1),),
    "long window": (Distillation(steps=1, batch=1, window=1024),),
    "large batch": (Distillation(steps=1, batch=8, micro_batch_size=8, window=128),),
    "all of it": (Distillation(steps=2, batch=2, window=64, embeddings=True, hidden_loss_weight=1.0),),
}

SIZES = {
    "10M": {"hidden_size": 252, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 8000},
    "40M": {"hidden_size": 480, "intermediate_size": 1536, "num_hidden_layers": 10, "vocab_size": 24000},
}


def peaks(name: str, recipes) -> list[int]:
    """Return the peak of private memory of each recipe, in a process of its own."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.helpers.peak_memory", name]
    command += [json.dumps(asked.to_dict()) for asked in recipes]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return [json.loads(line)["bytes"] for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_memory_is_what_recipes_take_at_their_peak(size, tmp_path):
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": SIZES[size]["hidden_size"] // 6}
    options = {"tie_word_embeddings": True, "max_position_embeddings": 4096}
    folder = models.save_tiny(tmp_path / "model", "llama", **SIZES[size], **heads, **options)
    shape = Shape.of(pruning.loading.load.find(str(folder)).config)
    recipes = [
        Recipe(base=str(folder), steps=steps, calibration=Calibration(tokens=256))
        for steps in MEMORY_SAMPLES.values()
    ]
    teacher = recipe(Distillation(steps=1, batch=1, window=64, teacher=str(folder)))
    recipes.append(teacher)
    wrong = {}
    for name, asked, taken in zip(
        [*MEMORY_SAMPLES, "teacher"], recipes, peaks(str(folder), recipes), strict=True
    ):
        estimated = estimate(asked, shape, free=10**9, base_is_mapped=True).memory
        if not taken / FACTOR - NOISE < estimated < taken * FACTOR + NOISE:
            wrong[name] = (taken, estimated)
    assert wrong == {}


@pytest.mark.real
@pytest.mark.slow
def test_memory_of_the_default_model_is_what_recipes_take_at_their_peak():
    shape = Shape.of(pruning.loading.load.find("smollm2-135m").config)
    samples = ("layers", "neurons", "long window", "large batch")
    recipes = [
        Recipe(base="smollm2-135m", steps=MEMORY_SAMPLES[name], calibration=Calibration(tokens=256))
        for name in samples
    ]
    wrong = {}
    for name, asked, taken in zip(samples, recipes, peaks("smollm2-135m", recipes), strict=True):
        estimated = estimate(asked, shape, free=4 * 10**9, base_is_mapped=True).memory
        if not taken / FACTOR - NOISE < estimated < taken * FACTOR + NOISE:
            wrong[name] = (taken, estimated)
    assert wrong == {}
