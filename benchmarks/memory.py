"""Peak resident memory: of cutting over the bytes of the new tensors, of streaming over its bound."""

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
    "neurons, ppm": Neurons(fraction=0.2, criterion="peak_to_peak"),
    "neurons, activation": Neurons(fraction=0.2, repair=False),
    "neurons, repaired": Neurons(fraction=0.2),
}
STREAMED = (
    Neurons(fraction=0.2, criterion="peak_to_peak"),
    Heads(groups=4, criterion="weights"),
    Layers(count=3, method="last"),
)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        random = Path(folder) / "llama-1b"
        base().tokenizer.save_pretrained(random)
        write_random(random)
        cases = [(base().source.name, name) for name in CUTS] + [(str(random), "neurons, ppm")]
        rows = []
        for model, cut in cases:
            found = _in_fresh_process("cutting", model, cut)
            limit = found["before"] + found["new"]
            rows.append(
                (
                    Path(model).name,
                    cut,
                    *(f"{found[key] / 1e6:,.0f} MB" for key in ("before", "new", "peak")),
                    f"{(found['peak'] - found['before']) / found['new']:.3f}",
                    f"{found['peak'] / limit:.3f}",
                )
            )
        table(
            "Cutting 20 % of the neurons in memory, a fresh process each",
            ["model", "cut", "resident before", "new tensors", "peak", "more, over new", "peak over both"],
            rows,
        )
        found = _in_fresh_process("streaming", str(random), folder)
        bound = 1.5 * found["largest"] + GB
        table(
            "Streaming Llama-3.2-1B's shape from file to file (neurons, groups, layers)",
            ["largest file", "bound", "peak", "peak over bound"],
            [
                [f"{x / 1e6:,.0f} MB" for x in (found["largest"], bound, found["peak"])]
                + [f"{found['peak'] / bound:.2f}"]
            ],
        )


def write_random(folder: Path) -> None:
    """A checkpoint of Llama-3.2-1B's shape with random weights, in files of half a gigabyte at most.

    Only one of them is ever in memory.
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


def cutting(model: str, cut: str) -> dict[str, int]:
    """Bytes resident before, the bytes of the tensors that are new, and the peak while cutting."""
    loaded = load(model)
    recipe = Recipe(base=model, steps=[CUTS[cut]])
    prune(recipe, loaded)  # The first time makes the statistics.
    give_back_what_is_free()
    before = resident("VmRSS")
    forget_peak()
    pruned = prune(recipe, loaded).model
    shared = {each.data_ptr() for each in loaded.model.parameters()}
    new = sum(each.nbytes for each in pruned.parameters() if each.data_ptr() not in shared)
    return {"before": before, "new": new, "peak": resident("VmHWM")}


def streamed(model: str, folder: str) -> dict[str, int]:
    """The bytes of the largest file of a model, and the peak of a process that streams it."""
    streaming.prune(Recipe(base=model, steps=STREAMED), Path(folder) / "streamed")
    largest = max(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    return {"largest": largest, "peak": resident("VmHWM")}


def resident(which: str) -> int:
    """Bytes of resident memory of this process: now (`VmRSS`) or at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def give_back_what_is_free() -> None:
    """Let nothing be resident that is not in use: https://man7.org/linux/man-pages/man3/malloc_trim.3.html"""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def forget_peak() -> None:
    """Start `VmHWM` anew: https://man7.org/linux/man-pages/man5/proc_pid_clear_refs.5.html"""
    Path("/proc/self/clear_refs").write_text("5")


def _in_fresh_process(*arguments: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *arguments], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


TASKS: dict[str, Callable[[str, str], dict[str, int]]] = {"cutting": cutting, "streaming": streamed}

if __name__ == "__main__":
    configure()
    task, *arguments = sys.argv[1:]
    print(json.dumps(TASKS[task](*arguments)))
