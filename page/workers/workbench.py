"""The models that visitors work on, made once and shared; a cache bounded in bytes.

Nothing here belongs to one visitor. A session holds a recipe; the model of a recipe is looked up
here, and made again when it was evicted.
"""

import ctypes
import gc
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from pruning import pipeline
from pruning.architectures.shape import Shape
from pruning.calibration import cache
from pruning.calibration.calibrate import StatisticsKey, statistics_of
from pruning.errors import ModelError, PruningError
from pruning.evaluation import inspection
from pruning.evaluation.base_quality import base_quality
from pruning.loading import load as loading
from pruning.loading.load import LoadedModel
from pruning.loading.source import Access, Source, Token
from pruning.pipeline import Pruned
from pruning.progress import Progress, Reporter, silent
from pruning.recipe import Recipe
from pruning.shape_search.search import Budget, SearchResult, Trial, iter_search
from pruning.shape_search.sweep import SweepPoint, iter_sweep
from pruning.steps import Distillation
from pruning.text.choice import Calibration, TextChoice
from pruning.text.passages import CUSTOM

MEMORY_SHARE = 0.4
"""How much of the machine's memory models may take, unless `SECATEUR_MEMORY_SHARE` says otherwise."""

IDLE = 1800.0
"""Seconds after which what belongs to one visitor is dropped, in case nobody said that they left."""

MOST_LOOKS = 256


def memory_share() -> float:
    """The setting `SECATEUR_MEMORY_SHARE`. Raises `PruningError` for one that is no share."""
    text = os.environ.get("SECATEUR_MEMORY_SHARE", str(MEMORY_SHARE))
    with suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise PruningError(f"SECATEUR_MEMORY_SHARE is {text!r}; a share above 0 and up to 1 is needed.")


def machine_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's where that is less."""
    total = psutil.virtual_memory().total
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            total = min(total, int(Path(file).read_text()))
    return total


@dataclass(frozen=True)
class Visitor:
    """Who asks: an owner for what is not public, and the token that shows their rights.

    `own_machine`: whether the visitor owns this machine, and so may use its folders.
    """

    owner: str = ""
    token: Token = False
    own_machine: bool = False

    @property
    def access(self) -> Access:
        return Access(self.token, local=self.own_machine)

    def __repr__(self) -> str:
        return "Visitor()"


@dataclass
class CachedModel:
    """A model that is kept. `tensors`: the bytes at each address that its parameters take, shared with
    other entries or not; `owner`: whose it is, empty for everyone's."""

    value: LoadedModel | Pruned
    tensors: dict[int, int]
    owner: str
    used: float = 0.0

    @property
    def taught(self) -> bool:
        """Whether it would take minutes to make it again."""
        recipe = getattr(self.value, "recipe", None)
        return recipe is not None and any(isinstance(step, Distillation) for step in recipe.steps)


