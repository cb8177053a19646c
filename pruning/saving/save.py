"""Save a pruned model as a folder that plain transformers loads, and check it by loading it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from pruning.architectures.placement import device_map
from pruning.errors import SavingError
from pruning.files import new_folder, replacing
from pruning.lazy import torch, transformers
from pruning.loading.files import RECIPE_FILE
from pruning.loading.source import Source
from pruning.progress import Progress, Reporter, silent
from pruning.recipe import Recipe
from pruning.report import Report
from pruning.saving.card import model_card
from pruning.saving.code_free import check_code_free, strip_code
from pruning.saving.older_readers import write_for_older_readers
from pruning.saving.provenance import provenance, write_safetensors_metadata
from pruning.surgery import cast

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CARD_FILE = "README.md"

CPU_ROUNDING, OTHER_ROUNDING, ROUNDING_OF_16_BITS = 1e-4, 0.01, 0.1
"""The largest difference of logits, as a share of their standard deviation, that counts as rounding.

In 32 bits on the CPU, in 32 bits on another device, and in 16 bits.
"""


def save_model(
    folder: Path,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    recipe: Recipe,
    report: Report,
    storage_dtype: torch.dtype,
    name: str | None = None,
    max_shard_size: int | str = "50GB",
    progress: Reporter = silent,
) -> Path:
    """Write config, safetensors, tokenizer, generation config, recipe and card.

    Written to a temporary folder, freed of whatever would load code, read back by plain transformers and
    compared, then renamed; on any failure nothing is left.

    Args:
        folder: The folder to write. It must not exist, or be empty.
        model: The pruned model.
        tokenizer: Its tokenizer.
        source: Where its base comes from.
        recipe: How it was made.
        report: What was measured.
        storage_dtype: The precision to save it in.
        name: The model's name on its card; the folder's name by default.
        max_shard_size: The largest weights file, in bytes.
        progress: Called with each stage, and before each tensor and each weights file.

    Raises:
        SavingError: The folder cannot be written, or the model that was read back differs.
    """
    try:
        with new_folder(folder) as temporary:
            progress(Progress("Writing the model"))
            _write_model(model, storage_dtype, temporary, max_shard_size, progress)
            tokenizer.save_pretrained(temporary)
            strip_code(temporary)
            write_for_older_readers(temporary)
            write_metadata_files(temporary, name or folder.name, source, recipe, report, progress)
            check_code_free(temporary)
            progress(Progress("Reading the model back to check it"))
            _check_reload(model, temporary)
    except FileExistsError:
        raise SavingError(
            f"{folder} exists and is not empty. Choose another folder, or empty it first."
        ) from None
    except OSError as error:
        raise SavingError(
            f"The model could not be written to {folder}: {error.strerror or error}. "
            "Make room or choose another folder."
        ) from error
    except SafetensorError as error:
        raise SavingError(
            f"The weights could not be written to {folder}: {error}. Make room or choose another folder."
        ) from error
    return folder


def _write_model(
    model: PreTrainedModel, dtype: torch.dtype, folder: Path, max_shard_size: int | str, progress: Reporter
) -> None:
    """Write config, weights and generation config. A copy in another precision lives no longer than this."""
    if dtype != model.dtype:
        model = cast(model, dtype, progress)
    # A shallow copy takes what transformers would refuse to save, or change while it does.
    written = copy.copy(model)
    written.config, generation = copy.deepcopy(model.config), copy.deepcopy(model.generation_config)
    written.generation_config = transformers.GenerationConfig()
    tensors = _ReportedTensors(model.state_dict(), progress)
    written.save_pretrained(folder, max_shard_size=max_shard_size, state_dict=tensors)
    if generation is not None:
        generation.to_json_file(
            folder / transformers.utils.GENERATION_CONFIG_NAME, keys_to_pop=["compile_config"]
        )


class _ReportedTensors(dict[str, "torch.Tensor"]):
    """The tensors of a model; transformers takes one after the other out, which is reported."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], progress: Reporter) -> None:
        super().__init__(tensors)
        self._total, self._progress = len(tensors), progress

    def pop(self, name: str) -> torch.Tensor:  # type: ignore[override]
        """Take a tensor out."""
        self._progress(Progress("Writing the model, tensors", self._total - len(self), self._total))
        return super().pop(name)


