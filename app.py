"""The page: layout and wiring. Every number and every model comes from `pruning/`."""

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Two texts are written at once: threads that spin while they wait would starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import gradio as gr
import spaces

from page import render, results
from page.choices import LARGEST_PERCENT, MAX_OWN_TEXT, fraction_of, recipe_from, whole
from page.jobs import Job, Jobs
from page.theme import HEAD, THEME
from pruning import Neurons, PruningError, Recipe, Sampling, catalog
from pruning.anatomy import NEURON
from pruning.criteria import CRITERIA, criterion_named
from pruning.criteria import DEFAULT as DEFAULT_CRITERION
from pruning.errors import Cancelled, RecipeError
from pruning.generation import compare, encode_prompt
from pruning.loading import saved_token
from pruning.progress import Progress, quiet
from pruning.publishing import publish, save
from pruning.shape import Shape
from pruning.texts import CALIBRATION_NAMES, OWN
from pruning.workbench import Visitor, Workbench

ON_SPACE = "SPACE_ID" in os.environ
FIRST_PROMPT = "Paris is the capital of"

log = logging.getLogger("secateur")
workbench = Workbench()
jobs = Jobs()


def default_recipe() -> Recipe:
    return Recipe(base=catalog.DEFAULT, steps=[Neurons(fraction=0.2)])


def visitor_of(request: gr.Request | None, token: gr.OAuthToken | None) -> Visitor:
    """On a Space, a visitor's own token or none; elsewhere the one saved on the machine."""
    session = getattr(request, "session_hash", None) or ""
    if ON_SPACE:
        return Visitor(owner=session, token=token.token if token else False)
    return Visitor(owner=session, token=saved_token())


def told(error: Exception) -> str:
    """What a visitor is told: a `PruningError` as it is; anything else is a bug, and logged whole."""
    if isinstance(error, PruningError):
        return str(error)
    log.error("a handler failed", exc_info=error)
    return "Something broke that should not have. It has been logged; please try again."


def show_shape(
    model, percent, criterion, multiple, request: gr.Request, token: gr.OAuthToken | None
) -> tuple[str, str]:
    """The picture and the count, which move with the slider: from the config alone."""
    try:
        fraction = fraction_of(percent)
        before, source = workbench.look(model, visitor_of(request, token))
        after = before
        if fraction:
            step = Neurons(fraction=fraction, criterion=criterion, multiple_of=whole(multiple, "multiple"))
            after = step.reshape(before)
        width, layers = before.count(NEURON), before.anatomy.layers
        note = render.neurons_note(width, after.count(NEURON), layers)
        return render.picture(before, after, results.whence(source)), note
    except Exception as error:
        return gr.skip(), render.message(told(error), "warning")


def describe_criterion(name: str) -> tuple[str, gr.Checkbox]:
    """The formula of a criterion; repair goes with those that calibrate."""
    try:
        criterion = criterion_named(name)
    except Exception as error:
        return render.message(told(error), "warning"), gr.skip()
    repair = gr.Checkbox(value=criterion.statistics, interactive=not criterion.gated_only)
    return render.criterion_note(criterion), repair


def ask_for_text(name: str) -> gr.Textbox:
    return gr.Textbox(visible=name == OWN)


@spaces.GPU(duration=60)
def written(recipe: Recipe, visitor: Visitor, prompt: str, sampling: Sampling, job: Job):
    """Both texts, as they grow."""
    pruned = workbench.pruned(recipe, visitor)
    base = workbench.base(recipe.base, visitor, recipe.revision)
    yield from compare((base.model, pruned.model), pruned.tokenizer, prompt, sampling, lambda: job.stopped)


