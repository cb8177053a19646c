"""Any work can be stopped between two windows: it then ends with `Cancelled`, and leaves nothing behind."""

import hashlib
from contextlib import contextmanager

import pytest
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

import pruning
from pruning.calibration import cache
from pruning.evaluation import inspection
from pruning.evaluation.base_quality import base_quality
from pruning.evaluation.speed import tokens_per_second
from pruning.shape_search.sweep import iter_sweep
from pruning.sharing.gguf.rounded import iter_rounded
from pruning.text.generation import sample_text
from tests.helpers.models import folder_of
from tests.helpers.saved import cut

TEXT = pruning.Calibration(text="story", tokens=512, window=64)
TRAINING = {
    "steps": 2,
    "batch": 3,
    "micro_batch_size": 1,
    "window": 32,
    "learning_rate": 1e-3,
    "text": "story",
}


def step(*steps):
    def run(base, progress, _folder):
        recipe = pruning.Recipe(base=base.source.name, calibration=TEXT, steps=steps)
        return pruning.prune(recipe, base, progress=progress)

    return run


def size(base):
    return sum(parameter.numel() for parameter in base.model.parameters())


WORK = {
    "neurons": step(pruning.Neurons(fraction=0.25)),
    "heads": step(pruning.Heads(groups=1)),
    "channels": step(pruning.Channels(fraction=0.25)),
    **{
        f"layers by {method}": step(pruning.Layers(count=1, method=method))
        for method in ("influence", "angular", "perplexity", "greedy", "last")
    },
    "weights": step(pruning.Weights(fraction=0.5, criterion="wanda")),
    "vocabulary": step(pruning.Vocabulary(vocab_size=300)),
    "reconstruction": step(pruning.Neurons(fraction=0.25, repair=False), pruning.Reconstruction(epochs=1)),
    "distillation": step(pruning.Neurons(fraction=0.25, repair=False), pruning.Distillation(**TRAINING)),
    "own text": lambda base, progress, _: sample_text(base, 300, progress=progress),
    "speed": lambda base, progress, _: tokens_per_second(
        (base.model,), base.tokenizer, new_tokens=3, rounds=1, progress=progress
    ),
    "quality": lambda base, progress, _: pruning.evaluate(base, tokens=400, progress=progress),
    "base quality": lambda base, progress, _: base_quality(base, tokens=400, progress=progress),
    "next tokens": lambda base, progress, _: inspection.next_tokens(base, "The fox", progress=progress),
    "losses": lambda base, progress, _: inspection.losses_by_token(
        (base, base), "The fox ran.", progress=progress
    ),
    "influences": lambda base, progress, _: inspection.layer_influences(base, TEXT, progress=progress),
    "search": lambda base, progress, _: pruning.search(
        base, pruning.Budget(int(0.8 * size(base))), calibration=TEXT, thorough=False, progress=progress
    ),
    "sweep": lambda base, progress, _: list(iter_sweep(base, ["l1"], calibration=TEXT, progress=progress)),
    "rounding": lambda base, progress, _: list(
        iter_rounded(base, cut(base, progress=progress), progress=progress)
    ),
    "saving": lambda base, progress, folder: cut(base, progress=progress).save(
        folder / "cut", max_shard_size=30_000, progress=progress
    ),
}
TEACHER_AND_STUDENT = {"distillation": 2}


@pytest.fixture(scope="module")
def base():
    """A model of its own, since what is cached for it is dropped again and again."""
    return pruning.load(str(folder_of("llama")))


def digest(base):
    total = hashlib.sha256()
    for name, tensor in base.model.state_dict().items():
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def calls_of(work, base, folder, stop_at=None):
    """Carry out some work, cancelled at one call of its reporter; return the number of calls."""
    cache.clear()
    calls = 0

    def report(progress):
        nonlocal calls
        assert isinstance(progress, pruning.progress.Progress)
        calls += 1
        if calls == stop_at:
            raise pruning.Cancelled("Stopped.")

    work(base, report, folder)
    return calls


@pytest.mark.parametrize("name", WORK)
def test_work_stops_at_any_report_and_leaves_nothing(name, base, tmp_path):
    before, folder = digest(base), tmp_path / "out"
    folder.mkdir()
    calls_of(WORK[name], base, tmp_path / "first")  # It tokenizes the passages, and they are kept.
    total = calls_of(WORK[name], base, tmp_path)
    for number in sorted({1, 2, total // 2, total} & set(range(1, total + 1))):
        with pytest.raises(pruning.Cancelled, match="Stopped"):
            calls_of(WORK[name], base, folder, stop_at=number)
        assert not list(folder.iterdir())
        assert not list(tmp_path.rglob(".secateur-*"))
    assert digest(base) == before
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@contextmanager
def forward_passes():
    """Yield the forward passes of models and layers since the last `clear`."""
    passes = []
    handle = register_module_forward_pre_hook(lambda module, _args: passes.append(type(module)))
    try:
        yield passes
    finally:
        handle.remove()


@pytest.mark.parametrize("name", WORK)
def test_there_is_a_report_between_any_two_windows(name, base, tmp_path):
    cache.clear()
    worst, layers = [0, 0], base.model.config.num_hidden_layers
    with forward_passes() as passes:

        def report(_progress):
            models, alone = passes.count(LlamaModel), passes.count(LlamaDecoderLayer)
            worst[0] = max(worst[0], models)
            worst[1] = max(worst[1], alone - models * layers)
            passes.clear()

        WORK[name](base, report, tmp_path)
    allowed = TEACHER_AND_STUDENT.get(name, 1)
    assert worst[0] <= allowed
    assert worst[1] <= 1, "layers that run by themselves, as in a reconstruction, report for each window"


def test_publishing_can_be_stopped_before_each_file(base, hub, tmp_path):
    folder = cut(base).save(tmp_path / "cut", max_shard_size=30_000)

    def publish(_base, progress, _folder):
        pruning.publish(folder, "ada/cut", token="ada-token", progress=progress)

    total = calls_of(publish, base, tmp_path)
    assert total > len(list(folder.iterdir()))
    for number in range(1, total + 1):
        hub.repos.clear()
        with pytest.raises(pruning.Cancelled):
            calls_of(publish, base, tmp_path, stop_at=number)
        assert not hub.repos
