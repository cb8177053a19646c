"""The course: a list of lessons, and one lesson at a time with its prediction, its run and its results."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import gradio as gr

from page.html import charts, model_map, render, results
from page.server.session import jobs, log, session_of, started, told, visitor_of, workbench
from page.workers.workbench import Visitor
from pruning import ModelError, Recipe, Sampling, catalog
from pruning.architectures.families import NEURON
from pruning.calibration.calibrate import Calibration
from pruning.criteria import CRITERIA
from pruning.errors import Cancelled
from pruning.lessons import (
    BY_KEY,
    LESSONS,
    Lesson,
    LessonRun,
    format_metrics,
    metrics_of_runs,
    metrics_of_shape,
)
from pruning.progress import Progress
from pruning.shape_search.search import SearchResult
from pruning.text.generation import generate
from pruning.text.passages import GENRES

PARAMETER = "lesson"
PROMPT = "The old man walked to the"
SEARCH_TOKENS = 2048
TOKENS = 1000
"""A lesson measures on so many tokens, so that nobody waits for long."""


@dataclass(frozen=True)
class Course:
    """The components of the tab."""

    chosen: gr.Radio
    see: gr.Markdown
    predict: gr.Radio
    run: gr.Button
    stop: gr.Button
    status: gr.HTML
    drawn: gr.HTML
    notice: gr.Markdown
    question: gr.Markdown
    answer: gr.Markdown
    sources: gr.Markdown
    open: gr.Button
    recipe: gr.State

    @property
    def of_lesson(self) -> list:
        """What another lesson changes, in the order of `opened`."""
        return [
            self.see,
            self.predict,
            self.status,
            self.drawn,
            self.notice,
            self.question,
            self.answer,
            self.sources,
            self.open,
            self.recipe,
        ]


def build() -> Course:
    """Lay the tab out."""
    first = LESSONS[0]
    with gr.Row(elem_classes="desk course"):
        with gr.Column(scale=3, min_width=240, elem_id="lessons"):
            chosen = gr.Radio(
                [(f"{lesson.number}. {lesson.title}", lesson.key) for lesson in LESSONS],
                value=first.key,
                label="Lessons",
                elem_id="lesson-list",
            )
        with gr.Column(scale=8, min_width=320, elem_id="lesson"):
            question, options = first.prediction
            see = gr.Markdown(
                f"## {first.number}. {first.title}\n\n{first.introduction}", elem_id="lesson-see"
            )
            predict = gr.Radio(options, label=question, info="Choose before you run it", elem_id="predict")
            with gr.Row():
                run = gr.Button("Run the lesson", variant="primary", elem_id="lesson-run")
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="lesson-stop")
            status = gr.HTML(elem_id="lesson-status", min_height=44)
            drawn = gr.HTML(elem_id="lesson-results", min_height=40)
            notice = gr.Markdown(elem_id="notice", min_height=20)
            open_button = gr.Button("Open the result on the Prune tab", visible=False, elem_id="open-result")
            asked = gr.Markdown(f"### A question\n\n{first.question}", elem_id="question")
            with gr.Accordion("Answer", open=False, elem_id="reveal"):
                answer = gr.Markdown(first.explanation)
            sources = gr.Markdown(_sources(first))
    return Course(
        chosen,
        see,
        predict,
        run,
        stop,
        status,
        drawn,
        notice,
        asked,
        answer,
        sources,
        open_button,
        gr.State(None),
    )


def wire(course: Course) -> None:
    """Connect the list, Run and Stop."""
    course.chosen.change(
        opened,
        course.chosen,
        course.of_lesson,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )

    def run(request: gr.Request, token: gr.OAuthToken | None, key, guess) -> Iterator[dict]:
        name, job = started(request, "lesson")
        visitor = visitor_of(request, token)
        yield {course.run: gr.Button(visible=False), course.stop: gr.Button(visible=True)}
        try:
            lesson = BY_KEY[key] if key in BY_KEY else LESSONS[0]
            for event in job.watch(lambda tell: _carried_out(lesson, visitor, tell)):
                if isinstance(event, Progress):
                    yield {course.status: render.status(event.text, event.done, event.total, "busy")}
                elif isinstance(event, tuple):
                    ((drawn, facts, recipe),) = event
                    yield {
                        course.drawn: drawn,
                        course.notice: _notice(lesson, facts, guess),
                        course.recipe: recipe,
                        course.open: gr.Button(visible=recipe is not None),
                        course.status: render.status("Done.", kind="done"),
                    }
                else:
                    yield {course.drawn: event}
        except Cancelled as stopped:
            yield {course.status: render.status(str(stopped), kind="stopped")}
        except Exception as error:
            yield {course.status: render.status(told(error), kind="failed")}
        finally:
            jobs.finish(name, job)
        yield {course.run: gr.Button(visible=True), course.stop: gr.Button(visible=False)}

    course.run.click(
        run,
        [course.chosen, course.predict],
        [
            course.run,
            course.stop,
            course.status,
            course.drawn,
            course.notice,
            course.recipe,
            course.open,
        ],
        show_progress="minimal",
        show_progress_on=[course.status],
        concurrency_limit=None,
        api_visibility="private",
    )

    def stop(request: gr.Request) -> None:
        jobs.stop(f"{session_of(request)} lesson")

    course.stop.click(stop, None, None, queue=False, show_progress="hidden", api_visibility="private")


def opened(key: str) -> tuple:
    """Another lesson, as it is before its run."""
    lesson = BY_KEY.get(key, LESSONS[0])
    question, options = lesson.prediction
    return (
        f"## {lesson.number}. {lesson.title}\n\n{lesson.introduction}",
        gr.Radio(options, value=None, label=question),
        "",
        "",
        "",
        f"### A question\n\n{lesson.question}",
        lesson.explanation,
        _sources(lesson),
        gr.Button(visible=False),
        None,
    )


def key_of(value: str) -> str | None:
    """The lesson that a link names, by number or key; None for anything else."""
    found = (lesson.key for lesson in LESSONS if value.split("-")[0].lstrip("0") == str(lesson.number))
    return next(found, None)


def _sources(lesson: Lesson) -> str:
    return f"### Sources\n\n{lesson.sources}\n\n### Try next\n\n{lesson.next}"


def _notice(lesson: Lesson, facts: dict, guess: str | None) -> str:
    """What to notice in these results, after what was predicted."""
    _, options = lesson.prediction
    right = options[lesson.correct_option]
    predicted = ""
    if guess in options:
        verdict = "so it is" if guess == right else f"it was: {right[:1].lower()}{right[1:]}"
        predicted = (
            f"You predicted: *{guess[:1].lower()}{guess[1:]}*. On the model of this course, {verdict}.\n\n"
        )
    odd = [claim for claim in lesson.claims if not claim.holds(facts)]
    warning = ""
    if odd:
        log.warning("lesson %s: %s is %s", lesson.key, odd[0].metric, facts[odd[0].metric])
        warning = (
            "\n\n**These results are not what this lesson expects.** Another model may behave differently."
        )
    return f"### What to notice\n\n{predicted}{lesson.notice(format_metrics(facts))}{warning}"


def _carried_out(lesson: Lesson, visitor: Visitor, tell) -> tuple[str, dict, Recipe | None]:
    """Make and measure the models of a lesson; tell the results as they come."""
    shape, source = workbench.look(catalog.DEFAULT_MODEL, visitor)
    facts: dict = metrics_of_shape(shape)
    if not lesson.runs and not lesson.budget:
        return model_map.draw_model(shape, shape, model_map.weights_origin(source)), facts, None
    measured, rows, recipe = [], [], None
    runs: list[tuple[LessonRun | None, Recipe]] = [(run, run.recipe()) for run in lesson.runs]
    if lesson.budget:
        found = _searched(lesson.budget, visitor, tell)
        chosen = found.chosen
        facts |= {
            "previewed": found.shapes_considered,
            "measured": len(found.trials),
            "chosen": chosen.candidate.title,
        }
        runs = [(None, chosen.recipe)]
    for run, planned in runs:
        name, title = (run.name, run.title) if run else ("chosen", facts["chosen"])
        recipe, pruned = _made(run, planned, visitor, tell)
        base = workbench.base(recipe.base, visitor)
        said = generate(pruned, PROMPT, Sampling(24))
        measured.append((name, pruned))
        facts |= metrics_of_runs(measured) | {
            f"{name}_model": base.source.name,
            f"{name}_width_before": workbench.look(recipe.base, visitor)[0].count(NEURON),
        }
        if not rows:
            whole = generate(base, PROMPT, Sampling(24))
            rows.append(results.LessonRow("Original model", pruned.report, False, whole))
        rows.append(results.LessonRow(title, pruned.report, True, said))
        tell(results.lesson_table(rows, PROMPT, GENRES))
    return results.lesson_table(rows, PROMPT, GENRES) + _look(lesson, visitor, tell), facts, recipe


def _made(run: LessonRun | None, recipe: Recipe, visitor: Visitor, tell):
    """The model of a run, measured: of the base that it prefers, or else of the default model."""
    if run is not None and run.base is not None:
        try:
            preferred = run.recipe(run.base)
            return preferred, workbench.judged(preferred, visitor, TOKENS, tell)
        except ModelError:
            tell(Progress(f"{run.base} cannot be reached; the model at hand stands in"))
    return recipe, workbench.judged(recipe, visitor, TOKENS, tell)


def _searched(budget: str, visitor: Visitor, tell) -> SearchResult:
    calibration = Calibration(tokens=SEARCH_TOKENS)
    with closing(
        workbench.iter_search(catalog.DEFAULT_MODEL, budget, calibration, 0, visitor, tell)
    ) as points:
        *_, found = points
    return found


def _look(lesson: Lesson, visitor: Visitor, tell) -> str:
    """What a lesson draws beside its results."""
    calibration = Calibration()
    if lesson.chart == "importance":
        pair = ("activation", "peak_to_peak")
        drawn = workbench.importances(catalog.DEFAULT_MODEL, pair, 0.2, calibration, 0, visitor, tell)
        return charts.importance_map(*drawn, 0.2, *(CRITERIA[name].title for name in pair))
    if lesson.chart == "influence":
        return charts.influence_chart(
            workbench.influences(catalog.DEFAULT_MODEL, calibration, 0, visitor, tell)
        )
    return ""
