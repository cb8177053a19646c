"""Publish a pruned model on the Hugging Face Hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelInfo
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from pruning.errors import PruningError, SavingError
from pruning.files import temporary_folder
from pruning.loading.client import retry_after
from pruning.loading.files import RECIPE_FILE
from pruning.loading.source import Token
from pruning.pipeline import Pruned
from pruning.progress import Progress, Reporter, silent
from pruning.saving.card import TAG
from pruning.saving.code_free import check_code_free
from pruning.sharing.manifest import MANIFEST, is_shard, manifest_of, written_by_us
from pruning.sharing.retry import NEVER_SENT, http_status, is_transient, with_retries

CARD = "README.md"

LARGE_FILE = 10 * 10**6
"""Bytes from which on a file is uploaded by itself."""


def publish(
    pruned: Pruned | str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: Token = None,
    overwrite: bool = False,
    progress: Reporter = silent,
) -> str:
    """Publish a pruned model, or a folder that holds a saved one, on the Hub.

    Failures that may be transient are retried for a while. The model then appears in one commit, or
    whatever this call created is removed again.

    Publishing again replaces and removes only what an earlier publication wrote and nobody changed since; it
    leaves a list of that, `secateur.json`, beside the model. All other files of the repository stay.

    Args:
        pruned: A pruned model, or the folder of a saved one.
        repo_id: The repository, as OWNER/NAME or NAME. It is created if it does not exist.
        private: Whether a repository that is created can be seen by its owner alone; None for yes.
        token: The access token of the owner.
        overwrite: Whether to write to a repository that has files and that Secateur did not make, and to
            replace files of the same names that others wrote or changed.
        progress: Called with each stage, and before each file.

    Returns:
        The address of the repository.

    Raises:
        SavingError: The model could not be published. The message says what is left on the Hub.
        ModelError: The folder holds code, or a file that asks for some.

    Example:
        >>> import pruning
        >>> recipe = pruning.Recipe(base="smollm2-135m", steps=[pruning.Neurons(fraction=0.2)])
        >>> url = pruning.publish(pruning.run(recipe), "ada/smaller")
        >>> url.endswith("/ada/smaller")
        True
    """
    private = private is not False
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    with _hub_errors("sign in"):
        owners = with_retries(lambda: _owners(api), progress)
    repo_id = _checked_id(repo_id, owners)
    if isinstance(pruned, str | Path):
        return _push(api, _saved_folder(Path(pruned)), repo_id, private, overwrite, progress)
    with temporary_folder() as temporary:
        folder = pruned.save(temporary / "model", name=repo_id.split("/")[1], progress=progress)
        return _push(api, folder, repo_id, private, overwrite, progress)


def _owners(api: HfApi) -> list[str]:
    """Return the namespaces that the token may write to, the user's own first."""
    user = api.whoami()
    return [user["name"], *(group["name"] for group in user.get("orgs", []))]


def _checked_id(repo_id: str, owners: list[str]) -> str:
    full = repo_id if "/" in repo_id else f"{owners[0]}/{repo_id}"
    try:
        validate_repo_id(full)
    except HFValidationError:
        raise SavingError(
            f"{repo_id[:100]!r} is not a valid repository name. Use letters, digits, '-', '_' and '.', "
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
            f"{folder} is not a model saved by Secateur: {', '.join(missing) or 'weights'} missing. "
            "Save one with `secateur prune … --output`."
        )
    try:
        ModelCard.load(folder / "README.md")
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise SavingError(f"The model card, README.md, cannot be read: {reason}") from None
    check_code_free(folder)
    return folder


