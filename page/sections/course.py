"""The course: a list of lessons, and one lesson at a time with its prediction, its run and its results."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from html import escape

import gradio as gr

from page.html import charts, model_map, render, results
from page.html.heading import format_date
from page.sections import room_board
from page.sections.events import JobPanel, Part, Updates, on_event, on_start
from page.sections.inspect import draw_importance
from page.sections.picture import draw_recipe
from page.server.jobs import wait_for_end, watch_job
from page.server.session import job_name, jobs, log, rooms, session_of, visitor_of
from page.workers.lesson import PROMPT, LessonTask
from page.workers.messages import Done, ImportanceMap, LayerInfluences, LessonModel, LessonResult, Partial
from pruning import catalog
from pruning.lessons import BY_KEY, LESSONS, Lesson, format_metrics
from pruning.text.passages import GENRES

PARAMETER = "lesson"
KIND = "lesson"


@dataclass(frozen=True)
class LessonText:
    """What a lesson says, in the order in which it stands."""

    introduction: gr.Markdown
    prediction: gr.Radio
    notice: gr.Markdown
    question: gr.Markdown
    reveal: gr.Accordion
    answer: gr.Markdown
    sources: gr.Markdown


@dataclass(frozen=True)
class CourseTab:
    """The components of the tab.

    Attributes:
        chosen: The list of lessons.
        text: What the chosen lesson says.
        room: What a page in a room shows of its class.
        run: The button that runs it, or shows what was recorded of it.
        live: The button that runs a recorded lesson again.
        stop: The button that stops the run.
        status: Where the run stands.
        results: What the run gave.
        open_result: The button that opens the recipe of the last model on the Prune tab.
        recipe: That recipe.
    """

    chosen: gr.Radio
    text: LessonText
    room: room_board.RoomBoard
    run: gr.Button
    live: gr.Button
    stop: gr.Button
    status: gr.HTML
    results: gr.HTML
    open_result: gr.Button
    recipe: gr.State

    @property
    def lesson_outputs(self) -> list[Part]:
        """What `show_lesson` changes."""
        text = self.text
        return [
            text.introduction,
            text.prediction,
            text.notice,
            text.question,
            text.reveal,
            text.answer,
            text.sources,
            *self.run_outputs,
        ]

    @property
    def run_outputs(self) -> list[Part]:
        """What a run changes besides its buttons and the text on what to notice."""
        return [self.live, self.status, self.results, self.open_result, self.recipe]

    def show_lesson(self, key: str) -> Updates:
        """Return another lesson as it is before its run."""
        lesson = BY_KEY.get(key, LESSONS[0])
        question, options = lesson.prediction
        updates: dict[Part, object] = {
            self.text.introduction: _introduction(lesson),
            self.text.prediction: gr.Radio(options, value=None, label=question),
            self.text.notice: "",
            self.text.question: _question(lesson),
            self.text.reveal: gr.Accordion(open=False),
            self.text.answer: lesson.explanation,
            self.text.sources: _sources(lesson),
            self.live: gr.Button(visible=False),
            self.status: "",
            self.results: "",
            self.open_result: gr.Button(visible=False),
            self.recipe: None,
        }
        return updates | self.panel.idle

    @property
    def panel(self) -> JobPanel:
        """The buttons and the status line of a run."""
        return JobPanel(self.status, self.run, self.stop)

    def show_result(
        self, lesson: Lesson, result: LessonResult, guess: str | None, recorded: date | None = None
    ) -> dict[Part, object]:
        """Return the results of a run, with what to notice in them."""
        return {
            self.live: gr.Button(visible=recorded is not None),
            self.results: _draw(result, recorded),
            self.text.notice: _notice(lesson, result.metrics, guess),
            self.recipe: result.recipe,
            self.open_result: gr.Button(visible=result.recipe is not None),
        }


def build() -> CourseTab:
    """Lay the tab out."""
    first = LESSONS[0]
    question, options = first.prediction
    with gr.Row(elem_classes="desk course"):
        with gr.Column(scale=3, min_width=240, elem_id="lessons"):
            chosen = gr.Radio(
                [(f"{lesson.number}. {lesson.title}", lesson.key) for lesson in LESSONS],
                value=first.key,
                label="Lessons",
                elem_id="lesson-list",
            )
        with gr.Column(scale=8, min_width=320, elem_id="lesson"):
            introduction = gr.Markdown(_introduction(first), elem_id="lesson-see")
            prediction = gr.Radio(options, label=question, info="Choose before you run it", elem_id="predict")
            room = room_board.build()
            with gr.Row():
                run = gr.Button("Run the lesson", variant="primary", elem_id="lesson-run")
                live = gr.Button("Run it live", visible=False, elem_id="lesson-live")
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="lesson-stop")
            status = gr.HTML(elem_id="lesson-status", min_height=44)
            drawn = gr.HTML(elem_id="lesson-results", min_height=40)
            notice = gr.Markdown(elem_id="notice", min_height=20)
            open_result = gr.Button("Open the result on the Prune tab", visible=False, elem_id="open-result")
            asked = gr.Markdown(_question(first), elem_id="question")
            with gr.Accordion("Show the answer", open=False, elem_id="reveal") as reveal:
                answer = gr.Markdown(first.explanation)
            sources = gr.Markdown(_sources(first))
    text = LessonText(introduction, prediction, notice, asked, reveal, answer, sources)
    return CourseTab(chosen, text, room, run, live, stop, status, drawn, open_result, gr.State(None))


def wire(tab: CourseTab) -> None:
    """Connect the list, Run, Run it live and Stop, and what the teacher of a room runs."""

    async def follow(
        request: gr.Request, token: gr.OAuthToken | None, key: str, guess: str | None, live: bool
    ) -> AsyncIterator[Updates]:
        lesson = BY_KEY.get(key, LESSONS[0])
        rooms.note_run(session_of(request), lesson.key, live)

        def show(event: Partial | Done) -> Updates:
            match event:
                case Partial(tuple() as models):
                    return {tab.results: _draw_models(models)}
                case Done(LessonResult() as result, recorded):
                    return tab.show_result(lesson, result, guess, recorded)
            return {}

        visitor, name = visitor_of(request, token), job_name(request, KIND)
        events = watch_job(lambda: [LessonTask(lesson.key)], visitor, name, live=live)
        async for updates in tab.panel.watch(events, show):
            yield updates

    async def run(
        request: gr.Request, token: gr.OAuthToken | None, key: str, guess: str | None
    ) -> AsyncIterator[Updates]:
        async for updates in follow(request, token, key, guess, live=False):
            yield updates

    async def run_lesson_live(
        request: gr.Request, token: gr.OAuthToken | None, key: str, guess: str | None
    ) -> AsyncIterator[Updates]:
        async for updates in follow(request, token, key, guess, live=True):
            yield updates

    async def run_with_class(
        request: gr.Request, token: gr.OAuthToken | None, key: str, guess: str | None, started: object
    ) -> AsyncIterator[Updates]:
        async for updates in follow(request, token, key, guess, live=str(started).endswith(room_board.LIVE)):
            yield updates

    def stop(request: gr.Request) -> None:
        jobs.stop(job_name(request, KIND))

    async def choose_lesson(request: gr.Request, key: str) -> Updates:
        # What the run of the lesson before had still to show must not come after this.
        await wait_for_end(jobs.replace(job_name(request, KIND)))
        return tab.show_lesson(key)

    # On the same way as what a run shows, so that it cannot overtake it.
    on_start([tab.chosen.change], choose_lesson, [tab.chosen], [tab.run, tab.stop, *tab.lesson_outputs])
    given = [tab.chosen, tab.text.prediction]
    changed = [tab.run, tab.stop, tab.text.notice, *tab.run_outputs]
    on_start([tab.run.click], run, given, changed)
    on_start([tab.live.click], run_lesson_live, given, changed)
    on_start([tab.room.started.change], run_with_class, [*given, tab.room.started], changed)
    on_event([tab.stop.click], stop)


def lesson_of_link(value: str) -> str | None:
    """Return the key of the lesson that a link names, by number or key; None for anything else."""
    number = value.split("-")[0].lstrip("0")
    return next((lesson.key for lesson in LESSONS if number == str(lesson.number)), None)


def _introduction(lesson: Lesson) -> str:
    return f"## {lesson.number}. {lesson.title}\n\n{lesson.introduction}"


def _question(lesson: Lesson) -> str:
    return f"### Think about it\n\n{lesson.question}"


def _sources(lesson: Lesson) -> str:
    return f"### Sources\n\n{lesson.sources}\n\n### Try next\n\n{lesson.next}"


def _notice(lesson: Lesson, metrics: Mapping[str, float | str], guess: str | None) -> str:
    """Return what to notice in these results, after what was predicted."""
    measured = lesson.measured_option(metrics)
    predicted = ""
    if guess in lesson.prediction[1]:
        verdict = "This run does not decide it."
        if measured is not None:
            verdict = "This run: correct." if guess == measured else f"This run: {_lower(measured)}."
        predicted = f"You predicted: *{_lower(guess)}.* {verdict}\n\n"
    unexpected = [claim for claim in lesson.claims if not claim.holds(metrics)]
    warning = ""
    if unexpected:
        metric = unexpected[0].metric
        log.warning("lesson %s: %s is %s", lesson.key, metric, metrics[metric])
        warning = (
            "\n\n**These results are not what this lesson expects.** Another model may behave differently."
        )
    return f"### What to notice\n\n{predicted}{lesson.notice(format_metrics(metrics))}{warning}"


def _lower(option: str) -> str:
    return f"{option[:1].lower()}{option[1:]}"


def _draw(result: LessonResult, recorded: date | None = None) -> str:
    """Return the models of a lesson and its chart; for a lesson without models, the picture of the base."""
    made = "" if recorded is None else render.message(f"Recorded on {format_date(recorded)}.")
    return made + _draw_live(result)


def _draw_live(result: LessonResult) -> str:
    if not result.models:
        return model_map.draw_model(
            result.base, None, model_map.weights_origin(result.source), prefix="lesson"
        )
    chart = ""
    match result.chart:
        case ImportanceMap() as scores:
            chart = draw_importance(scores)
        case LayerInfluences(values):
            chart = charts.influence_chart(values)
    return _draw_models(result.models) + _draw_last(result) + chart


def _draw_last(result: LessonResult) -> str:
    """Return the picture of the last model of a lesson, if it was made of the default model."""
    recipe = result.recipe
    if recipe is None or recipe.base != catalog.DEFAULT_MODEL:
        return ""
    heading = f'<h3 class="picture-heading">{escape(result.models[-1].title)}</h3>'
    return heading + draw_recipe(result.base, recipe)


def _draw_models(models: Sequence[LessonModel]) -> str:
    rows = [results.LessonRow(model.title, model.report, model.is_pruned, model.text) for model in models]
    return results.lesson_table(rows, PROMPT, GENRES)
