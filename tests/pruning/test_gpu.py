"""A GPU computes what a CPU computes. Skipped if there is no GPU.

All other tests hide the GPU. `make gpu` runs these.
"""

import json
import subprocess
import sys
from functools import lru_cache

import pytest
import torch
from transformers import AutoModelForCausalLM

import pruning
from pruning import Calibration, Distillation, Heads, Layers, Neurons, Recipe, Reconstruction
from tests.helpers.models import CONFIGS, PROMPT, count, folder_of, loaded, save_type
from tests.pruning.steps.samples import SAMPLES
from tests.pruning.steps.test_steps import IDS, impossible

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that tests may use"),
]

TEXT = Calibration(tokens=640, window=64)
ALONE = [
    pytest.param(step, id=f"{name}-{number}")
    for name, sample in SAMPLES.items()
    for number, step in enumerate(sample.alone)
    if sample.in_matrix
]
TRAINED = (Reconstruction(epochs=1), Distillation(steps=3))

MIXTURE_STEPS = [
    *SAMPLES["experts"].alone,
    Neurons(fraction=0.3, criterion="activation", repair=False),
    Layers(count=1, protect=False),
]


@pytest.fixture(scope="module")
def on_gpu():
    """`on_gpu(family)`: a small model as the library loads it on a GPU, once for the module."""
    made = {}

    def load(family, **options):
        key = (family, *sorted(options.items()))
        if key not in made:
            made[key] = pruning.load(str(loaded(family).source.folder), device="cuda", **options)
        return made[key]

    return load


def logits(model):
    with torch.inference_mode():
        return model(IDS.to(model.device)).logits.float().cpu()


def test_a_model_that_fits_is_put_on_the_gpu():
    assert pruning.load(str(folder_of("llama"))).model.device.type == "cuda"
    assert pruning.load(str(folder_of("llama")), device="cpu").model.device.type == "cpu"