def prune(request: gr.Request, token: gr.OAuthToken | None, *values) -> Iterator[dict]:
    """Prune, write, measure: each result is shown as soon as it is there."""
    *choices, prompt, length, temperature = values
    session = request.session_hash or ""
    job = jobs.start(session)
    visitor = visitor_of(request, token)
    yield {prune_button: gr.Button(visible=False), stop_button: gr.Button(visible=True)}
    try:
        recipe = recipe_from(*choices)
        sampling = Sampling(whole(length, "length"), float(temperature), recipe.seed)
        for event in job.watch(lambda tell: workbench.pruned(recipe, visitor, tell)):
            if isinstance(event, Progress):
                yield {status: render.status(event.text, event.done, event.total, "busy")}
        (pruned,) = event
        base = workbench.base(recipe.base, visitor, recipe.revision)
        encode_prompt(pruned.tokenizer, prompt)
        yield {
            picture: render.picture(Shape.of(base.model.config), pruned.shape, results.whence(base.source)),
            measures: results.measures(pruned.report),
            genres: results.genres(pruned.report),
            status: render.status("Writing", kind="busy"),
            texts: render.texts(prompt, "", "", writing=True),
            made: recipe,
            recipe_code: pruned.recipe.to_yaml(),
            python_code: pruned.recipe.to_python(),
            take: gr.Column(visible=True),
            prepared: gr.DownloadButton(visible=False),
            prepare_button: gr.Button(visible=True),
            prepare_status: "",
            push_status: "",
        }
        before = after = ""
        for before, after in written(recipe, visitor, prompt, sampling, job):
            job.check()
            yield {texts: render.texts(prompt, before, after, writing=True)}
        yield {texts: render.texts(prompt, before, after)}
        for event in job.watch(lambda tell: _measure(recipe, visitor, tell)):
            if isinstance(event, Progress):
                yield {status: render.status(event.text, event.done, event.total, "busy")}
            elif not isinstance(event, tuple):
                yield {measures: results.measures(event.report), genres: results.genres(event.report)}
        yield {status: render.status("Done.", kind="done")}
    except Cancelled as stop:
        yield {status: render.status(str(stop), kind="stopped")}
    except Exception as error:
        yield {status: render.status(told(error), kind="failed")}
    finally:
        jobs.finish(session, job)
    yield {prune_button: gr.Button(visible=True), stop_button: gr.Button(visible=False)}


def _measure(recipe: Recipe, visitor: Visitor, tell) -> None:
    # Closed here, in the thread that took the workbench's lock, also when the job is stopped.
    with closing(workbench.measuring(recipe, visitor, tell)) as steps:
        for pruned in steps:
            tell(pruned)


def stop(request: gr.Request) -> None:
    """End the visitor's job; it says so itself, so that nothing it still had to say comes after."""
    jobs.stop(request.session_hash or "")


def prepare(recipe: Recipe | None, request: gr.Request, token: gr.OAuthToken | None) -> Iterator[dict]:
    """Save the model and offer it as one file."""
    job = jobs.start(f"{request.session_hash} download")
    folder = Path(tempfile.mkdtemp(prefix="secateur-"))
    try:
        name = _name(recipe)
        visitor = visitor_of(request, token)

        def work(tell):
            save(_measured(recipe, visitor, tell), folder / name, tell)
            tell(Progress("Packing"))
            return shutil.make_archive(str(folder / name), "zip", folder, name)

        for event in job.watch(work):
            if isinstance(event, Progress):
                yield {prepare_status: render.status(event.text, event.done, event.total, "busy")}
        yield {
            prepared: gr.DownloadButton(label=f"Download {name}.zip", value=event[0], visible=True),
            prepare_button: gr.Button(visible=False),
            prepare_status: render.status("Ready: press Download.", kind="done"),
        }
    except Exception as error:
        yield {prepare_status: render.status(told(error), kind="failed")}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    try:
        if not isinstance(name, str) or not name.strip():
            raise RecipeError("Give the repository a name.")
        visitor = visitor_of(request, token)
        job = jobs.start(f"{request.session_hash} push")

        def work(tell):
            pruned = _measured(recipe, visitor, tell)
            return publish(pruned, name.strip(), private=bool(private), token=visitor.token, progress=tell)

        for event in job.watch(work):
            if isinstance(event, Progress):
                yield render.status(event.text, event.done, event.total, "busy")
        yield render.message("Published:", "done", link=event[0])
    except Exception as error:
        yield render.message(told(error), "warning")


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


