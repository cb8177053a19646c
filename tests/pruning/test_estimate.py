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
    Weights,
)
from pruning.architectures.shape import Shape
from pruning.calibration import cache
from pruning.cost.passes import Sizes
from pruning.estimate import (
    COMPARED_TOKENS,
    estimate,
    exporting,
    generating,
    importance,
    influence,
    next_tokens,
    perplexities,
    rounding,
    saving,
    search,
    speed,
    sweep,
    token_losses,
)
from pruning.evaluation import inspection, perplexity
from pruning.evaluation.speed import tokens_per_second
from pruning.loading.load import find
from pruning.progress import silent
from pruning.shape_search.search import search as search_shapes
from pruning.shape_search.sweep import iter_sweep
from pruning.sharing.gguf import GGUF_TYPES
from pruning.sharing.gguf.expect import expect
from pruning.sharing.gguf.rounded import ROUNDED_TYPES, TOKENS, iter_rounded
from pruning.steps import STEPS
from pruning.steps.base import Step
from pruning.text.choice import TextChoice
from tests.helpers import models
from tests.helpers.flops import count_flop

FACTOR = 1.5
SHORT = Calibration(tokens=512, window=128)

SAMPLES = {
    "layers": (Layers(count=1, protect=False),),
    "layers by perplexity": (Layers(count=1, method="perplexity"),),
    "layers by angular distance": (Layers(count=1, method="angular", protect=False, repair=False),),
    "layers one by one": (Layers(count=2, method="greedy", protect=False),),
    "heads": (Heads(groups=1),),
    "neurons": (Neurons(fraction=0.25),),
    "most neurons": (Neurons(fraction=0.7),),
    "channels": (Channels(hidden_size=24),),
    "weights": (Weights(fraction=0.5),),
    "reconstruction": (Reconstruction(epochs=2),),
    "distillation": (Distillation(steps=3, batch=3, micro_batch_size=2, window=64, text="general"),),
    "distillation of all": (
        Distillation(steps=2, batch=2, window=128, embeddings=True, hidden_loss_weight=1.0, text="general"),
    ),
    "samples": (Distillation(steps=1, text={"text": "self_generated"}, samples=512),),
    "several": (Neurons(fraction=0.25), Reconstruction(epochs=1), Distillation(steps=1, text="general")),
}

FAMILIES = {"llama": [*SAMPLES], "gpt2": ["neurons", "reconstruction", "distillation"]}
FAMILIES |= {"gemma2": ["layers", "distillation of all"], "phi3": ["heads", "neurons", "distillation"]}
"""Every step on one family, and on others what depends on their attention, their MLP or their norms."""


def recipe(*steps, calibration=SHORT):
    return Recipe(base="base", steps=steps, calibration=calibration)


@pytest.mark.parametrize(
    ("family", "sample"), [(family, sample) for family, samples in FAMILIES.items() for sample in samples]
)
def test_operations_are_those_that_a_recipe_does(family, sample):
    base, asked = models.loaded(family, num_hidden_layers=4), recipe(*SAMPLES[sample])
    shape = Shape.of(base.model.config)
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


def inspections(base):
    """Return what is done with a loaded model without a recipe, each with its estimate."""
    shape, text = Shape.of(base.model.config), models.PROMPT * 8
    tokens = len(base.tokenizer(text).input_ids)
    return {
        "next tokens": (lambda: inspection.next_tokens(base, text), next_tokens(shape, tokens)),
        "losses by token": (
            lambda: inspection.losses_by_token([base, base], text),
            token_losses([shape, shape], tokens),
        ),
        "importance": (
            lambda: inspection.neuron_scores(base, "activation", SHORT),
            importance(shape, SHORT, free=10**9),
        ),
        "influence": (lambda: inspection.layer_influences(base, SHORT), influence(shape, SHORT)),
        "speed": (lambda: tokens_per_second([base.model], base.tokenizer), speed([shape])),
    }


@pytest.mark.parametrize("kind", ["next tokens", "losses by token", "importance", "influence", "speed"])
def test_operations_of_an_inspection_are_those_that_it_does(kind):
    work, estimated = inspections(models.loaded("qwen3"))[kind]
    cache.clear()
    done = count_flop(work)
    assert done / FACTOR < estimated.flop < done * FACTOR


