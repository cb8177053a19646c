"""Export to GGUF, the format of llama.cpp: convert, open with llama.cpp, compare, and only then hand over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.architectures.shape import Shape
from pruning.errors import ModelError, RecipeError, SavingError
from pruning.files import replacing, temporary_folder
from pruning.lazy import torch
from pruning.loading.load import LoadedModel, fetch_recipe, find, load
from pruning.progress import Progress, Reporter, silent
from pruning.recipe import Recipe
from pruning.saving.code_free import check_code_free
from pruning.saving.provenance import read_safetensors_metadata
from pruning.sharing.gguf.compare import Comparison, Difference, compare, compare_16_bits
from pruning.sharing.gguf.convert import convert
from pruning.sharing.gguf.expect import Expectation, expect
from pruning.sharing.gguf.k_quants import packing_function
from pruning.sharing.gguf.provenance import facts_of
from pruning.sharing.gguf.quantize import byte_shares, metadata, open_gguf, quantize
from pruning.sharing.gguf.types import GGUF_TYPES, GGUFType, check_known, check_reader, gguf_types
from pruning.sharing.gguf.usage import run_lines

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Exported:
    """A GGUF file that llama.cpp opened.

    Attributes:
        file: The file.
        type: How it stores the weights.
        differences: How far llama.cpp's log-probabilities are from those of transformers, by length of text.
        shares: The share of the tensors' bytes that each type has.
        run: The lines that run the file, by the program that they are for.
        remarks: What llama.cpp cannot do as the tokenizer does it.
        perplexity_ratio: Perplexity on held-out text over that of the unrounded model; None for types of 16 bits.
    """

    file: Path
    type: str
    differences: tuple[Difference, ...]
    shares: Mapping[str, float]
    run: Mapping[str, str]
    remarks: tuple[str, ...] = ()
    perplexity_ratio: float | None = None

    @property
    def fallback(self) -> str:
        """What is stored in another type than the one chosen, with its share of the bytes; empty if nothing is."""
        stored = GGUF_TYPES[self.type].tensor_type
        other = [f"{share:.1%} in {name}" for name, share in self.shares.items() if name != stored]
        return " and ".join(other)

    @property
    def notes(self) -> list[str]:
        """What a user should know of the file, in lines: how far llama.cpp is off, and how to run it."""
        return [
            *([f"Of the matrices' bytes, {self.fallback}."] if self.fallback else []),
            *(each.summary for each in self.differences),
            *([] if self.perplexity_ratio is None else [_rounding(self.type, self.perplexity_ratio)]),
            *self.remarks,
            *(f"{program}: {line}" for program, line in self.run.items()),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "output": str(self.file),
            "type": self.type,
            "bytes": self.file.stat().st_size,
            "differences": [asdict(each) for each in self.differences],
            "perplexity_ratio": self.perplexity_ratio,
            "shares": dict(self.shares),
            "run": dict(self.run),
            "remarks": list(self.remarks),
        }


def export(folder: str | Path, output: str | Path, type: str = "f16", *, progress: Reporter = silent) -> Path:
    """Convert a saved model to a GGUF file, which appears when llama.cpp has opened it and computes the same with it.

    Args:
        folder: A folder that holds a saved model.
        output: The file to write.
        type: How to store the weights: a key of `GGUF_TYPES`.
        progress: Is called with each stage.

    Returns:
        The file.

    Raises:
        RecipeError: There is no such type, or the model's shape does not allow it.
        ModelError: llama.cpp is not installed, or the folder holds no model, or one that the converter cannot read or
            llama.cpp computes differently.
        SavingError: The file exists, or cannot be written.

    Example:
        >>> import pruning
        >>> recipe = pruning.Recipe(base="smollm2-135m", steps=[pruning.Neurons(fraction=0.2)])
        >>> folder = pruning.run(recipe).save("smaller")
        >>> file = pruning.export(folder, "smaller.gguf", "f16")
    """
    return export_and_compare(folder, output, type, progress=progress).file


def export_and_compare(
    folder: str | Path, output: str | Path, type: str = "f16", *, progress: Reporter = silent
) -> Exported:
    """Do what `export` does, and return what was measured too."""
    folder, output = Path(folder), Path(output)
    recipe = _check(folder, type)
    if output.exists():
        raise SavingError(f"{output} exists. Choose another name, or remove it first.")
    loaded = load(find(folder, weights=True), progress=progress)
    expected = _expectation(loaded, folder.name, GGUF_TYPES[type], progress)
    facts = facts_of(recipe, _weights_metadata(folder), expected)
    try:
        with replacing(output) as temporary, temporary_folder(temporary.parent) as work:
            written, comparison = _write(folder, work, GGUF_TYPES[type], facts, expected, progress)
            written.rename(temporary)
    except OSError as error:
        raise SavingError(
            f"{output} could not be written: {error.strerror or error}. Make room or choose another place."
        ) from error
    reader = open_gguf(output)
    chats = "tokenizer.chat_template" in metadata(reader)
    return Exported(
        output,
        type,
        comparison.differences,
        byte_shares(reader),
        run_lines(output, chats),
        expected.remarks,
        comparison.perplexity_ratio,
    )


def _rounding(type: str, ratio: float) -> str:
    """Say what rounding does to perplexity."""
    change = "as before" if ratio < 1.005 else f"{ratio:.2f} times as high as before"
    return f"Rounded to {type}, its perplexity on held-out text is {change}."


def _write(
    folder: Path,
    work: Path,
    kind: GGUFType,
    facts: Mapping[str, Any],
    expected: Expectation,
    progress: Reporter,
) -> tuple[Path, Comparison]:
    """Convert, compare, and round to fewer bits if asked to; return the file."""
    # With 16 bits, an error in what the file says cannot hide behind rounding.
    first = GGUF_TYPES["f16"] if kind.is_quantized else kind
    # The converter treats braces in a file's name as placeholders.
    converted = work / "model.gguf"
    convert(folder, converted, first.name, work, facts, progress)
    comparison = compare_16_bits(
        converted,
        expected,
        first,
        progress,
        lambda exact: convert(folder, exact, "f32", work, facts, progress),
    )
    if not kind.is_quantized:
        return converted, comparison
    rounded = work / "rounded.gguf"
    quantize(converted, rounded, kind.name, progress)
    converted.unlink()
    return rounded, compare(rounded, expected, kind, progress)


def _expectation(loaded: LoadedModel, title: str, kind: GGUFType, progress: Reporter) -> Expectation:
    model: PreTrainedModel = loaded.model
    if any(values.is_meta for values in model.parameters()):
        raise ModelError(
            f"{title} does not fit in memory, and a file that is not compared with its model is not exported. Close "
            "other programs, or use a machine with more memory."
        )
    if model.dtype != torch.float32:
        model = model.float()
    for name, values in model.named_parameters():
        if float(values.abs().max()) > torch.finfo(torch.float16).max:
            raise ModelError(f"{title} cannot be exported: {name} holds values too large for 16 bits.")
    progress(Progress("Computing what llama.cpp has to give"))
    return expect(model, loaded.tokenizer, title, kind, progress)


def _check(folder: Path, type: str) -> Recipe | None:
    """Refuse what cannot be exported, from the config alone; return the recipe."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder. Export a model that `secateur prune` saved.")
    shape = Shape.of(find(str(folder)).config)
    if type not in GGUF_TYPES:
        raise RecipeError(f"There is no type {type!r} to export to; choose one of: {', '.join(GGUF_TYPES)}.")
    check_known(shape)
    check_reader()
    obstacles = gguf_types(shape)
    if obstacle := obstacles[type]:
        possible = [name for name in GGUF_TYPES if not obstacles[name]]
        raise RecipeError(
            f"{folder.name} cannot be exported as {type}. {obstacle} Or choose one of: {', '.join(possible)}."
        )
    if GGUF_TYPES[type].is_k_quant:
        packing_function()
    # The converter lets tokenizers run code that comes with a folder.
    check_code_free(folder)
    try:
        return Recipe.parse(fetch_recipe(str(folder)))
    except (ModelError, RecipeError):
        return None


def _weights_metadata(folder: Path) -> dict[str, str]:
    """Return what the weights say of their origin."""
    file = next(iter(sorted(folder.glob("*.safetensors"))), None)
    return read_safetensors_metadata(file) if file else {}
