"""Export: download, publish on the Hub, the recipe, its link, and the Python that does the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import gradio as gr

from page.html import render
from page.sections.events import JobPanel, Part, Updates, on_event, on_start
from page.sections.section import Page
from page.server import links
from page.server.form import with_text
from page.server.jobs import run_job
from page.server.session import SITE, job_name, publishing_token, visitor_of
from page.server.settings import Mode
from page.workers.export import UPLOAD_SECONDS, ZIP, ExportTask, PublishTask, notes_on
from page.workers.messages import Done, Partial, PrunedSummary
from page.workers.tasks import Task
from pruning import Recipe, Report
from pruning.errors import RecipeError, SavingError
from pruning.sharing.gguf import GGUF_TYPES, gguf_types

FORM_INFO = "GGUF is for llama.cpp, Ollama and LM Studio; the zip file holds a model card too."

FORMATS: list[tuple[str, str | int | float]] = [
    ("Zip file for transformers", ZIP),
    *((f"GGUF {name.upper()}", name) for name in GGUF_TYPES),
]

ACCOUNT_NOTES = {
    Mode.OWNER: "Uses the Hugging Face account signed in on this machine (<code>hf auth login</code>).",
    Mode.ROOM: "Nobody is signed in on this page. Publishing needs your own Hugging Face token, from "
    "Settings, Access Tokens on the Hub.",
}


NOT_SIGNED_IN = (
    "Nobody is signed in to Hugging Face on this machine. Run `hf auth login` in a terminal, then press Push."
)
SNIPPET = """\
from transformers import pipeline
print(pipeline("text-generation", "{name}")("Once upon a time")[0]["generated_text"])
"""
"""How to load the folder that the zip file holds."""


@dataclass(frozen=True)
class DownloadPart:
    """The model as one file.

    Attributes:
        form: The form of the file.
        chosen: The form that the visitor chose, which other models may not have.
        obstacles: For each GGUF type why the model cannot have it, as `gguf_types` returns it.
        prepare: Has the file made.
        download: Hands it over.
        status: Where the work stands.
        usage: How to load it.
    """

    form: gr.Radio
    chosen: gr.State
    obstacles: gr.State
    prepare: gr.Button
    download: gr.DownloadButton
    status: gr.HTML
    usage: gr.Code

    @property
    def outputs(self) -> list[Part]:
        """What preparing a download changes."""
        return [self.prepare, self.download, self.status]


@dataclass(frozen=True)
class PublishPart:
    """The model on the Hub."""

    repository: gr.Textbox
    private: gr.Checkbox
    token: gr.Textbox
    start: gr.Button
    status: gr.HTML

    @property
    def outputs(self) -> list[Part]:
        """What a push changes."""
        return [self.token, self.status]


@dataclass(frozen=True)
class RecipePart:
    """The recipe as text, as a link and as Python."""

    recipe: gr.Code
    link: gr.Textbox
    python: gr.Code


@dataclass(frozen=True)
class ExportSection:
    """The components of the section."""

    column: gr.Column
    download: DownloadPart
    publish: PublishPart
    recipe: RecipePart

    @property
    def result_outputs(self) -> Sequence[Part]:
        """The column, the recipe, and the two status lines, which are out of date."""
        texts = self.recipe.recipe, self.recipe.python, self.recipe.link
        download = self.download
        return [self.column, *texts, download.usage, download.obstacles, download.prepare, *self._statuses]

    @property
    def _statuses(self) -> Sequence[Part]:
        return [self.download.status, self.publish.status]

    def show_result(self, pruned: PrunedSummary, request: gr.Request) -> Updates:
        """Show the section with the recipe."""
        return {
            self.column: gr.Column(visible=True),
            self.recipe.recipe: pruned.recipe.to_yaml(),
            self.recipe.python: pruned.recipe.to_python(),
            self.recipe.link: links.link(pruned.recipe, request, pruned.prompt),
            self.download.usage: SNIPPET.format(name=_name(pruned.recipe)),
            self.download.obstacles: gguf_types(pruned.after),
            self.download.prepare: _label(pruned.report.after.bytes),
            **dict.fromkeys(self._statuses, ""),
        }

    def wire(self, page: Page) -> None:
        """Connect the download and the push."""
        result = [page.results.recipe, page.results.report, page.controls.calibration.custom_text]
        download, publish = self.download, self.publish
        done = on_start([download.prepare.click], self.prepare, [*result, download.form], download.outputs)
        done.then(None, js="() => window.secateur?.download()", api_visibility="private")
        link = self.recipe.link
        link.change(None, [link], js="(link) => window.secateur?.showResult(link)", api_visibility="private")
        inputs = [*result, publish.repository, publish.private, publish.token]
        on_start([publish.start.click], self.push, inputs, publish.outputs)
        on_event([download.form.input], lambda form: form, [download.form], [download.chosen])
        on_event(
            [download.obstacles.change], offer_forms, [download.obstacles, download.chosen], [download.form]
        )
        # With another model or format, the file that was prepared is out of date.
        on_event(
            [page.results.recipe.change, download.form.input],
            lambda: (gr.DownloadButton(visible=False), gr.Button(visible=True)),
            outputs=[download.download, download.prepare],
        )

    def prepare(
        self,
        request: gr.Request,
        token: gr.OAuthToken | None,
        recipe: Recipe | None,
        report: Report | None,
        custom_text: object,
        form: object,
    ) -> Iterator[Updates]:
        """Save the model and offer it as one file."""
        part = self.download

        def tasks() -> list[Task]:
            pruned = _check_pruned(recipe, custom_text)
            return [ExportTask(pruned, str(form), _name(pruned), report)]

        def show(event: Partial | Done) -> Updates:
            if not isinstance(event, Done):
                return {}
            file = Path(str(event.value))
            return {
                part.download: gr.DownloadButton(f"Download {file.name}", value=str(file), visible=True),
                part.prepare: gr.Button(visible=False),
                part.status: render.status(
                    "Ready. If your browser does not save it, press Download.", kind="done"
                )
                + _shown(notes_on(file)),
            }

        events = run_job(tasks, visitor_of(request, token), job_name(request, "download"))
        yield from JobPanel(part.status).follow(events, show)

    def push(
        self,
        request: gr.Request,
        token: gr.OAuthToken | None,
        recipe: Recipe | None,
        report: Report | None,
        custom_text: object,
        repository: object,
        private: object,
        typed_token: object,
    ) -> Iterator[Updates]:
        """Publish the model under the visitor's name."""
        part = self.publish
        visitor = visitor_of(request, token)

        def tasks() -> list[Task]:
            if not isinstance(repository, str) or not repository.strip():
                raise RecipeError("Enter a name for the repository.")
            pruned = _check_pruned(recipe, custom_text)
            token = publishing_token(visitor, typed_token)
            if not token:
                raise SavingError(NOT_SIGNED_IN)
            # What is left open means private.
            is_private = private is not False
            return [PublishTask(pruned, repository.strip(), is_private, token, report)]

        def show(event: Partial | Done) -> Updates:
            if not isinstance(event, Done):
                return {}
            return {part.status: render.message("Published:", "done", link=str(event.value))}

        if typed_token:
            yield {part.token: ""}  # Nothing keeps it longer than this push.
        # The upload continues if the visitor's machine falls asleep meanwhile.
        events = run_job(tasks, visitor, job_name(request, "push"), seconds=UPLOAD_SECONDS, detached=True)
        yield from JobPanel(part.status).follow(events, show)


