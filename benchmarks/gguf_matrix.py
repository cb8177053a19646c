"""Every family that llama.cpp knows, cut by every step, in some types: right, or refused with the reason.

Small models with random weights are exported, opened by llama.cpp and compared with transformers. A cell shows the
largest difference of a log-probability, or refers to the reason below the table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import sqrt
from pathlib import Path
from typing import Any

import pruning
from benchmarks.common import table
from pruning import Channels, Heads, Layers, Neurons, Vocabulary, Weights
from pruning.architectures.shape import Shape
from pruning.errors import PruningError
from pruning.sharing.gguf import GGUF_TYPES, converter_child, gguf_types
from pruning.sharing.gguf.compare import compare, expect
from pruning.sharing.gguf.quantize import quantize
from pruning.sharing.gguf.types import converter_folder
from tests.helpers.models import FAMILIES, WITH_BOS, tiny, tokenizer

TYPES = ("f16", "q8_0", "q4_0")

SIZES = {
    "gpt2": {"n_embd": 64, "n_inner": 96, "n_layer": 3},
    "opt": {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 96, "num_hidden_layers": 3},
    "gpt_neox": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3},
}
MODERN = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32}
OPTIONS = {
    "qwen3": {"attention_bias": False},
    "gemma2": {"query_pre_attn_scalar": 32, "num_hidden_layers": 4},
    "gemma3_text": {"query_pre_attn_scalar": 32, "num_hidden_layers": 8},
    "mistral": {"sliding_window": None},
}
"""What differs from the small models of the tests: rows that divide by 32, and what llama.cpp can express.

For K-quants, whose blocks are eight times as long, the models are eight times as wide.
"""

WIDTHS = (
    *("n_embd", "n_inner", "hidden_size", "word_embed_proj_dim", "ffn_dim", "intermediate_size"),
    *("head_dim", "query_pre_attn_scalar"),
)

SCALE = 0.6
"""Of the tests' random matrices, which are so large that 16 bits round off more than they do of a trained model."""

VARIANTS = {
    "mistral, with a window": ("mistral", {"sliding_window": 16}),
    "qwen3, with biases": ("qwen3", {"attention_bias": True}),
}

_QUICK: dict[str, Any] = {"criterion": "l2", "repair": False}


def _steps(times: int) -> Mapping[str, Sequence[Any]]:
    """Return the steps of each row, for models that are so many times as wide."""
    neurons = Neurons(intermediate_size=64 * times, **_QUICK)
    return {
        "uncut": (),
        "layers": (Layers(layers=(1,)),),
        "heads, groups": (Heads(groups=1, criterion="weights", repair=False),),
        "heads, queries": (Heads(queries=1, criterion="weights", repair=False),),
        "channels": (Channels(hidden_size=32 * times, repair=False),),
        "neurons": (neurons,),
        "vocabulary": (Vocabulary(fraction=0.1),),
        "weights": (Weights(fraction=0.5, criterion="magnitude"),),
        "layers, neurons, vocabulary": (Layers(layers=(1,)), neurons, Vocabulary(fraction=0.1)),
    }


