"""Everything that the product writes to disk, written by child processes that are killed at random."""

import json
import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

import pruning
from pruning.calibration.statistics import Statistics, read_statistics
from pruning.distillation import checkpoint
from pruning.evaluation import base_quality, perplexity
from pruning.evaluation.perplexity import Perplexity, Quality
from pruning.files import PREFIX, cache_folder, discard
from pruning.loading import files, offline
from pruning.text.passages import GENRES
from tests.helpers.forker import exit_code, fork
from tests.helpers.models import loaded, tiny
from tests.helpers.saved import cut


@dataclass
class Writer:
    """Something that is written to disk.

    `place`: the file or folder; `write`: writes it; `is_good`: whether it can be read back unchanged.
    """

    place: Path
    write: Callable[[], object]
    is_good: Callable[[], bool]

    def state(self):
        """Return "nothing", "good", or what is wrong."""
        if not self.place.exists():
            return "nothing"
        try:
            return "good" if self.is_good() else "bad"
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def clear(self):
        discard(self.place)

    def temporary_files(self):
        """Return the names of unfinished files beside the place."""
        return [path.name for path in self.place.parent.iterdir() if path.name.startswith(PREFIX)]


def all_writers(folder):
    """Return a writer for everything that the product writes, by name."""
    base = loaded("llama")
    return {
        "saved model": _saved_model(base, folder / "saved" / "cut"),
        "converted weights": _converted_weights(base, folder / "models" / "converted"),
        "statistics": _statistics(folder / "statistics" / "kept.safetensors"),
        "distillation": _checkpoint(base, folder / "distilled" / "checkpoint"),
        "quality": _quality(base),
    }


def _same_weights(model, folder):
    weights = pruning.load(str(folder)).model.state_dict()
    return all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def _saved_model(base, place):
    pruned = cut(base)
    return Writer(place, lambda: pruned.save(place), lambda: _same_weights(pruned.model, place))


def _converted_weights(base, place):
    return Writer(
        place,
        lambda: offline._keep_converted(base.model, base.tokenizer, place),
        lambda: files.is_complete(place) and _same_weights(base.model, place),
    )


def _statistics(place):
    """Two versions in turn, so that a file made of both would be noticed."""
    windows = [torch.arange(2, 66), torch.arange(66, 130)]
    modules = [f"model.layers.{layer}.mlp.down_proj" for layer in range(3)]
    versions = [Statistics(tiny("llama", seed=seed), modules, windows[:1], windows[1:]) for seed in (0, 1)]
    turns = iter(range(10**9))

    def is_version(saved, statistics):
        return all(
            torch.equal(saved.moments[module].square, statistics.moments[module].square)
            and torch.equal(saved.gram(module).gram, statistics.gram(module).gram)
            for module in modules
        )

    def is_good():
        saved = read_statistics(place)
        return saved is not None and any(is_version(saved, version) for version in versions)

    return Writer(place, lambda: versions[next(turns) % 2].save(place), is_good)


def _checkpoint(base, place):
    def training(scale):
        """Return weights that are trained, and their optimizer as accelerate wraps it."""
        weights = {
            name: torch.nn.Parameter(tensor.detach() * scale)
            for name, tensor in base.model.named_parameters()
        }
        return weights, SimpleNamespace(optimizer=torch.optim.AdamW(weights.values()))

    weights, optimizer = training(1.0)
    for tensor in weights.values():
        tensor.grad = torch.ones_like(tensor)
    optimizer.optimizer.step()
    state = checkpoint.TrainingState(step=1)

    def resumes():
        resumed, optimizer = training(0.0)
        state, _ = checkpoint.load_checkpoint(place, "run", resumed, optimizer)
        return state.step == 1 and all(torch.equal(resumed[name], weights[name]) for name in weights)

    return Writer(
        place, lambda: checkpoint.save_checkpoint(place, "run", state, weights, {}, optimizer), resumes
    )


def _quality(base):
    """The evaluation of a base model that is kept on disk; nothing is measured here."""
    score = Perplexity(25.5, 2048, 512, "held out")
    quality = Quality(score, dict.fromkeys(GENRES, score))
    perplexity.evaluate = lambda *_, **__: quality
    key = perplexity.evaluation_key(base.source.revision)
    place = cache_folder() / "quality" / f"{key}.json"

    def write():
        place.unlink(missing_ok=True)
        base_quality.stored_quality(base)

    return Writer(place, write, lambda: Quality.from_dict(json.loads(place.read_text())) == quality)


def kill_at_random(kills, folder):
    """Kill writers a number of times in all, and return what that left, by the name of the writer.

    The moments are fixed by a seed, in shares of the time that the writer needs.
    """
    moments = random.Random(0)
    writers = all_writers(folder)
    results = {}
    for number, (name, writer) in enumerate(writers.items()):
        share = kills * (number + 1) // len(writers) - kills * number // len(writers)
        seconds = statistics.median(_seconds_to_write(writer) for _ in range(3))
        result = {"kills": 0, "interrupted": 0, "found good": 0, "damaged": [], "seconds to write": seconds}
        for _ in range(share):
            writer.clear()
            # More often early: most of the time after that is spent on reading the files back.
            _kill_one(writer, seconds, 2 * seconds * moments.random() ** 2)
            result["kills"] += 1
            result["interrupted"] += bool(writer.temporary_files())
            state = writer.state()
            result["found good"] += state == "good"
            if state not in ("good", "nothing"):
                result["damaged"].append(state)
        # The next start: unfinished files are removed, and writing works.
        writer.clear()
        writer.write()
        result["left"] = [*writer.temporary_files(), *([] if writer.state() == "good" else ["not written"])]
        results[name] = result
    return results


def _kill_one(writer, seconds, moment):
    """Let a child write repeatedly, with pauses half as long as the writing, and kill it at a moment."""
    ready, started = os.pipe()

    def write_until_killed():
        os.write(started, b"x")
        while True:
            if writer.place.is_dir():
                writer.clear()
            writer.write()
            time.sleep(seconds / 2)

    pid = fork(write_until_killed)
    os.read(ready, 1)
    time.sleep(moment)
    os.kill(pid, signal.SIGKILL)
    assert exit_code(pid) == -signal.SIGKILL, "the writer failed before it was killed"
    os.close(ready)
    os.close(started)


def _seconds_to_write(writer):
    writer.clear()
    start = time.perf_counter()
    writer.write()
    return time.perf_counter() - start