def first_look(request: gr.Request, token: gr.OAuthToken | None) -> Iterator[tuple[str, str, str]]:
    """What a visitor finds: the default model, or what it is still waiting for."""
    note = ""
    while not ready.wait(timeout=0.5):
        shown = preparing[-1] if preparing else Progress("Loading the model")
        note = render.status(shown.text, shown.done, shown.total, "busy")
        if shape_known.is_set():
            break
        yield gr.skip(), gr.skip(), note
    drawn, count = show_shape(catalog.DEFAULT, 20, DEFAULT_CRITERION, 1, request, token)
    yield drawn, count, render.status("Ready. Move the slider, then press Prune.")


ready, shape_known = threading.Event(), threading.Event()
preparing: list[Progress] = []


def warm_up() -> None:
    """Load, calibrate and measure the default model, so that the first visitor need not wait."""

    def report(progress: Progress) -> None:
        preparing[:] = [progress]

    try:
        visitor = visitor_of(None, None)
        workbench.base(catalog.DEFAULT, visitor, progress=report)
        shape_known.set()
        workbench.prepare(default_recipe(), visitor, report)
    except PruningError as error:
        log.warning("the default model is not ready: %s", error)
    except Exception:
        log.exception("warming up failed")
    finally:
        shape_known.set()
        ready.set()


def model_choices() -> list[tuple[str, str]]:
    return [
        (
            f"{entry.title}, {render.count(entry.parameters)}{', gated' if entry.gated else ''}",
            entry.name,
        )
        for entry in catalog.MODELS.values()
    ]