def test_operations_of_a_check_of_a_saved_model_are_those_that_it_does(tmp_path):
    pruned = pruning.prune(
        recipe(Neurons(fraction=0.25, criterion="l2", repair=False)), models.loaded("llama")
    )
    done = count_flop(lambda: pruned.save(tmp_path / "saved"))
    assert done / FACTOR < saving(pruned.shape).flop < done * FACTOR


# Of a mixture, all experts are counted: four times as many as read a token.
@pytest.mark.parametrize(("model_type", "times"), [("llama", FACTOR), ("mixtral", 4)])
def test_operations_of_a_comparison_with_llama_cpp_are_those_that_it_does(model_type, times, tmp_path):
    sizes = {"max_position_embeddings": 1024}
    base = pruning.load(models.save_type(tmp_path / "model", model_type, **sizes))
    shape, kind = Shape.of(base.model.config), GGUF_TYPES["f16"]
    done = count_flop(lambda: expect(base.model, base.tokenizer, "model", kind, silent))
    # llama.cpp reads the texts once more, and counts nothing.
    read_again = Sizes(shape).forward_flop(COMPARED_TOKENS, COMPARED_TOKENS)
    assert done / FACTOR < exporting(shape, kind.bits).flop - read_again < done * times


def test_operations_of_a_sweep_and_of_a_search_are_those_that_they_do():
    base = models.loaded("llama", num_hidden_layers=4)
    shape = Shape.of(base.model.config)
    cache.clear()
    done = count_flop(lambda: list(iter_sweep(base, ["activation"], calibration=SHORT)))
    estimated = sweep(shape, ["activation"], SHORT, free=10**9).flop
    assert done / FACTOR < estimated < done * FACTOR
    cache.clear()
    budget = pruning.Budget(int(0.75 * shape.parameters))
    done = count_flop(lambda: search_shapes(base, budget, calibration=SHORT, thorough=False))
    assert done / FACTOR < search(shape, SHORT, thorough=False, free=10**9).flop < 3 * done


def test_operations_of_a_comparison_with_fewer_bits_are_those_that_it_does():
    base = models.loaded("llama", intermediate_size=64, hidden_size=64)
    pruned = pruning.prune(recipe(Neurons(intermediate_size=32, criterion="l2", repair=False)), base)
    cache.clear()
    done = count_flop(lambda: list(iter_rounded(base, pruned)))
    shapes = Shape.of(base.model.config), pruned.shape
    estimated = rounding(*shapes, len(ROUNDED_TYPES), TOKENS)
    assert done / FACTOR < estimated.flop < done * FACTOR
    assert estimated.memory > sum(parameter.nbytes for parameter in base.model.parameters())


def test_a_training_by_minutes_takes_its_minutes():
    shape = Shape.of(models.config("llama"))
    by_steps, by_minutes = (
        estimate(recipe(Distillation(**length)), shape, free=10**9)
        for length in ({"steps": 1000}, {"minutes": 5})
    )
    assert (by_steps.seconds, by_minutes.seconds) == (0, 300)
    assert by_minutes.flop < by_steps.flop


def test_statistics_that_do_not_fit_are_read_in_several_passes():
    shape = Shape.of(models.config("llama", hidden_size=256, intermediate_size=2048, num_hidden_layers=8))
    roomy, tight = (estimate(recipe(Neurons(fraction=0.25)), shape, free=free) for free in (10**10, 10**8))
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
"""Memory that does not count: what the allocator keeps, and what an estimate adds for it."""

FREE = 4 * 10**9
TEXT = Calibration(tokens=1024)
TRAINED_ON = TextChoice(text="story")
"""The length of the text does not change how much memory a training takes, and a short text is evaluated sooner."""

MEMORY = {
    "layers": (Layers(count=2),),
    "heads": (Heads(groups=1),),
    "neurons": (Neurons(fraction=0.3),),
    "channels": (Channels(fraction=0.3),),
    "weights": (Weights(fraction=0.5),),
    "reconstruction": (Reconstruction(epochs=1),),
    "long window": (Distillation(steps=1, batch=1, window=1024, text=TRAINED_ON),),
    "large batch": (Distillation(steps=1, batch=8, micro_batch_size=8, text=TRAINED_ON),),
    "everything trained": (
        Distillation(steps=2, batch=2, window=64, embeddings=True, hidden_loss_weight=1.0, text=TRAINED_ON),
    ),
}
"""Each step once, and what takes most: a large batch, a long window, all weights."""

