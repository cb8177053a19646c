"""The models that visitors work on, made once and shared; a cache bounded in bytes.

Nothing here belongs to one visitor. A session holds a recipe; the model of a recipe is looked up
here, and made again when it was evicted.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import psutil

from pruning import inspection, loading, pipeline
from pruning.calibration import statistics_of
from pruning.loading import LoadedModel, Source, Token
from pruning.pipeline import Pruned
from pruning.progress import Reporter, silent
from pruning.recipe import Recipe
from pruning.search import Budget, Found, Point, searching
from pruning.shape import Shape
from pruning.steps import Distillation
from pruning.sweep import SweepPoint, sweeping
from pruning.texts import OWN
from pruning.texts.choice import Calibration

MEMORY_SHARE = 0.4


@dataclass(frozen=True)
class Visitor:
    """Who asks: an owner for what is not public, and the token that shows their rights.

    `own_machine`: whether the visitor owns this machine, and so may use its folders.
    """

    owner: str = ""
    token: Token = False
    own_machine: bool = False

    def __repr__(self) -> str:
        return "Visitor()"


class Workbench:
    """Base models and pruned models, least recently used out first.

    One job at a time works on models: callers hold `working` while they load, prune or measure.
    """

    def __init__(self, max_bytes: int | None = None):
        self.max_bytes = max_bytes or int(psutil.virtual_memory().total * MEMORY_SHARE)
        self.working = threading.RLock()
        self._lock = threading.RLock()
        self._entries: OrderedDict[tuple, tuple[object, int]] = OrderedDict()
        self._looks: dict[tuple, tuple[Shape, Source]] = {}

    def look(self, name: str, visitor: Visitor) -> tuple[Shape, Source]:
        """The shape of a base and where it comes from, without its weights."""
        key = (name, visitor.owner)
        if key not in self._looks:
            config, source = loading.read_config(name, token=visitor.token, own_machine=visitor.own_machine)
            if len(self._looks) > 256:
                self._looks.clear()
            self._looks[key] = Shape.of(config), source
        return self._looks[key]

    def base(
        self, name: str, visitor: Visitor, revision: str | None = None, progress: Reporter = silent
    ) -> LoadedModel:
        """A base model, loaded if it is not here."""
        with self.working:
            for owner in ("", visitor.owner):
                for known in (revision, None):
                    found = self._get(("base", name, known, owner))
                    if found is not None and revision in (None, found.source.revision):
                        return found
            base = loading.load(
                name,
                revision=revision,
                token=visitor.token,
                own_machine=visitor.own_machine,
                progress=progress,
            )
            owner = "" if base.source.public else visitor.owner
            self._put(("base", name, revision, owner), base, _bytes(base.model))
            return base

    def pruned(self, recipe: Recipe, visitor: Visitor, progress: Reporter = silent) -> Pruned:
        """The model of a recipe, made if it is not here."""
        with self.working:
            base = self.base(recipe.base, visitor, recipe.revision, progress)
            key = self._key(recipe, base, visitor)
            if (found := self._get(key)) is not None:
                return found
            pruned = pipeline.prune(recipe, base, progress)
            self._put(key, pruned, _bytes(pruned.model, base.model))
            return pruned

    def teach(
        self, recipe: Recipe, step: Distillation, visitor: Visitor, progress: Reporter = silent
    ) -> Pruned:
        """The model of a recipe after a distillation. Others may work on models meanwhile."""
        base, pruned = self.pair(recipe, visitor, progress)
        taught = pipeline.further(pruned, base, step, progress)
        self._put(self._key(taught.recipe, base, visitor), taught, _bytes(taught.model, base.model))
        return taught

    def judged(self, recipe: Recipe, visitor: Visitor, progress: Reporter = silent) -> Pruned:
        """The model of a recipe with its quality measured, before and after."""
        with closing(self.measuring(recipe, visitor, progress)) as steps:
            return next(step for step in steps if step.report.judged)

    def measuring(self, recipe: Recipe, visitor: Visitor, progress: Reporter = silent) -> Iterator[Pruned]:
        """The model of a recipe, its report fuller each time; at once where it was measured before."""
        with self.working:
            pruned = self.pruned(recipe, visitor, progress)
            if pruned.report.speed_after is not None:
                yield pruned
                return
            base = self.base(recipe.base, visitor, recipe.revision, progress)
            for measured in pipeline.measuring(pruned, base, progress):
                yield measured
            self._put(self._key(recipe, base, visitor), measured, _bytes(pruned.model, base.model))

    def searching(
        self,
        name: str,
        budget: str,
        calibration: Calibration,
        seed: int,
        visitor: Visitor,
        progress: Reporter = silent,
    ) -> Iterator[Point | Found]:
        """Search a base for the best mix of cuts within a budget, point by point."""
        shape, _ = self.look(name, visitor)
        Budget.parse(budget, shape, 2)
        with self.working:
            base = self.base(name, visitor, progress=progress)
            target = Budget.parse(budget, shape, base.storage_dtype.itemsize)
            yield from searching(base, target, calibration, seed, progress)

    def pair(
        self, recipe: Recipe, visitor: Visitor, progress: Reporter = silent
    ) -> tuple[LoadedModel, Pruned]:
        """The base and the pruned model of a recipe."""
        with self.working:
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
        with self.working:
            base = self.base(name, visitor, progress=progress)
            one, other = (
                inspection.neuron_scores(base, criterion, calibration, seed, progress)
                for criterion in criteria
            )
        return inspection.importance_map(one), inspection.overlaps(one, other, fraction)

    def influences(
        self, name: str, calibration: Calibration, seed: int, visitor: Visitor, progress: Reporter = silent
    ) -> list[float]:
        """The block influence of every layer of a base."""
        with self.working:
            base = self.base(name, visitor, progress=progress)
            return inspection.layer_influences(base, calibration, seed, progress)

    def sweeping(
        self,
        name: str,
        criteria: Iterable[str],
        calibration: Calibration,
        seed: int,
        visitor: Visitor,
        progress: Reporter = silent,
    ) -> Iterator[SweepPoint]:
        """Quality against size of a base, for several criteria, point by point."""
        with self.working:
            base = self.base(name, visitor, progress=progress)
            yield from sweeping(base, criteria, calibration, seed, progress)

    def prepare(self, recipe: Recipe, visitor: Visitor, progress: Reporter = silent) -> None:
        """Do ahead what the first visitor would wait for: load, calibrate, measure the base."""
        with self.working:
            base = self.base(recipe.base, visitor, progress=progress)
        shape = Shape.of(base.model.config)
        for step in recipe.steps:
            with self.working:
                sites = step.sites(shape)
                statistics_of(base, recipe.calibration, sites, recipe.seed, progress=progress)
        with self.working:
            pipeline.base_quality(base, progress)

    @staticmethod
    def _key(recipe: Recipe, base: LoadedModel, visitor: Visitor) -> tuple:
        private = not base.source.public or any(choice.text == OWN for choice in recipe.texts)
        return ("pruned", recipe.digest, visitor.owner if private else "")

    @property
    def bytes(self) -> int:
        """What the models here take."""
        with self._lock:
            return sum(size for _, size in self._entries.values())

    def _get(self, key: tuple):
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def _put(self, key: tuple, value: object, size: int) -> None:
        with self._lock:
            self._entries[key] = value, size
            while len(self._entries) > 1 and self.bytes > self.max_bytes:
                self._entries.popitem(last=False)


def _bytes(model, base=None) -> int:
    """The memory of a model's tensors, without those it shares with its base."""
    shared = {p.untyped_storage().data_ptr() for p in base.parameters()} if base is not None else set()
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    return sum(size for pointer, size in storages.items() if pointer not in shared)
