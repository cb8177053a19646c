"""The models of a worker process, built once and shared: a cache bounded in bytes.

A session holds a recipe. The model of a recipe is looked up here, and rebuilt if it was evicted.
"""

import pickle
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

from page.workers.base_texts import BaseTexts
from page.workers.storage import Storage
from pruning import pipeline
from pruning.architectures.shape import Shape
from pruning.calibration import cache
from pruning.calibration.calibrate import StatisticsKey, statistics_of
from pruning.distillation.result import DistillationNote
from pruning.errors import ModelError, PruningError
from pruning.evaluation import inspection
from pruning.evaluation.base_quality import base_quality
from pruning.loading import load as loading
from pruning.loading.load import LoadedModel
from pruning.loading.source import Access
from pruning.memory import release_memory
from pruning.pipeline import Pruned
from pruning.progress import Reporter, silent
from pruning.recipe import Recipe
from pruning.report import Report
from pruning.shape_search.search import Budget, SearchResult, Trial, iter_search
from pruning.shape_search.sweep import SweepPoint, iter_sweep
from pruning.snapshot import read_snapshot, snapshot_bytes, write_snapshot
from pruning.steps import Distillation, Reconstruction
from pruning.text.chat_learning import learn_chat_format
from pruning.text.choice import Calibration, TextChoice
from pruning.text.passages import CUSTOM

IDLE_SECONDS = 1800.0
"""After this long without use, what belongs to one visitor is dropped, in case their leaving was missed."""

REPORT = "report.pickle"
REPORT_PARTS = ("report", "quality")
"""A report is kept whole, or as long as only the quality was measured."""

MAX_NAME = 200
"""The longest name of a model, in characters."""

Model = TypeVar("Model", LoadedModel, Pruned)


@dataclass(frozen=True)
class Visitor:
    """Who asks for models.

    Attributes:
        owner: The name under which models that are not public are kept; empty for none.
        access: What they may see; by default only what is public.
    """

    owner: str = ""
    access: Access = field(default=Access(token=False, local=False), repr=False)

    @property
    def session(self) -> str:
        """The visit that the owner's name begins with."""
        return self.owner.split(":")[0]

    def __repr__(self) -> str:
        return "Visitor()"


@dataclass
class CachedModel:
    """A model in the cache.

    Attributes:
        value: The model; None only while it is being evicted.
        tensors: The bytes at each address that its parameters take, shared with other entries or not.
        owner: The visitor it belongs to, empty for everyone.
        used_at: When it was last used, in seconds of the monotonic clock.
    """

    value: LoadedModel | Pruned | None
    tensors: dict[int, int]
    owner: str
    used_at: float