with gr.Blocks(title="Secateur", analytics_enabled=False, delete_cache=(3600, 7200)) as demo:
    made = gr.State(None)
    gr.HTML(
        '<header class="head"><h1>Secateur</h1><p>Cut neurons out of a real language model, and read '
        "what it still says.</p></header>"
    )
    with gr.Row(elem_classes="desk"):
        with gr.Column(scale=4, min_width=320, elem_classes="choices"):
            model = gr.Dropdown(
                model_choices(),
                value=catalog.DEFAULT,
                label="Model",
                info="Or the id of any model on the Hub, such as owner/name",
                allow_custom_value=True,
                elem_id="model",
            )
            percent = gr.Slider(
                0,
                LARGEST_PERCENT,
                value=20,
                step=1,
                label="MLP neurons to cut, %",
                info="The same share of the intermediate size in every layer",
                elem_id="percent",
            )
            neurons_note = gr.HTML(elem_id="neurons-note", min_height=24)
            with gr.Accordion("How to choose what goes", open=False):
                criterion = gr.Dropdown(
                    [(entry.title, name) for name, entry in CRITERIA.items()],
                    value=DEFAULT_CRITERION,
                    label="Importance of a neuron",
                    info="The criterion: those with the lowest score are cut",
                    elem_id="criterion",
                )
                criterion_text = gr.HTML(render.criterion_note(CRITERIA[DEFAULT_CRITERION]))
                text = gr.Dropdown(
                    [(title, name) for name, title in CALIBRATION_NAMES.items()],
                    value="general",
                    label="Calibration text",
                    info="What the model reads to show which neurons it uses: choose what you use it for",
                    elem_id="calibration",
                )
                own_text = gr.Textbox(
                    label="Your text",
                    lines=6,
                    max_lines=12,
                    visible=False,
                    max_length=MAX_OWN_TEXT,
                    placeholder="At least about 250 words. It is not kept after your visit.",
                )
                repair = gr.Checkbox(
                    value=True,
                    label="Repair what remains",
                    info="Refits each layer's output projection to the neurons kept, by least squares",
                    elem_id="repair",
                )
                with gr.Row():
                    multiple = gr.Dropdown(
                        [("any width", 1), ("8", 8), ("32", 32), ("64", 64), ("128", 128)],
                        value=1,
                        label="Width a multiple of",
                        info="Multiples run faster on many machines",
                        min_width=140,
                    )
                    tokens = gr.Number(
                        8192, label="Calibration tokens", precision=0, minimum=256, min_width=140
                    )
            prompt = gr.Textbox(
                FIRST_PROMPT, label="Prompt", info="The model continues it", lines=2, elem_id="prompt"
            )
            with gr.Accordion("How to write", open=False):
                length = gr.Slider(5, 200, value=40, step=1, label="New tokens")
                temperature = gr.Slider(
                    0,
                    1.5,
                    value=0,
                    step=0.1,
                    label="Temperature",
                    info="0 takes the likeliest token each time; more is more varied",
                )
                seed = gr.Number(0, label="Seed", precision=0, info="Both texts are drawn from it")
            prune_button = gr.Button("Prune", variant="primary", elem_id="prune")
            stop_button = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
            status = gr.HTML(render.status(), elem_id="status", min_height=44)
        with gr.Column(scale=7, min_width=320, elem_classes="results"):
            picture = gr.HTML(elem_id="picture", min_height=230)
            texts = gr.HTML(render.empty_texts(), elem_id="texts", min_height=180)
            measures = gr.HTML(elem_id="measures", min_height=150)
            genres = gr.HTML(elem_id="genres", min_height=190)
            with gr.Column(visible=False, elem_id="take") as take:
                gr.HTML("<h2>Take it with you</h2>")
                with gr.Tabs():
                    with gr.Tab("Download"):
                        gr.HTML(
                            '<p class="note">One zip file that plain transformers loads, with a model card '
                            "that says what was lost.</p>"
                        )
                        prepare_button = gr.Button("Prepare the download", elem_id="prepare")
                        prepared = gr.DownloadButton(
                            "Download", visible=False, variant="primary", elem_id="download"
                        )
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
                        recipe_code = gr.Code(
                            language="yaml", label="Recipe", interactive=False, elem_id="recipe"
                        )
                    with gr.Tab("Python"):
                        python_code = gr.Code(
                            language="python", label="The same in Python", interactive=False
                        )

    shape_inputs = [model, percent, criterion, multiple]
    gr.on(
        [model.change, percent.change, criterion.change, multiple.change],
        show_shape,
        shape_inputs,
        [picture, neurons_note],
        queue=False,
        show_progress="hidden",
        trigger_mode="always_last",
        api_name="preview",
    )
    criterion.change(
        describe_criterion, criterion, [criterion_text, repair], queue=False, show_progress="hidden"
    )
    text.change(ask_for_text, text, own_text, queue=False, show_progress="hidden")
    shown = [
        status,
        picture,
        texts,
        measures,
        genres,
        made,
        recipe_code,
        python_code,
        take,
        prepared,
        prepare_button,
        prepare_status,
        push_status,
        prune_button,
        stop_button,
    ]
    gr.on(
        [prune_button.click, prompt.submit],
        prune,
        [
            model,
            percent,
            criterion,
            repair,
            multiple,
            text,
            own_text,
            tokens,
            seed,
            prompt,
            length,
            temperature,
        ],
        shown,
        show_progress="minimal",
        show_progress_on=[status],
        concurrency_id="model",
        concurrency_limit=1,
        api_name="prune",
    )
    stop_button.click(stop, None, None, queue=False, show_progress="hidden")
    prepare_button.click(
        prepare,
        made,
        [prepared, prepare_button, prepare_status],
        show_progress="hidden",
        concurrency_id="model",
        concurrency_limit=1,
    )
    push_button.click(
        push,
        [made, repository, private],
        push_status,
        show_progress="hidden",
        concurrency_id="model",
        concurrency_limit=1,
        api_name="push",
    )
    demo.load(first_look, None, [picture, neurons_note, status], show_progress="hidden")
    demo.unload(stop)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for noisy in ("httpx", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    quiet()
    threading.Thread(target=warm_up, daemon=True).start()
    demo.queue(max_size=32).launch(
        theme=THEME,
        head=HEAD,
        server_name=None if ON_SPACE else "127.0.0.1",
        server_port=int(os.environ.get("PORT", 7860)) if not ON_SPACE else None,
        ssr_mode=False,
        footer_links=[],
        show_error=True,
    )


if __name__ == "__main__":
    main()