REQUESTS = ("teacher", "search", "generate", "save")

FROM_ABOVE = {"reconstruction", "search"}
"""What is bounded from above alone: a layer keeps its training only if that helps, and a search its choices."""

SIZES = {
    "10M": {"hidden_size": 252, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 8000},
    "40M": {"hidden_size": 480, "intermediate_size": 1536, "num_hidden_layers": 10, "vocab_size": 24000},
    "teacher": {"hidden_size": 528, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 24000},
}


def saved(folder: Path, size: str) -> tuple[str, Shape]:
    """Save a model of a size, and return its folder and shape."""
    sizes = SIZES[size]
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": sizes["hidden_size"] // 6}
    options = {"tie_word_embeddings": True, "max_position_embeddings": 4096}
    name = str(models.save_tiny(folder / size, "llama", **sizes, **heads, **options))
    return name, Shape.of(find(name).config)


def peaks(name: str, work) -> list[int]:
    """Return the peak of private memory of each piece of work, in a process of its own."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.helpers.peak_memory", name, *map(json.dumps, work)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return [json.loads(line)["bytes"] for line in done.stdout.splitlines() if line.startswith("{")]


def pieces_of_work(name: str, shape: Shape, teacher: tuple[str, Shape], stored_bytes: int):
    """Return pieces of work as the child process reads them, each with its estimate."""

    def pruning_by(*steps):
        asked = Recipe(base=name, steps=steps, calibration=TEXT)
        cost = estimate(asked, shape, free=FREE, teachers=dict([teacher]), base_is_mapped=True)
        return {"work": "prune", "recipe": json.dumps(asked.to_dict())}, cost

    prompt = models.PROMPT * 20
    tokens = len(models.tokenizer()(prompt).input_ids)
    fewer_layers = Recipe(base=name, steps=(Layers(count=1, method="last", repair=False),))
    taught = Distillation(steps=1, batch=2, window=64, teacher=teacher[0], text=TRAINED_ON)
    return {sample: pruning_by(*steps) for sample, steps in MEMORY.items()} | {
        "teacher": pruning_by(taught),
        "search": (
            {"work": "search", "parameters": int(0.75 * shape.parameters)},
            search(shape, Calibration(tokens=2048), thorough=False, free=FREE),
        ),
        "generate": (
            {"work": "generate", "prompt": prompt, "new_tokens": 20},
            generating([shape, shape], tokens, 20),
        ),
        "save": (
            {"work": "save", "recipe": json.dumps(fewer_layers.to_dict())},
            saving(fewer_layers.check(shape), stored_bytes),
        ),
    }


def wrong_memory(name: str, shape: Shape, samples, teacher: tuple[str, Shape], stored_bytes: int = 4):
    """Return each sample whose estimate is not within the factor, with what it took and its estimate, in MB."""
    pieces = pieces_of_work(name, shape, teacher, stored_bytes)
    wrong = {}
    for sample, taken in zip(samples, peaks(name, [pieces[each][0] for each in samples]), strict=True):
        estimated = pieces[sample][1].memory
        enough = taken / FACTOR - NOISE < estimated
        if not enough or (sample not in FROM_ABOVE and estimated > taken * FACTOR + NOISE):
            wrong[sample] = (taken // 10**6, estimated // 10**6)
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "samples"),
    [
        ("10M", (*MEMORY, "search", "generate", "save")),
        ("40M", ("neurons", "everything trained", "teacher")),
    ],
    ids=["10M", "40M"],
)
def test_memory_is_what_work_takes_at_its_peak(size, samples, tmp_path):
    name, shape = saved(tmp_path, size)
    assert wrong_memory(name, shape, samples, saved(tmp_path, "teacher")) == {}


@pytest.mark.real
@pytest.mark.slow
def test_memory_of_the_default_model_is_what_work_takes_at_its_peak(smollm2, user_cache, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(user_cache))
    base = "smollm2-135m", Shape.of(smollm2.model.config)
    samples = ("weights", "long window")
    assert wrong_memory(*base, samples, teacher=base, stored_bytes=smollm2.storage_dtype.itemsize) == {}