def _push(api: HfApi, folder: Path, repo_id: str, private: bool, overwrite: bool, progress: Reporter) -> str:
    with _hub_errors(f"look at {repo_id}"):
        repo = with_retries(lambda: _look(api, repo_id), progress)
    if repo is not None:
        _check_ours(repo, private, overwrite)
    is_new = repo is None
    creation = _Creation(api, repo_id, private)
    try:
        if repo is None:
            progress(Progress(f"Creating {repo_id}"))
            with _hub_errors(f"create {repo_id}"):
                repo = creation.run(progress)
        found = repo
        with _hub_errors(f"look at {repo_id}"):
            ours = with_retries(lambda: written_by_us(api, found, _is_ours(found)), progress)
        _check_conflicts(repo, folder, ours, overwrite)
        progress(Progress(f"Uploading to {repo_id}"))
        with _hub_errors(f"upload to {repo_id}"):
            if repo.private != private and _is_empty(repo):
                with_retries(lambda: api.update_repo_settings(repo_id, private=private), progress)
            _upload(api, repo, folder, ours, progress)
    except BaseException as error:
        state = creation.undo() if is_new else f"{repo_id} was not changed."
        if isinstance(error, PruningError):
            raise type(error)(f"{error} {state}") from error.__cause__
        error.add_note(state)
        raise
    return f"{api.endpoint}/{repo_id}"


def _look(api: HfApi, repo_id: str) -> ModelInfo | None:
    try:
        return api.model_info(repo_id, files_metadata=True)
    except RepositoryNotFoundError:
        return None


def _files(repo: ModelInfo) -> set[str]:
    return {sibling.rfilename for sibling in repo.siblings or []} - {".gitattributes"}


def _is_empty(repo: ModelInfo) -> bool:
    """Return whether a repository has no files, as after its creation or after a publisher was killed."""
    return not _files(repo)


def _check_ours(repo: ModelInfo, private: bool, overwrite: bool) -> None:
    """Refuse a repository that has files which Secateur did not publish, or that is public against the wish."""
    if _is_empty(repo):
        return
    if not overwrite and not _is_ours(repo):
        raise SavingError(
            f"The name {repo.id} is taken by a repository that Secateur did not make. Choose another name."
        )
    if private and not repo.private:
        raise SavingError(
            f"{repo.id} exists already and is public. Allow the model to be public, or choose another name."
        )


def _is_ours(repo: ModelInfo) -> bool:
    """Return whether Secateur published the model in a repository."""
    files = _files(repo)
    return MANIFEST in files or (RECIPE_FILE in files and TAG in (repo.tags or []))


def _check_conflicts(repo: ModelInfo, folder: Path, ours: set[str], overwrite: bool) -> None:
    """Refuse to replace files that others wrote or changed, or to leave one that would be read instead."""
    added, others = set(_files_in(folder)), _files(repo) - ours
    if "model.safetensors" in others - added and any(map(is_shard, added)):
        raise SavingError(
            f"model.safetensors in {repo.id} was not written by Secateur, and would be loaded instead of the "
            "new weights. Delete it on the Hub, or choose another name."
        )
    changed = sorted(others & (added | {MANIFEST}))
    if not changed or overwrite:
        return
    if changed == [CARD]:
        raise SavingError(
            f"README.md in {repo.id} may have been edited since Secateur wrote it, so it is not replaced. Save "
            "your text elsewhere and delete README.md on the Hub, publish with `--overwrite`, or choose another "
            "name."
        )
    raise SavingError(
        f"{', '.join(changed[:5])} in {repo.id} would be replaced, and Secateur did not write what is there. "
        "Move or delete it on the Hub, publish with `--overwrite`, or choose another name."
    )


def _files_in(folder: Path) -> list[str]:
    """Return the files of a saved model that are published, hidden ones left out."""
    names = (file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file())
    return [name for name in names if not name.startswith(".") and name != MANIFEST]


class _Creation:
    """The creation of a repository that did not exist a moment ago, and how to undo it."""

    def __init__(self, api: HfApi, repo_id: str, private: bool):
        self._api, self._repo_id, self._private = api, repo_id, private
        self._begun = False
        """Whether the repository was created, or may have been if an answer got lost."""

    def run(self, progress: Reporter) -> ModelInfo:
        """Create the repository and look it up."""
        with_retries(self._create, progress)
        return with_retries(lambda: self._api.model_info(self._repo_id), progress)

    def _create(self) -> None:
        try:
            self._api.create_repo(self._repo_id, private=self._private, exist_ok=False)
        except BaseException as error:
            if http_status(error) != 409 or not self._begun:
                self._begun = self._begun or is_transient(error)
                raise
        self._begun = True

    def undo(self) -> str:
        """Remove the repository, unless it has files. Return a sentence on what is left on the Hub."""
        try:
            if self._begun and (repo := with_retries(self._remove, silent)) is not None:
                return f"Look at {repo.id} on the Hub: it has files, so it was not removed."
        except Exception:
            return (
                f"{self._repo_id} may exist, empty or complete, and could not be removed: publish again "
                "under the same name, or look at it on the Hub."
            )
        return "Nothing was left on the Hub."

    def _remove(self) -> ModelInfo | None:
        repo = _look(self._api, self._repo_id)
        if repo is None or not _is_empty(repo):
            return repo
        return self._api.delete_repo(self._repo_id, missing_ok=True)


