"""From a name to a source: a model in a folder, on the Hub or in a package, or an adapter on its base."""

import os
from dataclasses import replace
from pathlib import Path

from pruning import catalog
from pruning.errors import ModelError
from pruning.loading.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FoundAdapter,
    beside_a_model,
    read_settings,
    without_weights,
)
from pruning.loading.checks import check_config, suggest_default
from pruning.loading.files import digest_of
from pruning.loading.hub import check_id, check_revision, find_cached, look_up
from pruning.loading.hub_errors import Gated, Unreachable
from pruning.loading.metadata import kept_layers_in, license_in
from pruning.loading.offline import find_offline, is_converted, is_installed
from pruning.loading.repo_files import CONFIG_FILE, read_json, weight_files
from pruning.loading.source import Access, Adapter, Source, Token
from pruning.loading.text_half import with_text_half
from pruning.progress import Reporter, silent


def find(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: Token = None,
    access: Access | None = None,
    weights: bool = False,
    plain: bool = False,
    progress: Reporter = silent,
) -> Source:
    """Find a model by its catalog name, its Hub id or its folder, and check its config.

    Asks the Hub for the model's list of files and its config, and downloads nothing else; does not ask the Hub about a
    public model of the catalog that is already on this machine.

    Args:
        name: A catalog name, a Hub id, or a folder.
        revision: A commit, a branch or a tag; None for the newest. For a folder, the digest it must have.
        token: The access token of the caller, if `access` is not given.
        access: Who asks.
        weights: Whether the weights will be read too. If not, a folder or a copy on this machine needs
            nothing but a config.
        plain: Whether a plain config suffices, which stands for that of transformers in arithmetic and, once the model
            is known, is read without it.
        progress: Is called with each stage.

    Returns:
        The source, whose `config` is checked. Pass it to `load`.

    Raises:
        ModelError: The model cannot be used. The message says why, and what to do.
    """
    access, name = access or Access(token), catalog.name_from_address(os.fspath(name))
    entry = catalog.find(name)
    if entry is None and access.local and is_folder(name):
        found = _find_folder(name, revision, weights, plain)
    else:
        found = _find_named(name, revision, access, weights, plain, progress)
    return found if isinstance(found, Source) else _on_base(found, access, weights, plain, progress)


def _find_named(
    name: str, revision: str | None, access: Access, weights: bool, plain: bool, progress: Reporter
) -> Source | FoundAdapter:
    """Find a model of the catalog or the Hub, or an adapter there."""
    entry = catalog.find(name)
    hub_id = entry.hub_id if entry else name
    if entry and entry.offline and revision == entry.offline.revision:
        return find_offline(entry, progress, plain)
    if entry is None:
        check_id(name, access)
    check_revision(revision)
    public = entry is not None and not entry.gated
    source: Source | FoundAdapter | None = find_cached(hub_id, revision, weights, plain) if public else None
    if source is None and entry and _may_use_offline(entry, revision) and is_converted(entry, plain):
        return find_offline(entry, progress, plain)
    if source is None:
        try:
            source = look_up(hub_id, revision, access, progress, plain)
        except Unreachable:
            source = find_without_hub(name, revision, access, weights, progress, plain)
        except Gated:
            if not (entry and _may_use_offline(entry, revision) and is_installed(entry)):
                raise
            source = find_offline(entry, progress, plain)
    return replace(source, name=entry.name if entry else name)


def _may_use_offline(entry: catalog.CatalogModel, revision: str | None) -> bool:
    return entry.offline is not None and revision is None


def find_without_hub(
    name: str, revision: str | None, access: Access, weights: bool, progress: Reporter, plain: bool = False
) -> Source:
    """Fall back to what is on this machine. Raises `ModelError` if that is not enough."""
    entry = catalog.find(name)
    if entry and _may_use_offline(entry, revision) and is_installed(entry):
        return find_offline(entry, progress, plain)
    hub_id = entry.hub_id if entry else name
    source = find_cached(hub_id, revision, weights, plain) if access.local else None
    if source is None:
        raise ModelError(
            f"The Hugging Face Hub cannot be reached, and {hub_id} is not on this machine. "
            f"Try again later{suggest_default()}."
        )
    return replace(source, name=entry.name if entry else name, public=entry is not None and not entry.gated)


