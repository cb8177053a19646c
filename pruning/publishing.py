"""Saving a pruned model, and pushing it to the Hub."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from pruning.card import TAG, model_card
from pruning.errors import SavingError
from pruning.files import new_folder
from pruning.loading import Token
from pruning.progress import Progress, Reporter, silent
from pruning.surgery import recast

if TYPE_CHECKING:
    from pruning.pipeline import Pruned

RECIPE_FILE = "recipe.yaml"
LOADED_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")
"""What transformers might still read of an earlier model in the same repository."""


def save(pruned: "Pruned", folder: Path, progress: Reporter = silent, name: str | None = None) -> Path:
    """Write config, safetensors, tokenizer, generation config, recipe and card.

    Written to a temporary folder, read back by plain transformers and compared, then renamed; on any
    failure nothing is left. Raises `SavingError`.
    """
    folder = Path(folder)
    try:
        with new_folder(folder) as temporary:
            progress(Progress("Writing the model"))
            model = pruned.model
            if pruned.storage_dtype != model.dtype:
                model = recast(model, pruned.storage_dtype)
            model.save_pretrained(temporary)
            pruned.tokenizer.save_pretrained(temporary)
            for file in temporary.glob("*.safetensors"):
                file.chmod(0o644)  # safetensors writes files that only their owner can read.
            pruned = _without_paths(pruned)
            (temporary / RECIPE_FILE).write_text(pruned.recipe.to_yaml(), encoding="utf-8")
            card = model_card(pruned, name or folder.name)
            (temporary / "README.md").write_text(str(card), encoding="utf-8")
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


def _without_paths(pruned: "Pruned") -> "Pruned":
    """A base that is a folder goes by its name; where it lies is nobody else's business."""
    if pruned.source.hub_id is not None:
        return pruned
    recipe = pruned.recipe.model_copy(update={"base": pruned.source.folder.name})
    return replace(pruned, recipe=recipe)


def _check_reload(pruned: "Pruned", folder: Path) -> None:
    """The saved model must give the logits of the one in memory."""
    reloaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    reloaded = reloaded.to(device=pruned.model.device, dtype=pruned.model.dtype).eval()
    ids = torch.arange(1, min(17, pruned.model.config.vocab_size))[None].to(pruned.model.device)
    with torch.inference_mode():
        if not torch.equal(reloaded(ids).logits, pruned.model(ids).logits):
            raise SavingError(
                "The saved model does not give the same logits as the one in memory, so it was not "
                "kept. This is a bug in Secateur: please report it with the recipe."
            )


def publish(
    pruned: "Pruned | str | Path",
    repo_id: str,
    *,
    private: bool = True,
    token: Token = None,
    overwrite: bool = False,
    progress: Reporter = silent,
) -> str:
    """Push a pruned model, or a folder that holds a saved one, to the Hub; returns its address.

    The repository is created, private unless told otherwise. One that exists is only written to
    where it is empty or was made by Secateur, or `overwrite` says so. If anything fails, what this
    call created is removed again. Raises `SavingError`.
    """
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    with _hub_errors("sign in"):
        owners = _owners(api)
    repo_id = _checked_id(repo_id, owners)
    if isinstance(pruned, str | Path):
        return _push(api, _saved_folder(Path(pruned)), repo_id, private, overwrite, progress)
    with tempfile.TemporaryDirectory(prefix="secateur-") as temporary:
        folder = save(pruned, Path(temporary) / "model", progress, name=repo_id.split("/")[1])
        return _push(api, folder, repo_id, private, overwrite, progress)


def _owners(api: HfApi) -> list[str]:
    """The namespaces that the token may write to, the user's own first."""
    user = api.whoami()
    return [user["name"], *(group["name"] for group in user.get("orgs", []))]


def _checked_id(repo_id: str, owners: list[str]) -> str:
    full = repo_id if "/" in repo_id else f"{owners[0]}/{repo_id}"
    try:
        validate_repo_id(full)
    except HFValidationError:
        raise SavingError(
            f"{repo_id[:100]!r} is no name for a repository. Use letters, digits, '-', '_' and '.', "
            "at most 96 of them."
        ) from None
    owner = full.split("/")[0]
    if owner not in owners:
        raise SavingError(
            f"You are signed in as {owners[0]} and may not publish under {owner}. "
            f"Choose one of: {', '.join(owners)}."
        )
    return full