def _upload(api: HfApi, repo: ModelInfo, folder: Path, ours: set[str], progress: Reporter) -> None:
    """Replace our files in a repository with those of a folder, in one commit.

    `parent_commit` keeps a commit from being made twice, and from undoing another author's.
    """
    added = []
    for name in _files_in(folder):
        progress(Progress(f"Uploading to {repo.id}: reading {name}"))
        added.append(CommitOperationAdd(name, folder / name))
    added.append(manifest_of(folder, added))
    stale = ours - {operation.path_in_repo for operation in added}
    # The client retries these requests itself. Large files go one by one, so that the upload can be stopped.
    small = [operation for operation in added if operation.upload_info.size < LARGE_FILE]
    large = [operation for operation in added if operation.upload_info.size >= LARGE_FILE]
    for number, part in enumerate([small, *([operation] for operation in large)]):
        progress(Progress(f"Uploading to {repo.id}, parts", number, 1 + len(large)))
        api.preupload_lfs_files(repo.id, part)

    def commit() -> None:
        api.create_commit(
            repo.id,
            [*added, *(CommitOperationDelete(name) for name in sorted(stale))],
            commit_message="Publish a model pruned with Secateur",
            parent_commit=repo.sha,
        )

    try:
        with_retries(commit, progress)
    except HTTPError as error:
        # If an answer got lost, the commit may have succeeded.
        if not (is_transient(error) or http_status(error) == 412) or not _holds(
            api, repo.id, folder, progress
        ):
            raise


def _holds(api: HfApi, repo_id: str, folder: Path, progress: Reporter) -> bool:
    """Return whether a repository holds all files of a folder."""
    try:
        compared = with_retries(lambda: api.verify_repo_checksums(repo_id, local_dir=folder), progress)
    except (HTTPError, OSError, ValueError):
        return False
    return not compared.mismatches and not compared.extra_paths


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
        # Failures of an upload are wrapped in a RuntimeError.
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        raise SavingError(_sentence(action, cause or error)) from None
    except UnicodeEncodeError:
        raise SavingError(_BAD_TOKEN) from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        raise SavingError(f"The Hub did not accept the model card, README.md: {reason}") from None


_BAD_TOKEN = "The access token has characters that are not allowed in a token. Sign in again."

_REASONS = {
    401: "it did not accept your access token, which may have expired. Sign in again",
    403: "your access token has no right to do that. Sign in again and allow the Space to write",
    404: "it does not exist, or your access token may not see it",
    409: "the name is taken, or the repository is being written to. Choose another name",
    412: "the repository was changed in the meantime. Look at it, then try again",
    413: "the model is too large for it. Prune more, or upload it in another way",
    429: "it received too many requests. Wait a few minutes and try again",
}


def _sentence(action: str, error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError):
        status = http_status(error)
        reason = _REASONS.get(status or 0, "it has an internal error. Try again in a few minutes")
        if status == 429 and (wait := retry_after(error.response)):
            reason = f"it received too many requests. Try again in {_duration(wait)}"
        return f"The Hub refused to {action} (HTTP {status}): {reason}."
    if type(error).__name__ in NEVER_SENT:
        return _BAD_TOKEN
    if isinstance(error, HTTPError):
        return (
            f"The connection to the Hub broke ({type(error).__name__}) while trying to {action}. Try again."
        )
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return f"It was not possible to {action}: {reason}. Try again."


def _duration(seconds: int) -> str:
    return f"{seconds} seconds" if seconds < 120 else f"{-(-seconds // 60)} minutes"