def is_folder(name: str) -> bool:
    """Return whether a name is that of a folder on this machine."""
    try:
        return bool(name) and Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):
        return False


def _on_base(adapter: FoundAdapter, access: Access, weights: bool, plain: bool, progress: Reporter) -> Source:
    """Return an adapter as the model that it makes of its base.

    Only the adapter of a folder may name a folder as its base: what others wrote must not choose one.

    Raises:
        ModelError: Its base cannot be had.
    """
    this = f"{adapter.name} holds an adapter ({ADAPTER_CONFIG})"
    try:
        if adapter.hub_id is None and access.local and is_folder(adapter.base):
            base = _find_folder(adapter.base, adapter.base_revision, weights, plain)
        else:
            base = _find_named(adapter.base, adapter.base_revision, access, weights, plain, progress)
    except ModelError as error:
        raise ModelError(f"{this}, and its base cannot be had: {error}") from None
    if not isinstance(base, Source):
        raise ModelError(f"{this} for another adapter, {base.name}. Merge that one into its base first.")
    place = (
        f"from {adapter.hub_id} on the Hugging Face Hub"
        if adapter.hub_id
        else f"from the folder {adapter.folder.name}"
    )
    title = adapter.hub_id or adapter.folder.name
    on = base.hub_id or base.folder.name
    at = f" (revision {base.revision[:12]})" if base.revision and base.hub_id else ""
    return replace(
        base,
        name=adapter.name,
        hub_id=adapter.hub_id,
        revision=adapter.revision,
        origin=place,
        folder=adapter.folder,
        public=base.public and adapter.public,
        remote=None,
        notes=(f"The LoRA adapter {title} was merged into its base, {on}{at}.", *base.notes),
        adapter=Adapter(base, adapter.remote),
    )


def _find_folder(name: str, revision: str | None, weights: bool, plain: bool) -> Source | FoundAdapter:
    folder = Path(name).expanduser().resolve()
    if (folder / ADAPTER_CONFIG).exists():
        return _find_adapter(name, folder, revision, weights)
    values = read_json(folder / CONFIG_FILE)
    config = check_config(values, name, plain)
    digest = None
    if weights:
        files = weight_files(folder)
        if not files:
            raise ModelError(
                f"The folder {name} holds no safetensors files. Save the model with "
                "save_pretrained, which writes them."
            )
        digest = _digest(name, [folder / CONFIG_FILE, *files], revision)
    source = Source(
        name=name,
        hub_id=None,
        revision=digest,
        license=license_in(folder),
        origin=f"from the folder {folder.name}",
        folder=folder,
        config=config,
        public=False,
        kept_layers=kept_layers_in(folder) if weights else None,
    )
    return with_text_half(source, values)


def _find_adapter(name: str, folder: Path, revision: str | None, weights: bool) -> FoundAdapter:
    """Find the adapter in a folder. Raises `ModelError` if it cannot be merged."""
    settings, digest = read_settings(folder / ADAPTER_CONFIG, name), None
    if (folder / "model.safetensors").exists():
        raise beside_a_model(name)
    if weights:
        if not (folder / ADAPTER_WEIGHTS).is_file():
            raise without_weights(name)
        digest = _digest(name, [folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS], revision)
    return FoundAdapter(name, None, folder, digest, settings, public=False)


def _digest(name: str, files: list[Path], revision: str | None) -> str:
    """Return the digest of a folder's files, which must be the revision if one is given."""
    digest = digest_of(files)
    if revision is not None and revision != digest:
        raise ModelError(
            f"The model in {name} is not the one that the recipe was made for: its revision is "
            f"{digest}, the recipe says {revision}. Use the original folder, or remove the "
            "revision from the recipe."
        )
    return digest
