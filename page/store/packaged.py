"""Prepared results for the weights that come as a Python package: they need no worker, and no network."""

from page.store.keys import Base, result_key
from page.store.results import Entry, ResultStore
from page.workers.tasks import Task
from pruning import catalog
from pruning.errors import ModelError
from pruning.loading.offline import is_installed


def packaged_base(name: str) -> Base:
    """Return the base of a name, if its weights come as a package that is installed.

    Raises:
        ModelError: They do not.
    """
    entry = catalog.find(name)
    if entry is None or entry.offline is None or not is_installed(entry):
        raise ModelError(f"The weights of {name} do not come as a package that is installed.")
    return Base(entry.hub_id, entry.offline.revision)


def find_packaged(store: ResultStore, task: Task) -> Entry | None:
    """Return the result of a task for the packaged weights; None if there is none."""
    try:
        key = result_key(task, packaged_base)
    except ModelError:
        return None
    return None if key is None else store.find(key)