def build() -> ExportSection:
    """Lay the section out."""
    with gr.Column(visible=False, elem_id="export") as column:
        gr.HTML("<h2>Download or publish</h2>")
        with gr.Tabs():
            with gr.Tab("Download"):
                download = _build_download()
            with gr.Tab("Push to the Hub"):
                publish = _build_publish()
            with gr.Tab("Recipe"):
                recipe = gr.Code(language="yaml", label="Recipe", interactive=False, elem_id="recipe")
                link = gr.Textbox(
                    label="Link",
                    info="Opens this page with the same recipe",
                    interactive=False,
                    buttons=["copy"],
                    elem_id="link",
                )
            with gr.Tab("Python"):
                python = gr.Code(language="python", label="The same in Python", interactive=False)
    return ExportSection(column, download, publish, RecipePart(recipe, link, python))


def _build_download() -> DownloadPart:
    form = gr.Radio(
        FORMATS,
        value=ZIP,
        label="Format",
        info=FORM_INFO,
        elem_id="form",
    )
    prepare = gr.Button("Download", variant="primary", elem_id="prepare")
    download = gr.DownloadButton("Download", visible=False, variant="primary", elem_id="download")
    status = gr.HTML(elem_id="prepare-status", min_height=44)
    chosen, obstacles = gr.State(ZIP), gr.State({})
    usage = gr.Code(
        language="python", label="To load it, once it is unpacked", interactive=False, elem_id="usage"
    )
    return DownloadPart(form, chosen, obstacles, prepare, download, status, usage)


def _build_publish() -> PublishPart:
    if SITE.mode is Mode.SPACE:
        gr.LoginButton(size="md")
    else:
        gr.HTML(f'<p class="note">{ACCOUNT_NOTES[SITE.mode]}</p>')
    with gr.Row():
        repository = gr.Textbox(
            label="Name of the repository",
            placeholder="my-small-model, or owner/my-small-model",
            max_length=120,
            elem_id="repository",
        )
        private = gr.Checkbox(value=True, label="Private", info="Only you can see it", min_width=120)
    token = gr.Textbox(
        label="Your Hub token",
        info="One that may write. It is used for this push alone, and not kept.",
        type="password",
        max_length=200,
        visible=SITE.mode is Mode.ROOM,
        elem_id="push-token",
    )
    start = gr.Button("Push", elem_id="push")
    return PublishPart(repository, private, token, start, gr.HTML(elem_id="push-status", min_height=44))


def offer_forms(obstacles: Mapping[str, str], chosen: str) -> gr.Radio:
    """Return the choice of the forms that a model can have, and why it cannot have the others.

    Args:
        obstacles: For each GGUF type why the model cannot have it; empty if it can.
        chosen: The form that stays chosen if the model can have it.
    """
    forms = [(title, form) for title, form in FORMATS if not obstacles.get(str(form))]
    notes = []
    for reason in dict.fromkeys(filter(None, obstacles.values())):
        names = [name.upper() for name, each in obstacles.items() if each == reason]
        left_out = "GGUF" if len(names) == len(obstacles) else ", ".join(names)
        notes.append(f"Not as {left_out}: {reason}")
    value = chosen if chosen in dict(forms).values() else ZIP
    return gr.Radio(forms, value=value, info=" ".join([FORM_INFO, *notes]))


def _label(size: int) -> gr.Button:
    return gr.Button(f"Download (weights: {size / 1e6:,.0f} MB)")


def _check_pruned(recipe: Recipe | None, custom_text: object) -> Recipe:
    if recipe is None:
        raise RecipeError("There is nothing to export yet: press Prune first.")
    return with_text(recipe, custom_text)


def _shown(notes: Sequence[str]) -> str:
    """Return what a visitor should know of a file, as lines."""
    return "".join(f'<p class="note">{escape(line)}</p>' for line in notes)


def _name(recipe: Recipe) -> str:
    """Return the name of the file, without its extension."""
    return f"{recipe.base.split('/')[-1]}-pruned-{recipe.digest[:6]}"