def rewrite_card(folder: Path, name: str, source: Source, recipe: Recipe, report: Report) -> None:
    """Replace the card of a saved model by one with what was measured since.

    Raises:
        SavingError: The card cannot be written; the one that is there remains.
    """
    card = model_card(name, source=source, recipe=_without_paths(recipe, source), report=report)
    try:
        with replacing(folder / CARD_FILE) as temporary:
            temporary.write_text(str(card), encoding="utf-8")
    except OSError as error:
        raise SavingError(
            f"The card could not be written to {folder}: {error.strerror or error}. The model is complete without it."
        ) from None


def write_metadata_files(
    folder: Path, name: str, source: Source, recipe: Recipe, report: Report, progress: Reporter = silent
) -> None:
    """Write the recipe and the card beside the weights, and the provenance into them."""
    recipe = _without_paths(recipe, source)
    (folder / RECIPE_FILE).write_text(recipe.to_yaml(), encoding="utf-8")
    card = model_card(name, source=source, recipe=recipe, report=report)
    (folder / CARD_FILE).write_text(str(card), encoding="utf-8")
    files = sorted(folder.glob("*.safetensors"))
    for number, file in enumerate(files):
        progress(Progress("Writing the provenance, files", number, len(files)))
        write_safetensors_metadata(file, provenance(source, recipe))
        file.chmod(0o644)  # safetensors writes files that only their owner can read.


def _without_paths(recipe: Recipe, source: Source) -> Recipe:
    """Name a base folder without its path, which is nobody else's business."""
    if source.hub_id is not None:
        return recipe
    steps = tuple(step.without_paths() for step in recipe.steps)
    return recipe.model_copy(update={"base": source.folder.name, "steps": steps})


def _check_reload(model: PreTrainedModel, folder: Path) -> None:
    """Compare the logits of the saved model with those of the one in memory, which equals its masked base."""
    placement = device_map(model)
    reloaded: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=model.dtype, device_map=placement or None
    )
    device = "cpu" if model.device.type == "meta" else model.device
    if not placement:
        reloaded = reloaded.to(device)  # type: ignore[arg-type]
    ids = torch.arange(1, min(17, model.config.vocab_size))[None].to(device)
    with torch.inference_mode():
        expected, found = (each(ids, use_cache=False).logits for each in (model, reloaded.eval()))
    if not (torch.equal(found, expected) or _differ_by_rounding(model, expected, reloaded, found)):
        raise SavingError(
            "The saved model does not give the same logits as the one in memory, so it was not "
            "kept. This is a bug in Secateur: please report it with the recipe."
        )


def _differ_by_rounding(
    model: PreTrainedModel, expected: torch.Tensor, reloaded: PreTrainedModel, found: torch.Tensor
) -> bool:
    """Return whether two models hold the same values, and the device adds them up in another order.

    A GPU picks a kernel by how a tensor is laid out in memory. Some CPUs do so for the products of experts.
    """
    values = dict(model.named_parameters())
    pairs = [(each, values[name]) for name, each in reloaded.named_parameters()]
    # Weights offloaded to disk cannot be compared here.
    same = all(not (one.is_meta or other.is_meta) and torch.equal(one, other) for one, other in pairs)
    allowed = CPU_ROUNDING if expected.device.type == "cpu" else OTHER_ROUNDING
    if model.dtype.itemsize < 4:
        allowed = ROUNDING_OF_16_BITS
    return same and bool((found - expected).abs().max() <= allowed * expected.std())
