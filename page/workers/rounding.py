"""The task that compares pruning with rounding weights to fewer bits."""

from dataclasses import dataclass

from page.workers.messages import Partial, RoundedModels
from page.workers.tasks import LONG, Task, TaskContext
from pruning import Recipe
from pruning.loading.offline import is_offline
from pruning.sharing.gguf.rounded import LeftOut, RoundedPoint, iter_rounded


@dataclass(frozen=True)
class RoundingTask(Task):
    """Measure a base and its pruned model, each with its weights rounded to several types."""

    kind = LONG
    recipe: Recipe

    def perform(self, context: TaskContext) -> RoundedModels:
        """Emit the points so far with each that is measured, and return them all."""
        base, pruned = context.workbench.load_pair(self.recipe, context.visitor, context.emit)
        points: list[RoundedPoint] = []
        left_out: list[LeftOut] = []
        for item in iter_rounded(base, pruned, progress=context.emit):
            if isinstance(item, RoundedPoint):
                points.append(item)
            else:
                left_out.append(item)
            models = RoundedModels(tuple(points), tuple(left_out), is_offline(base.source))
            context.emit(Partial(models, replaces=True))
        return models
