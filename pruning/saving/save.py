"""Save a pruned model as a folder that plain transformers loads, and check it by loading it."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from pruning.architectures.placement import device_map
from pruning.errors import SavingError
from pruning.files import new_folder
from pruning.loading.files import RECIPE_FILE
from pruning.pipeline import Pruned
from pruning.progress import Progress, Reporter, silent
from pruning.saving.card import model_card
from pruning.saving.provenance import provenance, write_safetensors_metadata
from pruning.surgery import cast


def save(
    pruned: "Pruned",
    folder: Path,
    progress: Reporter = silent,
    name: str | None = None,
    largest_file: int | str = "50GB",
) -> Path:
    """Write config, safetensors (of at most `largest_file` bytes), tokenizer, generation config, recipe
    and card.

    Written to a temporary folder, read back by plain transformers and compared, then renamed; on any
    failure nothing is left. Raises `SavingError`.
    """
    folder = Path(folder)
    try:
        with new_folder(folder) as temporary:
            progress(Progress("Writing the model"))
            model = pruned.model
            if pruned.storage_dtype != model.dtype:
                model = cast(model, pruned.storage_dtype)
            model.save_pretrained(temporary, max_shard_size=largest_file)
            pruned.tokenizer.save_pretrained(temporary)
            write_metadata_files(pruned, temporary, name or folder.name)
            progress(Progress("Reading the model back to check it"))
            _check_reload(pruned, temporary)
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


def write_metadata_files(pruned: "Pruned", folder: Path, name: str) -> None:
    """Put the recipe and the card beside the weights, and the provenance into them."""
    pruned = _without_paths(pruned)
    (folder / RECIPE_FILE).write_text(pruned.recipe.to_yaml(), encoding="utf-8")
    (folder / "README.md").write_text(str(model_card(pruned, name)), encoding="utf-8")
    for file in folder.glob("*.safetensors"):
        write_safetensors_metadata(file, provenance(pruned))
        file.chmod(0o644)  # safetensors writes files that only their owner can read.


def _without_paths(pruned: "Pruned") -> "Pruned":
    """A folder goes by its name; where it lies is nobody else's business."""
    if pruned.source.hub_id is not None:
        return pruned
    steps = tuple(step.without_paths() for step in pruned.recipe.steps)
    recipe = pruned.recipe.model_copy(update={"base": pruned.source.folder.name, "steps": steps})
    return replace(pruned, recipe=recipe)


def _check_reload(pruned: "Pruned", folder: Path) -> None:
    """The saved model must give the logits of the one in memory."""
    model, places = pruned.model, device_map(pruned.model)
    reloaded = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=model.dtype, device_map=places or None
    )
    device = "cpu" if model.device.type == "meta" else model.device
    if not places:
        reloaded = reloaded.to(device)
    ids = torch.arange(1, min(17, model.config.vocab_size))[None].to(device)
    with torch.inference_mode():
        if not torch.equal(reloaded.eval()(ids).logits, model(ids).logits):
            raise SavingError(
                "The saved model does not give the same logits as the one in memory, so it was not "
                "kept. This is a bug in Secateur: please report it with the recipe."
            )
