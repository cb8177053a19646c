"""The tasks that hand a model over: save it as one file, or publish it on the Hub."""

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from page.workers.messages import Progress, Released
from page.workers.tasks import LONG, Task, TaskContext, evaluated
from pruning import Recipe, Report, publish
from pruning.errors import RecipeError
from pruning.files import temporary_folder
from pruning.loading.source import Token
from pruning.pipeline import Pruned, check_pruned
from pruning.sharing.gguf import GGUF_TYPES, export_and_compare, gguf_types

ZIP = "zip"
FORMS = (ZIP, *GGUF_TYPES)
NOTES = "notes.json"
"""Beside an exported file: what the visitor should know of it."""
COPIES = 4
"""How many copies of a model an export needs on the disk at the same time: two folders, the file, and one of 16 bits
that it is rounded from."""
UPLOAD_SECONDS = 3600
"""How long an upload may take, in seconds."""


@dataclass(frozen=True)
class ExportTask(Task):
    """Save a measured model as one file, or find the file of an earlier export.

    Attributes:
        recipe: The recipe of the model.
        form: `ZIP`, or a GGUF type.
        name: The name of the file, without its extension.
        report: What was measured of the model before; only what is missing is measured.
    """

    kind = LONG
    recipe: Recipe
    form: str
    name: str
    report: Report | None = None

    def perform(self, context: TaskContext) -> Path:
        """Return the file."""
        if self.form not in FORMS:
            raise RecipeError(f"There is no format {self.form[:40]!r}. Choose one from the list.")
        storage, key = context.workbench.downloads, f"{self.recipe.sha256} {self.form}"
        assert storage is not None, "exports need a folder"
        if (found := storage.find(key, context.visitor.owner)) is not None:
            return _file_in(found)
        pruned = _measured_and_checked(self.recipe, self.report, context)
        if self.form in GGUF_TYPES and (obstacle := gguf_types(pruned.shape, pruned.recipe.steps)[self.form]):
            raise RecipeError(
                f"{obstacle} Choose another format, or a width that fits under How to choose what to cut."
            )
        size = pruned.report.after.bytes
        storage.make_room(COPIES * size)
        owner = context.workbench.owner_of(pruned, context.visitor)
        with storage.new(key, owner) as entry, temporary_folder(entry.parent) as work:
            self._write(pruned, work / self.name, entry, context)
        found = storage.find(key, owner)
        assert found is not None, "the newest entry stays"
        return _file_in(found)

    def _write(self, pruned: Pruned, folder: Path, entry: Path, context: TaskContext) -> None:
        pruned.save(folder, progress=context.emit)
        if self.form == ZIP:
            _pack(folder, entry / f"{self.name}.zip", context)
        else:
            output = entry / f"{self.name}-{self.form}.gguf"
            exported = export_and_compare(folder, output, self.form, progress=context.emit)
            (entry / NOTES).write_text(json.dumps(exported.notes), encoding="utf-8")


def _measured_and_checked(recipe: Recipe, report: Report | None, context: TaskContext) -> Pruned:
    """Return the model of a recipe with all its measurements, compared with its masked base."""
    pruned = evaluated(recipe, context, known=report)
    base = context.workbench.load(recipe.base, context.visitor, recipe.revision, context.emit)
    check_pruned(pruned, base, progress=context.emit)
    return pruned


def _pack(folder: Path, file: Path, context: TaskContext) -> None:
    """Write a folder to a zip file without compression, which takes long and saves little on weights."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            context.emit(Progress(f"Packing {path.name}"))
            archive.write(path, path.relative_to(folder.parent))


def _file_in(entry: Path) -> Path:
    """Return the exported file in a folder that may hold notes on it too."""
    return next(file for file in entry.iterdir() if file.name != NOTES)


def notes_on(file: Path) -> list[str]:
    """Return what the visitor should know of an exported file, in lines."""
    notes = file.with_name(NOTES)
    return json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else []


@dataclass(frozen=True)
class PublishTask(Task):
    """Publish a measured model on the Hub.

    Attributes:
        recipe: The recipe of the model.
        repository: The name of the repository, with or without its owner.
        private: Whether only its owner can see it.
        token: The token of the user who publishes.
        report: What was measured of the model before; only what is missing is measured.
    """

    kind = LONG
    recipe: Recipe
    repository: str
    private: bool
    token: Token = field(repr=False)
    report: Report | None = None

    def perform(self, context: TaskContext) -> str:
        """Return the address of the repository."""
        pruned = _measured_and_checked(self.recipe, self.report, context)
        context.emit(Released(UPLOAD_SECONDS))
        return publish(pruned, self.repository, private=self.private, token=self.token, progress=context.emit)