class Workbench:
    """A cache of base models and pruned models; the least recently used are dropped first.

    One task at a time works on it. The bound is on what the cache keeps: dropping a model that is in use would
    free nothing, so it remains until it is not.
    """

    def __init__(
        self, max_bytes: int, models: Storage | None = None, downloads: Storage | None = None
    ) -> None:
        """Create an empty workbench.

        Args:
            max_bytes: The most bytes of models and statistics that it keeps.
            models: Where models that took minutes to make, and reports, are kept for other workers too.
            downloads: Where files to download are kept.
        """
        self.max_bytes, self.models, self.downloads = max_bytes, models, downloads
        self._entries: OrderedDict[tuple[str | None, ...], CachedModel] = OrderedDict()
        self._texts: dict[str, set[str]] = {}
        self.base_texts = BaseTexts()

    def load(
        self, name: str, visitor: Visitor, revision: str | None = None, progress: Reporter = silent
    ) -> LoadedModel:
        """Return a base model, loaded if it is not in the cache."""
        check_name(name)
        for cached in (revision, None):
            found = self._get(("base", name, cached), visitor, LoadedModel)
            if found is not None and revision in (None, found.source.revision):
                return found
        base = loading.load(name, revision=revision, access=visitor.access, mapped=True, progress=progress)
        return self._store(("base", name, revision), base, base.source.public, visitor)

    def prune(self, recipe: Recipe, visitor: Visitor, progress: Reporter = silent) -> Pruned:
        """Return the model of a recipe, pruned if it was not before."""
        self._note_texts(visitor, recipe.texts)
        if (found := self._get(("pruned", recipe.sha256), visitor, Pruned)) is not None:
            return found
        base = self.load(recipe.base, visitor, recipe.revision, progress)
        stored = self.models.find(recipe.sha256, visitor.owner) if self.models else None
        if stored is not None and (kept := read_snapshot(stored, base)) is not None:
            return self._keep(recipe, kept, visitor)
        return self._store_pruned(
            recipe, pipeline.prune(recipe, base, share_memory=True, progress=progress), visitor
        )

    def load_pair(
        self, recipe: Recipe, visitor: Visitor, progress: Reporter = silent
    ) -> tuple[LoadedModel, Pruned]:
        """Return the base and the pruned model of a recipe."""
        base = self.load(recipe.base, visitor, recipe.revision, progress)
        return base, self.prune(recipe, visitor, progress)

    def distill(
        self, recipe: Recipe, step: Distillation, visitor: Visitor, progress: Reporter = silent
    ) -> Pruned:
        """Return the model of a recipe after a distillation. Its recipe states the minutes that it took."""
        base, pruned = self.load_pair(recipe, visitor, progress)
        result = pipeline.apply_step(pruned, base, step, progress=progress)
        if step.minutes is not None:
            result = _with_minutes_taken(result, step)
        return self._store_pruned(result.recipe, result, visitor)

    def evaluate(self, recipe: Recipe, visitor: Visitor, tokens: int, progress: Reporter = silent) -> Pruned:
        """Return the model of a recipe with its quality before and after, measured on this many tokens."""
        base, pruned = self.load_pair(recipe, visitor, progress)
        return pipeline.evaluate_pruned(pruned, base, tokens=tokens, progress=progress)

    def iter_evaluate(
        self,
        recipe: Recipe,
        visitor: Visitor,
        progress: Reporter = silent,
        *,
        speed: bool = True,
        known: Report | None = None,
    ) -> Iterator[Pruned]:
        """Yield the model of a recipe as its report fills; once if it was measured before.

        Args:
            recipe: The recipe.
            visitor: Who asks.
            progress: Is called with each stage.
            speed: Whether speed and samples are measured after the quality.
            known: What was measured of it elsewhere, whose quality is taken over.
        """

        def is_enough(report: Report) -> bool:
            return report.is_complete if speed else report.after.has_full_quality

        pruned = self.prune(recipe, visitor, progress)
        if not is_enough(pruned.report) and (report := self._stored_report(recipe, visitor)) is not None:
            pruned = self._keep(recipe, replace(pruned, report=report), visitor)
        if known is not None and known.after.has_full_quality and not pruned.report.after.has_full_quality:
            pruned = pipeline.with_quality(pruned, known.before.quality, known.after.quality)
        if is_enough(pruned.report):
            yield pruned
            return
        base = self.load(recipe.base, visitor, recipe.revision, progress)
        measured = pruned
        for measured in pipeline.iter_evaluate_pruned(pruned, base, progress=progress):
            yield measured
            if is_enough(measured.report):
                break
        self._keep(recipe, measured, visitor)
        self._store_report(recipe, measured, visitor)

    def iter_search(
        self,
        name: str,
        budget: str,
        calibration: Calibration,
        seed: int,
        visitor: Visitor,
        progress: Reporter = silent,
    ) -> Iterator[Trial | SearchResult]:
        """Search a base for the best combination of cuts within a budget; yield each trial, then the result.

        The search is not the thorough one, since a visitor waits for it.
        """
        self._note_texts(visitor, [calibration])
        base = self.load(name, visitor, progress=progress)
        target = Budget.parse(budget, Shape.of(base.model.config), base.storage_dtype.itemsize)
        yield from iter_search(
            base, target, calibration=calibration, seed=seed, thorough=False, progress=progress
        )

    def compare_importance(
        self,
        name: str,
        criteria: tuple[str, str],
        fraction: float,
        calibration: Calibration,
        seed: int,
        visitor: Visitor,
        progress: Reporter = silent,
    ) -> tuple[list[list[float]], list[float]]:
        """Score the neurons of a base under two criteria.

        Returns:
            The importance map of the first criterion; and for each layer, which share of what it keeps the
            second keeps too, if a fraction of the neurons is removed.
        """
        self._note_texts(visitor, [calibration])
        base = self.load(name, visitor, progress=progress)
        one, other = (
            inspection.neuron_scores(base, criterion, calibration, seed, progress=progress)
            for criterion in criteria
        )
        return inspection.importance_map(one), inspection.overlaps(one, other, fraction)

    def layer_influences(
        self, name: str, calibration: Calibration, seed: int, visitor: Visitor, progress: Reporter = silent
    ) -> list[float]:
        """Return the block influence of every layer of a base."""
        self._note_texts(visitor, [calibration])
        base = self.load(name, visitor, progress=progress)
        return inspection.layer_influences(base, calibration, seed, progress=progress)

    def iter_sweep(
        self,
        name: str,
        criteria: Iterable[str],
        calibration: Calibration,
        seed: int,
        visitor: Visitor,
        progress: Reporter = silent,
    ) -> Iterator[SweepPoint]:
        """Yield quality against size of a base for several criteria, point by point."""
        self._note_texts(visitor, [calibration])
        base = self.load(name, visitor, progress=progress)
        yield from iter_sweep(base, criteria, calibration=calibration, seed=seed, progress=progress)

    def warm_up(self, recipe: Recipe, visitor: Visitor, progress: Reporter = silent) -> None:
        """Do ahead what the first visitor would wait for: load, calibrate, and measure the base."""
        base = self.load(recipe.base, visitor, progress=progress)
        learn_chat_format(base.tokenizer)
        shape = Shape.of(base.model.config)
        for step in recipe.steps:
            modules = step.hooked_modules(shape)
            statistics_of(base, recipe.calibration, modules, recipe.seed, progress=progress)
        base_quality(base, progress=progress)

    def forget(self, owner: str) -> None:
        """Drop what belongs to an owner alone, and what models computed from the owner's own texts.

        Args:
            owner: The name of the owner, or all of it up to a colon.
        """

        def is_theirs(name: str) -> bool:
            return bool(name) and (name == owner or name.startswith(f"{owner}:"))

        self.base_texts.forget(is_theirs)
        keys = [key for key, entry in self._entries.items() if is_theirs(entry.owner)]
        for key in keys:
            del self._entries[key]
        owners = [name for name in self._texts if is_theirs(name) or not name]
        digests = {digest for name in owners for digest in self._texts.pop(name)}
        for digest in digests.difference(*self._texts.values()):
            cache.forget_text(digest)
        if keys or digests:
            release_memory()

    def _note_texts(self, visitor: Visitor, texts: Iterable[TextChoice]) -> None:
        """Remember whose own texts models read, so that `forget` can drop what they computed from them."""
        for choice in texts:
            if choice.sha256 is not None:
                self._texts.setdefault(visitor.owner, set()).add(choice.sha256)

    @property
    def bytes(self) -> int:
        """What the models and their calibration statistics take; a tensor shared by several counts once."""
        tensors: dict[int, int] = {}
        for entry in self._entries.values():
            tensors |= entry.tensors
        return sum(tensors.values()) + cache.total_bytes()

    def _store_pruned(self, recipe: Recipe, pruned: Pruned, visitor: Visitor) -> Pruned:
        """Keep a model that was just made, on disk too if that took minutes."""
        owner = self.owner_of(pruned, visitor)
        if self.models is not None and _took_minutes(recipe) and (owner or _is_public(pruned)):
            # A full disk costs other workers the time to make it again.
            with suppress(PruningError, OSError):
                self.models.make_room(snapshot_bytes(pruned))
                with self.models.new(recipe.sha256, owner) as folder:
                    write_snapshot(pruned, folder)
        return self._keep(recipe, pruned, visitor)

    def _store_report(self, recipe: Recipe, measured: Pruned, visitor: Visitor) -> None:
        """Keep a report on disk, so that another worker need not measure the same model again."""
        owner = self.owner_of(measured, visitor)
        if self.models is not None and (owner or _is_public(measured)):
            part = REPORT_PARTS[not measured.report.is_complete]
            with suppress(OSError), self.models.new(f"{recipe.sha256} {part}", owner) as folder:
                (folder / REPORT).write_bytes(pickle.dumps(measured.report))

    def _stored_report(self, recipe: Recipe, visitor: Visitor) -> Report | None:
        if self.models is None:
            return None
        for part in REPORT_PARTS:
            folder = self.models.find(f"{recipe.sha256} {part}", visitor.owner)
            if folder is not None:
                with suppress(OSError):
                    # Only this page's own workers write to its folder.
                    return cast("Report", pickle.loads((folder / REPORT).read_bytes()))
        return None

    def owner_of(self, pruned: Pruned, visitor: Visitor) -> str:
        """Return whose a model is that a visitor asked for; empty for everyone's."""
        return "" if _is_public(pruned) else visitor.owner

    def _keep(self, recipe: Recipe, pruned: Pruned, visitor: Visitor) -> Pruned:
        return self._store(("pruned", recipe.sha256), pruned, _is_public(pruned), visitor)

    def _get(self, key: tuple[str | None, ...], visitor: Visitor, kind: type[Model]) -> Model | None:
        self._drop_idle()
        for owner in ("", visitor.owner):
            if (entry := self._entries.get((*key, owner))) is not None:
                self._entries.move_to_end((*key, owner))
                entry.used_at = time.monotonic()
                return entry.value if isinstance(entry.value, kind) else None
        return None

    def _store(self, key: tuple[str | None, ...], value: Model, public: bool, visitor: Visitor) -> Model:
        owner = "" if public else visitor.owner
        if public or owner:  # What is not public and has no owner could not be found again by the right one.
            self._entries.pop((*key, owner), None)
            self._entries[*key, owner] = CachedModel(value, _tensors(value), owner, time.monotonic())
            self._make_room()
        return value

    def _drop_idle(self) -> None:
        now = time.monotonic()
        self.base_texts.drop_unused(now - IDLE_SECONDS)
        for key, entry in list(self._entries.items()):
            if entry.owner and now - entry.used_at > IDLE_SECONDS:
                del self._entries[key]

    def _make_room(self) -> None:
        """Drop the least recently used models that are not in use; never the newest."""
        if self.bytes <= self.max_bytes:
            return
        for key in list(self._entries)[:-1]:
            self._evict(key)
            if self.bytes <= self.max_bytes:
                break
        else:
            cache.clear(StatisticsKey)
        release_memory()

    def _evict(self, key: tuple[str | None, ...]) -> None:
        entry = self._entries[key]
        if entry.value is None:
            return
        reference, entry.value = weakref.ref(entry.value), None
        entry.value = reference()
        if entry.value is None:  # Otherwise the task under way holds it too.
            del self._entries[key]


