"""Peak resident memory: of pruning, over the bytes of the new tensors; of streaming, over its bound."""

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from benchmarks.common import base, table
from pruning import Heads, Layers, Neurons, Recipe, load, prune, streaming
from pruning.architectures.anatomy import anatomy_of
from pruning.runtime import configure

GB = 10**9
LARGEST_FILE = GB // 2

LLAMA_1B = LlamaConfig(
    architectures=["LlamaForCausalLM"],
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    max_position_embeddings=131072,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    bos_token_id=None,
    eos_token_id=None,
    tie_word_embeddings=True,
    dtype="bfloat16",
)
"""The shape of Llama-3.2-1B: 1,235,814,400 parameters."""

CUTS = {
    "neurons, peak_to_peak": Neurons(fraction=0.2, criterion="peak_to_peak"),
    "neurons, activation": Neurons(fraction=0.2, repair=False),
    "neurons, repaired": Neurons(fraction=0.2),
}
STREAMED = (
    Neurons(fraction=0.2, criterion="peak_to_peak"),
    Heads(groups=4, criterion="weights"),
    Layers(count=3, method="last"),
)


def main() -> None:
    """Measure each cut and a streamed recipe in a process of its own, and print two tables."""
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        random = Path(folder) / "llama-1b"
        base().tokenizer.save_pretrained(random)
        write_random(random)
        cases = [(base().source.name, name) for name in CUTS] + [(str(random), "neurons, peak_to_peak")]
        rows = []
        for model, cut in cases:
            sizes = _in_fresh_process("pruning", model, cut)
            limit = sizes["before"] + sizes["new"]
            rows.append(
                (
                    Path(model).name,
                    cut,
                    *(f"{sizes[key] / 1e6:,.0f} MB" for key in ("before", "new", "peak")),
                    f"{(sizes['peak'] - sizes['before']) / sizes['new']:.3f}",
                    f"{sizes['peak'] / limit:.3f}",
                )
            )
        table(
            "Pruning 20% of the neurons in memory, each in a fresh process",
            ["model", "cut", "resident before", "new tensors", "peak", "growth over new", "peak over both"],
            rows,
        )
        sizes = _in_fresh_process("streaming", str(random), folder)
        bound = 1.5 * sizes["largest"] + GB
        table(
            "Streaming Llama-3.2-1B's shape from file to file (neurons, groups, layers)",
            ["largest file", "bound", "peak", "peak over bound"],
            [
                [f"{x / 1e6:,.0f} MB" for x in (sizes["largest"], bound, sizes["peak"])]
                + [f"{sizes['peak'] / bound:.2f}"]
            ],
        )


def write_random(folder: Path) -> None:
    """Write a checkpoint of Llama-3.2-1B's shape with random weights, in files of at most half a gigabyte.

    Only one of the files is in memory at a time.
    """
    generator = torch.Generator().manual_seed(0)
    shards, size = [{}], 0
    weights: dict[str, str] = {}

    def flush() -> None:
        name = f"model-{len(shards):05d}.safetensors"
        save_file(shards[-1], folder / name, metadata={"format": "pt"})
        weights.update(dict.fromkeys(shards[-1], name))
        shards[-1] = {}

    for spec in anatomy_of(LLAMA_1B).tensors:
        tensor = torch.empty(spec.shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
        if shards[-1] and size + tensor.nbytes > LARGEST_FILE:
            flush()
            shards.append({})
            size = 0
        shards[-1][spec.name] = tensor
        size += tensor.nbytes
    flush()
    LLAMA_1B.save_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))


def measure_pruning(model: str, cut: str) -> dict[str, int]:
    """Measure the bytes resident before pruning, the bytes of the new tensors, and the peak."""
    loaded = load(model)
    recipe = Recipe(base=model, steps=[CUTS[cut]])
    prune(recipe, loaded)  # The first time computes the statistics.
    release_free_memory()
    before = resident("VmRSS")
    reset_peak()
    pruned = prune(recipe, loaded).model
    shared = {parameter.data_ptr() for parameter in loaded.model.parameters()}
    new = sum(parameter.nbytes for parameter in pruned.parameters() if parameter.data_ptr() not in shared)
    return {"before": before, "new": new, "peak": resident("VmHWM")}


def measure_streaming(model: str, folder: str) -> dict[str, int]:
    """Measure the bytes of the largest file of a model, and the peak of a process that streams it."""
    streaming.prune(Recipe(base=model, steps=STREAMED), Path(folder) / "streamed")
    largest = max(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    return {"largest": largest, "peak": resident("VmHWM")}


def resident(which: str) -> int:
    """Return the bytes of resident memory of this process: now (`VmRSS`) or at its peak (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def release_free_memory() -> None:
    """Return free memory to the system: https://man7.org/linux/man-pages/man3/malloc_trim.3.html"""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    """Reset `VmHWM`: https://man7.org/linux/man-pages/man5/proc_pid_clear_refs.5.html"""
    Path("/proc/self/clear_refs").write_text("5")


def _in_fresh_process(*arguments: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *arguments], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


TASKS: dict[str, Callable[[str, str], dict[str, int]]] = {
    "pruning": measure_pruning,
    "streaming": measure_streaming,
}

if __name__ == "__main__":
    configure()
    task, *arguments = sys.argv[1:]
    print(json.dumps(TASKS[task](*arguments)))
