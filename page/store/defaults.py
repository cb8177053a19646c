"""What visitors ask for first: the default recipe at every tenth, every prompt that the page offers, what the
models can still do, and lessons."""

from collections.abc import Iterator, Sequence

from page.server.form import CONTROLS, MAIN, steps_from
from page.store.keys import BUNDLED_PROMPTS
from page.workers.abilities import AbilitiesTask
from page.workers.lesson import LessonTask
from page.workers.tasks import CompareTask, EvaluateTask, PruneTask, Task
from pruning import Recipe, Sampling, catalog
from pruning.lessons import LESSONS

PERCENTAGES = (20, 50, 10, 30, 40, 60, 70, 80, 90)
"""The likeliest settings of the slider come first."""
SAMPLING = Sampling(40)
"""How the page samples when it opens."""


def default_recipe(percent: int, revision: str | None) -> Recipe:
    """Return the recipe that the page asks for when its slider is set to a percentage."""
    values = [percent if control.key == f"{MAIN}-fraction" else control.start for control in CONTROLS]
    return Recipe(base=catalog.DEFAULT_MODEL, revision=revision, steps=steps_from(values))


def tasks_by_name(revision: str | None) -> Iterator[tuple[str, Sequence[Task]]]:
    """Yield what visitors ask for first, in groups with names, the most wanted first.

    Args:
        revision: The revision of the default model.
    """
    for percent in PERCENTAGES:
        recipe = default_recipe(percent, revision)
        first = BUNDLED_PROMPTS[0]
        yield (
            f"neurons-{percent}",
            [PruneTask(recipe, first), CompareTask(recipe, first, SAMPLING), EvaluateTask(recipe)],
        )
    for lesson in LESSONS:
        yield f"lesson-{lesson.number:02}", [LessonTask(lesson.key)]
    for percent in PERCENTAGES:
        recipe = default_recipe(percent, revision)
        tasks: list[Task] = []
        for prompt in BUNDLED_PROMPTS[1:]:
            tasks += [PruneTask(recipe, prompt), CompareTask(recipe, prompt, SAMPLING)]
        yield f"prompts-{percent}", tasks
    for percent in PERCENTAGES:
        yield f"abilities-{percent}", [AbilitiesTask(default_recipe(percent, revision))]


def first_tasks(revision: str | None) -> Iterator[Task]:
    """Yield the tasks of all groups, one after the other."""
    for _, tasks in tasks_by_name(revision):
        yield from tasks