@pytest.mark.parametrize("step", ALONE)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_gpu_removes_what_a_cpu_removes(family, step, on_gpu, tmp_path):
    if impossible([step], family):
        pytest.skip("this family cannot be cut like that")
    recipe = Recipe(base="tiny", calibration=TEXT, steps=[step])
    base = on_gpu(family)
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    pruned, expected = pruning.prune(recipe, base), pruning.prune(recipe, cpu(family))
    assert all(torch.equal(before[key], value) for key, value in base.model.state_dict().items())
    assert {value.device.type for value in pruned.model.parameters()} == {"cuda"}
    assert count(pruned.model) == count(expected.model)
    assert pruned.layers == expected.layers
    torch.testing.assert_close(logits(pruned.model), logits(expected.model), rtol=1e-2, atol=1e-2)
    pruned.save(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    torch.testing.assert_close(logits(again), logits(pruned.model), rtol=1e-2, atol=1e-2)


@lru_cache
def cpu(family):
    return pruning.load(str(loaded(family).source.folder), device="cpu")


@pytest.mark.parametrize("step", ALONE)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_models_in_16_bits_are_cut_and_saved(family, step, on_gpu, tmp_path):
    if impossible([step], family):
        pytest.skip("this family cannot be cut like that")
    base = on_gpu(family, dtype="bfloat16")
    assert base.model.dtype == torch.bfloat16
    pruned = pruning.prune(Recipe(base="tiny", calibration=TEXT, steps=[step]), base)
    pruned.save(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    near = logits(again)
    assert (logits(pruned.model) - near).abs().max() < 0.1 * near.std()


@pytest.mark.parametrize("step", MIXTURE_STEPS)
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_mixtures_of_experts_are_cut(name, step, tmp_path):
    folder = save_type(tmp_path / "base", name)
    on_gpu, on_cpu = (pruning.load(folder, device=device) for device in ("cuda", "cpu"))
    recipe = Recipe(base="tiny", calibration=TEXT, steps=[step])
    pruned, expected = pruning.prune(recipe, on_gpu), pruning.prune(recipe, on_cpu)
    torch.testing.assert_close(logits(pruned.model), logits(expected.model), rtol=1e-2, atol=1e-2)
    pruned.save(tmp_path / "saved")


@pytest.mark.parametrize("step", TRAINED, ids=lambda step: step.step)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_a_gpu_trains_what_it_cut(family, dtype, step, on_gpu, tmp_path):
    steps = [Neurons(fraction=0.3), step]
    pruned = pruning.prune(Recipe(base="tiny", calibration=TEXT, steps=steps), on_gpu(family, dtype=dtype))
    assert {value.device.type for value in pruned.model.parameters()} == {"cuda"}
    assert torch.isfinite(logits(pruned.model)).all()
    pruned.save(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    near = logits(again)
    assert (logits(pruned.model) - near).abs().max() < 0.1 * near.std()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_evaluates_and_writes_as_a_cpu_does(dtype, on_gpu):
    base = on_gpu("llama", dtype=dtype)
    expected = pruning.evaluate(cpu("llama"), tokens=512)
    assert pruning.evaluate(base, tokens=512).overall.value == pytest.approx(expected.overall.value, rel=0.02)
    greedy = pruning.Sampling(max_new_tokens=8)
    text = pruning.generate(base, PROMPT, greedy, chat=False)
    if dtype == "float32":
        assert text == pruning.generate(cpu("llama"), PROMPT, greedy, chat=False)


@pytest.mark.parametrize(
    "steps",
    [["--neurons", "30%"], ["--layers", "1"], ["--neurons", "30%", "--distill-steps", "2"]],
    ids=" ".join,
)
def test_the_shell_prunes_on_a_gpu(steps, tmp_path):
    arguments = [
        "prune",
        str(folder_of("llama")),
        "--device",
        "cuda",
        *steps,
        "--output",
        str(tmp_path / "out"),
        "--json",
    ]
    done = subprocess.run([sys.executable, "-m", "pruning", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    checked = subprocess.run(
        [sys.executable, "-m", "pruning", "verify", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr + checked.stdout


def test_layers_are_chosen_by_every_method_on_a_gpu(on_gpu):
    base = on_gpu("gemma3_text")
    for method in ("influence", "magnitude", "angular", "perplexity", "greedy"):
        recipe = Recipe(base="tiny", calibration=TEXT, steps=[Layers(count=1, method=method, protect=False)])
        assert pruning.prune(recipe, base).layers == pruning.prune(recipe, cpu("gemma3_text")).layers


def test_a_model_given_on_a_gpu_stays_there(on_gpu):
    given = on_gpu("llama")
    pruned = pruning.prune(given.model, given.tokenizer, steps=[Heads(groups=1)], calibration=TEXT)
    assert pruned.model.device.type == "cuda"


def test_importance_is_that_of_a_cpu(on_gpu):
    base, other = on_gpu("llama"), cpu("llama")
    layers, neurons = pruning.layer_importance(base, TEXT), pruning.neuron_importance(base, TEXT)
    assert layers == pytest.approx(pruning.layer_importance(other, TEXT), rel=1e-2)
    for layer, scores in pruning.neuron_importance(other, TEXT).items():
        assert neurons[layer] == pytest.approx(scores, rel=1e-2)


def test_a_search_and_a_sweep_run_on_a_gpu(on_gpu):
    base = on_gpu("llama", dtype="bfloat16")
    assert pruning.search(base, "20%", calibration=TEXT).trials
    assert len(list(pruning.iter_sweep(base, ["activation", "random"], calibration=TEXT))) > 2


@pytest.mark.parametrize("score", ["answers", "skills"])
def test_answers_and_skills_are_measured_on_a_gpu(score, on_gpu):
    found = pruning.evaluate(on_gpu("llama"), metrics=[score], against=on_gpu("llama", dtype="bfloat16"))
    assert score in str(found)