def _saved_folder(folder: Path) -> Path:
    missing = [name for name in ("config.json", "README.md", RECIPE_FILE) if not (folder / name).is_file()]
    if missing or not list(folder.glob("*.safetensors")):
        raise SavingError(
            f"{folder} is no model saved by Secateur: {', '.join(missing) or 'its weights'} missing. "
            "Save one with `python -m pruning prune … --output`."
        )
    return folder


def _push(api: HfApi, folder: Path, repo_id: str, private: bool, overwrite: bool, progress: Reporter) -> str:
    progress(Progress(f"Creating {repo_id}"))
    with _hub_errors(f"create {repo_id}"):
        created = not _exists(api, repo_id)
        if created:
            api.create_repo(repo_id, private=private, exist_ok=False)
    if not created and not overwrite and not _ours(api, repo_id):
        raise SavingError(
            f"The name {repo_id} is taken by a repository that Secateur did not make. Choose another name."
        )
    try:
        progress(Progress(f"Uploading to {repo_id}"))
        with _hub_errors(f"upload to {repo_id}"):
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                delete_patterns=list(LOADED_FILES),
                commit_message="Publish a model pruned with Secateur",
            )
    except BaseException as error:
        if created:
            _remove(api, repo_id, error)
        raise
    return f"{api.endpoint}/{repo_id}"


def _exists(api: HfApi, repo_id: str) -> bool:
    try:
        api.model_info(repo_id)
    except RepositoryNotFoundError:
        return False
    return True


def _ours(api: HfApi, repo_id: str) -> bool:
    """Whether a repository is empty, as a failed attempt leaves it, or was made by Secateur."""
    with _hub_errors(f"look at {repo_id}"):
        info = api.model_info(repo_id)
        files = {sibling.rfilename for sibling in info.siblings or []} - {".gitattributes"}
        return not files or (RECIPE_FILE in files and TAG in (info.tags or []))


def _remove(api: HfApi, repo_id: str, error: BaseException) -> None:
    try:
        api.delete_repo(repo_id, missing_ok=True)
    except Exception:
        error.add_note(f"{repo_id} was created and could not be removed; delete it on the Hub.")
        if isinstance(error, SavingError):
            raise SavingError(f"{error} {error.__notes__[-1]}") from error


@contextmanager
def _hub_errors(action: str) -> Iterator[None]:
    """Turn what the Hub client raises into one sentence."""
    try:
        yield
    except LocalTokenNotFoundError:
        raise SavingError(
            "You are not signed in to the Hugging Face Hub. On the page, press the sign-in button; "
            "in a shell, run `hf auth login`."
        ) from None
    except (HTTPError, OSError, RuntimeError) as error:
        # What goes wrong in an upload comes wrapped.
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        raise SavingError(_sentence(action, cause or error)) from None
    except UnicodeEncodeError:
        raise SavingError("The access token has characters that no token has. Sign in again.") from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        raise SavingError(f"The Hub did not accept the model card, README.md: {reason}") from None


_REASONS = {
    401: "it did not accept your access token, which may have expired. Sign in again",
    403: "your access token has no right to do that. Sign in again and allow the Space to write",
    404: "it does not exist, or your access token may not see it",
    409: "the name is taken, or somebody is writing to it. Choose another name",
    413: "the model is too large for it. Cut more, or push in another way",
    429: "it has had too many requests. Wait a few minutes and try again",
}


def _sentence(action: str, error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        reason = _REASONS.get(status, "it has a fault of its own. Try again in a few minutes")
        return f"The Hub refused to {action} (HTTP {status}): {reason}."
    if isinstance(error, HTTPError):
        return f"The connection to the Hub broke ({type(error).__name__}) in trying to {action}. Try again."
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return f"It was not possible to {action}: {reason}. Try again."