# Importing the converter takes most of a conversion, so that one process imports it and forks for each.
_CONVERTERS = """
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("converter_child", sys.argv[1])
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/gguf-py"]
import conversion, gguf, transformers
from transformers import AutoTokenizer
for line in sys.stdin:
    extra, arguments, log = json.loads(line)
    if (pid := os.fork()) == 0:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.argv = ["convert", *arguments]
        try:
            child.patch(extra)
            child.runpy.run_path(sys.path[0] + "/convert_hf_to_gguf.py", run_name="__main__")
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(0 if isinstance(error, SystemExit) and not error.code else 1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--families", nargs="+", default=[*FAMILIES, *VARIANTS])
    parser.add_argument(
        "--types", choices=[name for name in GGUF_TYPES if name != "bf16"], nargs="+", default=list(TYPES)
    )


def main(families: Sequence[str], types: Sequence[str]) -> None:
    """Print the table, and below it the reasons."""
    types = ["f16", *(kind for kind in types if kind != "f16")]
    times = max(1, *(GGUF_TYPES[kind].multiple // 32 for kind in types))
    reasons: dict[str, int] = {}
    rows = []
    with tempfile.TemporaryDirectory() as place, _converters() as converters:
        for family in families:
            base = _base(family, Path(place), times)
            for name, steps in _steps(times).items():
                found = _cell(base, steps, types, Path(place) / "work", converters)
                cells = [each if isinstance(each, str) else f"{each:.3f}" for each in found]
                shown = [
                    f"({reasons.setdefault(cell, len(reasons) + 1)})" if not cell[0].isdigit() else cell
                    for cell in cells
                ]
                rows.append([family, name, *shown])
                print("  ", family, name, *shown, flush=True)
    table("the largest difference of a log-probability, or the reason", ["family", "step", *types], rows)
    for reason, number in reasons.items():
        print(f"({number}) {reason}")


def _base(family: str, place: Path, times: int) -> Path:
    kind, extra = VARIANTS.get(family, (family, {}))
    sizes = SIZES.get(kind, MODERN) | OPTIONS.get(kind, {}) | extra
    model = tiny(kind, **{key: value * times if key in WIDTHS else value for key, value in sizes.items()})
    for values in model.parameters():
        if values.ndim > 1:
            values.mul_(SCALE / sqrt(times))
    folder = place / family.replace(" ", "-").replace(",", "")
    model.save_pretrained(folder)
    tokenizer(kind in WITH_BOS).save_pretrained(folder)
    return folder


def _cell(
    base: Path, steps: Sequence[Any], types: Sequence[str], work: Path, converters: Any
) -> list[float | str]:
    """Return for each type the largest difference, or why it is refused."""
    with tempfile.TemporaryDirectory(prefix=work.name, dir=work.parent) as place:
        folder = base
        if steps:
            try:
                recipe = pruning.Recipe(
                    base=str(base),
                    calibration=pruning.Calibration(text="general", tokens=512),
                    steps=list(steps),
                )
                folder = pruning.run(recipe, evaluate=False).save(Path(place) / "model")
            except PruningError as error:
                return [f"cannot be cut: {error}"] * len(types)
        loaded = pruning.load(str(folder))
        obstacles = gguf_types(Shape.of(loaded.model.config))
        if obstacles["f16"]:
            return [obstacles["f16"]] * len(types)
        file = Path(place) / "model.gguf"
        expected = expect(loaded.model, loaded.tokenizer, "the model", lambda _: None)
        found: list[float | str] = []
        try:
            _convert(folder, file, converters)
            for kind in types:
                written = file
                if obstacles[kind]:
                    found.append(obstacles[kind])
                    continue
                if kind != "f16":
                    written = Path(place) / f"{kind}.gguf"
                    quantize(file, written, kind, lambda _: None)
                differences = compare(written, expected, GGUF_TYPES[kind], lambda _: None)
                found.append(max(each.largest for each in differences))
        except PruningError as error:
            found += [str(error)] * (len(types) - len(found))
        return found


def _convert(folder: Path, file: Path, converters: Any) -> None:
    log = file.with_suffix(".log")
    arguments = ["--outtype", "f16", "--outfile", str(file), str(folder)]
    converters.stdin.write(json.dumps([{}, arguments, str(log)]) + "\n")
    converters.stdin.flush()
    if converters.stdout.readline().strip() != "0":
        last = (log.read_text(encoding="utf-8").strip().splitlines() or ["nothing"])[-1]
        raise PruningError(f"The converter could not read the model: {last}")


@contextmanager
def _converters() -> Iterator[Any]:
    arguments = [sys.executable, "-I", "-c", _CONVERTERS, converter_child.__file__, str(converter_folder())]
    process = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
