"""Take it with you: download, push to the Hub, the recipe, its link, and the Python that does the same."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from page.html import render
from page.server.session import ON_SPACE, jobs, started, told, visitor_of, workbench
from page.workers.workbench import Visitor
from pruning import Pruned, Recipe
from pruning.errors import RecipeError
from pruning.progress import Progress
from pruning.sharing.gguf import GGUF_TYPES, export, gguf_types
from pruning.sharing.publish import publish

ZIP = "zip"
FORMS = [
    ("A zip file for transformers", ZIP),
    *((f"GGUF, {kind.title}", name) for name, kind in GGUF_TYPES.items()),
]

UPLOAD_SECONDS = 3600


@dataclass(frozen=True)
class Take:
    """The parts of the section that other sections fill."""

    section: gr.Column
    recipe_code: gr.Code
    python_code: gr.Code
    link: gr.Textbox
    stale: tuple[gr.HTML, ...]


def build(made: gr.State) -> Take:
    """Lay the section out. `made`: the recipe of the results that are shown."""
    with gr.Column(visible=False, elem_id="take") as section:
        gr.HTML("<h2>Take it with you</h2>")
        with gr.Tabs():
            with gr.Tab("Download"):
                form = gr.Radio(
                    FORMS,
                    value=ZIP,
                    label="As",
                    info="GGUF runs in llama.cpp and its kin; the zip file holds a model card too",
                    elem_id="form",
                )
                prepare_button = gr.Button("Prepare the download", elem_id="prepare")
                prepared = gr.DownloadButton("Download", visible=False, variant="primary", elem_id="download")
                prepare_status = gr.HTML(elem_id="prepare-status", min_height=44)
            with gr.Tab("Push to the Hub"):
                if ON_SPACE:
                    gr.LoginButton(size="md")
                else:
                    gr.HTML(
                        '<p class="note">Uses the account that this machine is signed in with '
                        "(<code>hf auth login</code>).</p>"
                    )
                with gr.Row():
                    repository = gr.Textbox(
                        label="Name of the repository",
                        placeholder="my-small-model, or owner/my-small-model",
                        max_length=120,
                        elem_id="repository",
                    )
                    private = gr.Checkbox(
                        value=True, label="Private", info="Only you can see it", min_width=120
                    )
                push_button = gr.Button("Push", elem_id="push")
                push_status = gr.HTML(elem_id="push-status", min_height=44)
            with gr.Tab("Recipe"):
                recipe_code = gr.Code(language="yaml", label="Recipe", interactive=False, elem_id="recipe")
                link = gr.Textbox(
                    label="Link",
                    info="Opens this page with the same recipe",
                    interactive=False,
                    buttons=["copy"],
                    elem_id="link",
                )
            with gr.Tab("Python"):
                python_code = gr.Code(language="python", label="The same in Python", interactive=False)
    queued = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    prepare_button.click(prepare, [made, form], [prepared, prepare_button, prepare_status], **queued)
    push_button.click(push, [made, repository, private], push_status, **queued)
    # Another model or form makes what was prepared stale.
    gr.on(
        [made.change, form.input],
        lambda: (gr.DownloadButton(visible=False), gr.Button(visible=True)),
        None,
        [prepared, prepare_button],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return Take(section, recipe_code, python_code, link, (prepare_status, push_status))


def prepare(
    recipe: Recipe | None, form: str, request: gr.Request, token: gr.OAuthToken | None
) -> Iterator[tuple]:
    """Save the model and offer it as one file."""
    started_as, job = started(request, "download")
    try:
        with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
            name = _name(recipe)
            visitor = visitor_of(request, token)

            def work(tell):
                measured = _measured(recipe, visitor, tell)
                return _packed(measured, Path(folder) / name, form, tell)

            for event in job.watch(work):
                if isinstance(event, Progress):
                    yield gr.skip(), gr.skip(), render.status(event.text, event.done, event.total, "busy")
            (file,) = event
            yield (
                gr.DownloadButton(label=f"Download {Path(file).name}", value=file, visible=True),
                gr.Button(visible=False),
                render.status("Ready: press Download.", kind="done"),
            )
    except Exception as error:
        yield gr.skip(), gr.skip(), render.status(told(error), kind="failed")
    finally:
        jobs.finish(started_as, job)


def _packed(pruned: Pruned, folder: Path, form: str, tell) -> str:
    """The model as one file, in the form that was chosen."""
    if form not in (ZIP, *GGUF_TYPES):
        raise RecipeError(f"There is no form {str(form)[:40]!r}. Choose one of the list.")
    if form in GGUF_TYPES and (obstacle := gguf_types(pruned.shape, pruned.recipe.steps)[form]):
        raise RecipeError(f"{obstacle} Choose a width that is a multiple, under how to choose what goes.")
    pruned.save(folder, progress=tell)
    if form == ZIP:
        tell(Progress("Packing"))
        return shutil.make_archive(str(folder), "zip", folder.parent, folder.name)
    return str(export(folder, folder.with_name(f"{folder.name}-{form}.gguf"), form, tell))


def push(
    recipe: Recipe | None,
    name: str,
    private: bool,
    request: gr.Request,
    token: gr.OAuthToken | None,
) -> Iterator[str]:
    """Publish the model under the visitor's name."""
    if ON_SPACE and token is None:
        yield render.message("Sign in first, with the button above.", "warning")
        return
    # It goes on when the visitor's machine falls asleep meanwhile.
    started_as, job = started(request, "push", seconds=UPLOAD_SECONDS, lasting=True)
    try:
        if not isinstance(name, str) or not name.strip():
            raise RecipeError("Give the repository a name.")
        visitor = visitor_of(request, token)

        def work(tell):
            pruned = _measured(recipe, visitor, tell)
            job.finish()  # Others may work on models while this is uploaded.
            return publish(pruned, name.strip(), private=bool(private), token=visitor.token, progress=tell)

        for event in job.watch(work):
            if isinstance(event, Progress):
                yield render.status(event.text, event.done, event.total, "busy")
        yield render.message("Published:", "done", link=event[0])
    except Exception as error:
        yield render.message(told(error), "warning")
    finally:
        jobs.finish(started_as, job)


def _measured(recipe: Recipe | None, visitor: Visitor, tell):
    if recipe is None:
        raise RecipeError("There is nothing to take yet: press Prune first.")
    *_, measured = workbench.measuring(recipe, visitor, tell)
    return measured


def _name(recipe: Recipe | None) -> str:
    if recipe is None:
        raise RecipeError("There is nothing to take yet: press Prune first.")
    base = recipe.base.split("/")[-1]
    return f"{base}-pruned-{recipe.digest[:6]}"