class Workbench:
    """Base models and pruned models, least recently used out first.

    One job at a time works on models: callers hold `working` while they prune or measure. The bound
    is on what is kept: a model that somebody is working with stays, since letting go of it would free
    nothing, and goes when they are done.
    """

    def __init__(self, max_bytes: int | None = None):
        self.max_bytes = max_bytes or int(machine_memory() * memory_share())
        self._working = threading.RLock()
        self._loading: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
        self._lock = threading.RLock()
        self._entries: OrderedDict[tuple, CachedModel] = OrderedDict()
        self._looks: OrderedDict[tuple, tuple[Shape, Source]] = OrderedDict()
        self._texts: dict[str, set[str]] = {}

    @contextmanager
    def working(self, progress: Reporter = silent) -> Iterator[None]:
        """Be the one who works on models. `progress` may raise `Cancelled` while others do."""
        with _held(self._working, progress, "Waiting until the models are free"):
            yield

    def look(self, name: str, visitor: Visitor) -> tuple[Shape, Source]:
        """The shape of a base and where it comes from, without its weights."""
        _check(name)
        keys = [(name, ""), (name, visitor.owner)]
        with self._lock:
            for key in keys:
                if key in self._looks:
                    self._looks.move_to_end(key)
                    return self._looks[key]
        source = loading.find(name, access=visitor.access)
        found = Shape.of(source.config), source
        with self._lock:
            if source.public or visitor.owner:
                self._looks[keys[not source.public]] = found
            while len(self._looks) > MOST_LOOKS:
                self._looks.popitem(last=False)
        return found

    def base(
        self, name: str, visitor: Visitor, revision: str | None = None, progress: Reporter = silent
    ) -> LoadedModel:
        """A base model, loaded if it is not here."""
        _check(name)
        if (found := self._known(name, visitor, revision)) is not None:
            return found
        with self._lock:
            loading_it = self._loading.setdefault((name, visitor.owner), threading.Lock())
        with _held(loading_it, progress, f"Waiting until {name} is loaded"):
            if (found := self._known(name, visitor, revision)) is not None:
                return found
            base = loading.load(
                name,
                revision=revision,
                access=visitor.access,
                progress=progress,
            )
            return self._put(("base", name, revision), base, base.source.public, visitor)

    def _known(self, name: str, visitor: Visitor, revision: str | None) -> LoadedModel | None:
        for known in (revision, None):
            found = self._get(("base", name, known), visitor)
            if found is not None and revision in (None, found.source.revision):
                return found
        return None

    def pruned(self, recipe: Recipe, visitor: Visitor, progress: Reporter = silent) -> Pruned:
        """The model of a recipe, made if it is not here."""
        self._note_texts(visitor, recipe.texts)
        base = self.base(recipe.base, visitor, recipe.revision, progress)
        with self.working(progress):
            if (found := self._get(("pruned", recipe.digest), visitor)) is not None:
                return found
            return self._keep(recipe, pipeline.prune(recipe, base, progress=progress), visitor)

    def teach(
        self, recipe: Recipe, step: Distillation, visitor: Visitor, progress: Reporter = silent
    ) -> Pruned:
        """The model of a recipe after a distillation. Others may work on models meanwhile."""
        base, pruned = self.pair(recipe, visitor, progress)
        taught = pipeline.apply_step(pruned, base, step, progress=progress)
        return self._keep(taught.recipe, taught, visitor)

    def judged(self, recipe: Recipe, visitor: Visitor, tokens: int, progress: Reporter = silent) -> Pruned:
        """The model of a recipe with its quality, before and after, measured in short."""
        with self.working(progress):
            base, pruned = self.pair(recipe, visitor, progress)
            return pipeline.evaluate_pruned(pruned, base, tokens=tokens, progress=progress)

    def measuring(self, recipe: Recipe, visitor: Visitor, progress: Reporter = silent) -> Iterator[Pruned]:
        """The model of a recipe, its report fuller each time; at once where it was measured before."""
        with self.working(progress):
            pruned = self.pruned(recipe, visitor, progress)
            if pruned.report.after.tokens_per_second is not None:
                yield pruned
                return
            base = self.base(recipe.base, visitor, recipe.revision, progress)
            for measured in pipeline.iter_evaluate_pruned(pruned, base, progress=progress):
                yield measured
            self._keep(recipe, measured, visitor)

    def iter_search(
        self,
        name: str,
        budget: str,
        calibration: Calibration,
        seed: int,
        visitor: Visitor,
        progress: Reporter = silent,
    ) -> Iterator[Trial | SearchResult]:
        """Search a base for the best mix of cuts within a budget, point by point; not the thorough one,
        since people wait for it."""
        shape, _ = self.look(name, visitor)
        Budget.parse(budget, shape, 2)
        self._note_texts(visitor, [calibration])
        base = self.base(name, visitor, progress=progress)
        with self.working(progress):
            target = Budget.parse(budget, shape, base.storage_dtype.itemsize)
            yield from iter_search(
                base, target, calibration=calibration, seed=seed, thorough=False, progress=progress
            )

    def pair(
        self, recipe: Recipe, visitor: Visitor, progress: Reporter = silent
    ) -> tuple[LoadedModel, Pruned]:
        """The base and the pruned model of a recipe."""
        base = self.base(recipe.base, visitor, recipe.revision, progress)
        return base, self.pruned(recipe, visitor, progress)

    def importances(
        self,
        name: str,
        criteria: tuple[str, str],
        fraction: float,
        calibration: Calibration,
        seed: int,
        visitor: Visitor,
        progress: Reporter = silent,
    ) -> tuple[list[list[float]], list[float]]:
        """The importance map of a base under the first criterion, and which share of what it
        keeps the second keeps too, when a fraction goes."""
        self._note_texts(visitor, [calibration])
        base = self.base(name, visitor, progress=progress)
        with self.working(progress):
            one, other = (
                inspection.neuron_scores(base, criterion, calibration, seed, progress=progress)
                for criterion in criteria
            )
        return inspection.importance_map(one), inspection.overlaps(one, other, fraction)

    def influences(
        self, name: str, calibration: Calibration, seed: int, visitor: Visitor, progress: Reporter = silent
    ) -> list[float]:
        """The block influence of every layer of a base."""
        self._note_texts(visitor, [calibration])
        base = self.base(name, visitor, progress=progress)
        with self.working(progress):
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
        """Quality against size of a base, for several criteria, point by point."""
        self._note_texts(visitor, [calibration])
        base = self.base(name, visitor, progress=progress)
        with self.working(progress):
            yield from iter_sweep(base, criteria, calibration=calibration, seed=seed, progress=progress)

    def prepare(self, recipe: Recipe, visitor: Visitor, progress: Reporter = silent) -> None:
        """Do ahead what the first visitor would wait for: load, calibrate, measure the base."""
        base = self.base(recipe.base, visitor, progress=progress)
        shape = Shape.of(base.model.config)
        for step in recipe.steps:
            with self.working(progress):
                sites = step.hooked_modules(shape)
                statistics_of(base, recipe.calibration, sites, recipe.seed, progress=progress)
        with self.working(progress):
            base_quality(base, progress=progress)

    def forget(self, owner: str) -> None:
        """Drop all that belongs to an owner alone, or to one whose name goes on after this and a colon;
        and what models computed from the owner's own texts."""

        def theirs(name: str) -> bool:
            return bool(name) and (name == owner or name.startswith(f"{owner}:"))

        with self._lock:
            gone = [key for key, entry in self._entries.items() if theirs(entry.owner)]
            for key in gone:
                del self._entries[key]
            for key in [key for key in self._looks if theirs(key[1])]:
                del self._looks[key]
            owners = [name for name in self._texts if theirs(name) or not name]
            digests = {digest for name in owners for digest in self._texts.pop(name)}
        for digest in digests:
            cache.forget_text(digest)
        if gone:
            give_back()

    def _note_texts(self, visitor: Visitor, texts: Iterable[TextChoice]) -> None:
        """Remember whose own texts models read, so that `forget` can drop what they computed from them."""
        with self._lock:
            for choice in texts:
                if choice.sha256 is not None:
                    self._texts.setdefault(visitor.owner, set()).add(choice.sha256)

    @property
    def bytes(self) -> int:
        """What the models here take, and what is kept of how they read: each tensor once, however many
        models share it."""
        with self._lock:
            tensors: dict[int, int] = {}
            for entry in self._entries.values():
                tensors |= entry.tensors
            return sum(tensors.values()) + cache.total_bytes()

    def _keep(self, recipe: Recipe, pruned: Pruned, visitor: Visitor) -> Pruned:
        public = pruned.source.public and all(choice.text != CUSTOM for choice in recipe.texts)
        return self._put(("pruned", recipe.digest), pruned, public, visitor)

    def _get(self, key: tuple, visitor: Visitor):
        with self._lock:
            self._drop_idle()
            for owner in ("", visitor.owner):
                if (entry := self._entries.get((*key, owner))) is not None:
                    self._entries.move_to_end((*key, owner))
                    entry.used = time.monotonic()
                    return entry.value
        return None

    def _put(self, key: tuple, value, public: bool, visitor: Visitor):
        owner = "" if public else visitor.owner
        if public or owner:  # What is not public and nobody's cannot be found again by the right one.
            with self._lock:
                self._entries.pop((*key, owner), None)
                self._entries[*key, owner] = CachedModel(
                    value, _tensors(value.model), owner, time.monotonic()
                )
                self._make_room()
        return value

    def _drop_idle(self) -> None:
        now = time.monotonic()
        for key, entry in list(self._entries.items()):
            if entry.owner and now - entry.used > IDLE:
                del self._entries[key]

    def _make_room(self) -> None:
        """Let go of the least recently used models that nobody works with, those that took minutes last;
        never of the newest."""
        if self.bytes <= self.max_bytes:
            return
        for key in sorted(list(self._entries)[:-1], key=lambda key: self._entries[key].taught):
            self._let_go(key)
            if self.bytes <= self.max_bytes:
                break
        else:
            cache.clear(StatisticsKey)
        give_back()

    def _let_go(self, key: tuple) -> None:
        entry = self._entries[key]
        value, entry.value = weakref.ref(entry.value), None
        entry.value = value()
        if entry.value is None:  # Otherwise somebody else holds it too.
            del self._entries[key]


@contextmanager
def _held(lock, progress: Reporter, why: str) -> Iterator[None]:
    """Hold a lock; while others hold it, tell so now and then."""
    while not lock.acquire(timeout=0.2):
        progress(Progress(why))
    try:
        yield
    finally:
        lock.release()


def _check(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise ModelError(f"{str(name)[:40]!r} is no model. Choose one of the list, or give a Hub id.")


def _tensors(model) -> dict[int, int]:
    """Bytes at each address that a model's parameters take."""
    storages = (parameter.untyped_storage() for parameter in model.parameters())
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def give_back() -> None:
    """Hand freed memory back to the system, which glibc does late otherwise."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