def check_name(name: object) -> None:
    """Refuse what cannot be the name of a model. Raises `ModelError`."""
    if not isinstance(name, str) or not name or len(name) > MAX_NAME:
        raise ModelError(f"{str(name)[:40]!r} is not a model. Choose one from the list, or enter a Hub id.")


def _is_public(pruned: Pruned) -> bool:
    """Return whether everyone may have a model: its base is public, and no own text went into it."""
    return pruned.source.public and all(choice.text != CUSTOM for choice in pruned.recipe.texts)


def _took_minutes(recipe: Recipe) -> bool:
    return any(isinstance(step, Distillation | Reconstruction) for step in recipe.steps)


def _with_minutes_taken(distilled: Pruned, step: Distillation) -> Pruned:
    """Replace the minutes that were asked for with the minutes that the training took: fewer if a visitor stopped it.

    Two trainings of the same length give different weights, and models are found by their recipes. The exact time tells
    them apart.
    """
    (note,) = distilled.report.notes[-1]
    assert isinstance(note, DistillationNote)
    taken = step.model_copy(update={"minutes": max(round(note.seconds / 60, 4), 1e-4)})
    recipe = distilled.recipe.model_copy(update={"steps": (*distilled.recipe.steps[:-1], taken)})
    return replace(distilled, recipe=recipe)


def _tensors(loaded: LoadedModel | Pruned) -> dict[int, int]:
    """Return the bytes at each address that a model's parameters take."""
    storages = (parameter.untyped_storage() for parameter in loaded.model.parameters())
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
