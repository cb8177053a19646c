"""A visitor's whole way through the page, in a real browser, on the real model."""

import json
import re
import zipfile

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pruning import Heads, Layers, Neurons, Recipe
from pruning.architectures.shape import Shape
from tests.helpers.accessibility import problems
from tests.helpers.browser import WORK, unfold

pytestmark = [pytest.mark.browser, pytest.mark.real]

FIRST = ["model", "neurons-fraction", "prompt", "examples", "prune"]
NOTE_SHIFTS = """shifted = 0;
new PerformanceObserver((list) => list.getEntries().forEach((entry) => { shifted += entry.value; }))
    .observe({type: "layout-shift", buffered: true});"""

QUESTION, TEXT = "What is the capital of France?", "Paris is the capital of"
ORIGINAL, AT_30_PERCENT = 134_515_008, 111_290_688


IMPROVED = """() => {
    const line = document.querySelector("#distill-status").innerText;
    const found = line.match(/perplexity ([0-9.]+) → ([0-9.]+)/);
    return found && Number(found[2]) < Number(found[1]);
}"""
"""Whether the status line of a distillation shows a lower perplexity than at its start."""

SOME_LAYERS = """() => {
    const left = document.querySelector("#distill-status").innerText.match(/Refitting layers: ([0-9.]+) minutes/);
    return left && Number(left[1]) <= 9.7;
}"""
"""Whether the status line of a training of ten minutes tells that it has refitted a few layers."""


TWO_COLORS = """() => new Set([...document.querySelectorAll("#trials .plane .mark")]
    .map((mark) => getComputedStyle(mark).backgroundColor)).size >= 2"""
"""Whether the marks of the search's chart show a second series."""


def set_slider(page, name, value):
    box = page.locator(f"#{name} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def set_percent(page, value):
    set_slider(page, "neurons-fraction", value)


def calibrate_on_little(page, tokens=256):
    """Calibrate on little text, so that the test is quick."""
    unfold(page, "how-to-choose")
    page.fill("#tokens input", str(tokens))
    page.press("#tokens input", "Tab")


def wait_for_count(page, parameters):
    page.wait_for_function(f"document.querySelector('#parameters-after').dataset.count == {parameters}")


@pytest.fixture(scope="module")
def parameters_after(smollm2):
    """`parameters_after(*steps)` counts what steps leave of the base. Found by its name, with the test's own empty
    cache, the base would be converted again for each test."""
    shape = Shape.of(smollm2.model.config)

    def parameters(*steps):
        return Recipe(base="smollm2-135m", steps=steps).check(shape).parameters

    return parameters


def count(page, which="after"):
    return int(page.get_attribute(f"#parameters-{which}", "data-count"))


def prune(page, percent):
    """Press Prune, wait for the end, and return the status line."""
    set_percent(page, percent)
    page.click("#prune")
    wait_for_results(page, f"{percent}% of the MLP neurons removed")
    page.wait_for_selector("#status .done, #status .failed", timeout=WORK)
    return page.inner_text("#status")


def wait_for_results(page, heading):
    """Wait until the results are those of a recipe and of the settings of the moment."""
    page.wait_for_selector(f"#result-heading:has-text('{heading}')", timeout=WORK)
    page.wait_for_selector("body:not([data-changed])", state="attached")


def test_prune_read_download_and_push(visit, served_hub, tmp_path):
    page = visit()
    assert count(page, "before") == ORIGINAL
    set_percent(page, 30)
    wait_for_count(page, AT_30_PERCENT)
    page.wait_for_selector("#cut-note:has-text('448 of the 1,536')")

    assert prune(page, 30).startswith("Done")
    assert count(page) == AT_30_PERCENT
    before, after = page.inner_text("#text-before"), page.inner_text("#text-after")
    assert before == f"{QUESTION}\nThe capital of France is Paris."
    assert after.startswith(QUESTION)
    assert len(after) > len(QUESTION) + 20
    table = page.inner_text("#measures")
    assert f"{AT_30_PERCENT:,}" in table
    assert "−17.3" in table
    assert "…" not in table
    assert page.locator("#genres .plot i").count() == 10

    page.click("#prepare")
    page.wait_for_selector("#download:visible", timeout=WORK)
    with page.expect_download() as event:
        page.click("#download")
    with zipfile.ZipFile(event.value.path()) as packed:
        packed.extractall(tmp_path)
    (folder,) = tmp_path.glob("smollm2-135m-pruned-*")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == AT_30_PERCENT
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    with torch.inference_mode():
        generated = model.generate(ids, max_new_tokens=40, do_sample=False)
    answer = tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
    assert f"{QUESTION}\n{answer}" == after

    page.get_by_role("tab", name="Push to the Hub").click()
    page.fill("#repository input, #repository textarea", "smaller")
    page.click("#push")
    page.wait_for_selector("#push-status .done", timeout=WORK)
    assert f"{served_hub.url}/ada/smaller" in page.inner_text("#push-status")
    repository = served_hub.repos["ada/smaller"]
    assert repository.private
    assert json.loads(repository.files["config.json"])["intermediate_size"] == 1088


def test_the_first_answer_is_right_and_a_text_can_be_continued_instead(visit):
    page = visit()
    assert page.input_value("#prompt textarea") == QUESTION
    assert page.inner_text("#text-before").startswith(f"{QUESTION}\nThe capital of France is Paris")

    page.click("#mode label:has-text('Continue')")
    page.wait_for_function(f"document.querySelector('#prompt textarea').value == '{TEXT}'")
    page.wait_for_selector("body[data-changed]")
    page.click("#prune")
    page.wait_for_selector(f"#text-before:has-text('{TEXT}')", timeout=WORK)
    page.wait_for_selector("body:not([data-changed])", state="attached")
    assert page.inner_text("#text-before").startswith(TEXT)
    page.get_by_role("tab", name="Recipe").click()
    other = visit(address=page.input_value("#link input, #link textarea"))
    other.wait_for_function(f"document.querySelector('#prompt textarea').value == '{TEXT}'")
    assert other.is_checked("#mode label:has-text('Continue') input")

    page.fill("#prompt textarea", "Once upon a time")
    page.click("#mode label:has-text('Chat')")
    page.wait_for_selector("#prompt:has-text('Both models answer it')")
    assert page.input_value("#prompt textarea") == "Once upon a time"


def test_every_part_can_be_cut_and_a_link_opens_the_same(visit, parameters_after):
    page = visit()
    calibrate_on_little(page)
    set_percent(page, 25)
    unfold(page, "other-parts")
    set_slider(page, "heads-groups", 1)
    page.wait_for_selector("#heads-criterion:visible")
    set_slider(page, "layers-count", 2)
    expected = parameters_after(Neurons(fraction=0.25), Heads(groups=1), Layers(count=2))
    wait_for_count(page, expected)
    page.click("#prune")
    wait_for_results(page, "1 key/value group")
    assert count(page) == expected
    page.get_by_role("tab", name="Recipe").click()
    address = page.input_value("#link input, #link textarea")

    other = visit(address=address)
    wait_for_count(other, expected)
    assert other.input_value("#neurons-fraction input[type=number]") == "25"
    unfold(other, "other-parts")
    assert other.input_value("#layers-count input[type=number]") == "2"


def test_a_recipe_that_holds_more_than_the_controls_is_followed(visit, parameters_after):
    page = visit()
    unfold(page, "from-recipe")
    page.fill(
        "#recipe-text textarea",
        "base: smollm2-135m\ncalibration: {tokens: 256}\nsteps: [{step: layers, layers: [4, 5]}]\n",
    )
    page.click("#use-recipe")
    page.wait_for_selector("#opened-recipe:has-text('layers 4, 5')")
    wait_for_count(page, parameters_after(Layers(layers=(4, 5))))
    page.click("#prune")
    wait_for_results(page, "Layers 4, 5 removed")
    assert page.is_visible("#export")
    assert count(page) == parameters_after(Layers(layers=(4, 5)))
    page.click("#stop")
    page.wait_for_selector("#status .stopped")
    page.fill("#recipe-text textarea", "base: smollm2-135m\nsteps:\n- step: layers\n  lairs: 2\n")
    page.click("#use-recipe")
    page.wait_for_selector("#status .failed:has-text('Line 4')")


def test_a_damaged_link_says_so(visit, page_url):
    page = visit(address=f"{page_url}/?recipe=%3Cscript%3E")
    page.wait_for_selector("#status .failed:has-text('damaged')")


def test_a_search_shows_its_trials_and_can_be_stopped(visit):
    """That it finds a combination within the budget is tested by the last lesson."""
    page = visit()
    calibrate_on_little(page)
    unfold(page, "target")
    page.fill("#budget input, #budget textarea", "12%")
    page.click("#search")
    page.wait_for_function("document.querySelector('#points')?.innerText.includes('layers')", timeout=WORK)
    page.wait_for_function(TWO_COLORS, timeout=WORK)
    page.click("#stop")
    page.wait_for_selector("#status .stopped")
    page.wait_for_selector("#prune:visible")
    page.fill("#budget input, #budget textarea", "a little")
    page.click("#search")
    page.wait_for_selector("#status .failed:has-text('Write 100M')")


def test_inspect_and_distill(visit):
    page = visit()
    assert prune(page, 30).startswith("Done")
    page.click("#next")
    page.wait_for_selector("#next-words tbody tr", timeout=WORK)
    assert page.locator("#next-words tbody tr").count() == 20
    page.get_by_role("tab", name="Word by word").click()
    page.fill("#loss-text textarea", "The <b>cat</b> sat on the mat.")
    page.click("#losses")
    page.wait_for_selector("#loss-words article", timeout=WORK)
    assert page.locator("#loss-words b").count() == 0
    assert "The <b>cat</b> sat on the mat." in page.inner_text("#loss-words article p >> nth=0")
    page.get_by_role("tab", name="Importance").click()
    page.click("#importance")
    page.wait_for_selector("#importance-map tbody tr", timeout=WORK)
    assert page.locator("#importance-map tbody tr").count() == 30


def test_axe_finds_nothing_wrong_on_the_prune_tab(visit):
    page = visit()
    wait_for_results(page, "20% of the MLP neurons removed")
    assert problems(page) == []
    folded = page.locator("button.label-wrap:not(.open):visible")
    for _ in range(folded.count()):
        folded.first.click()
    tabs = page.locator("#inspect button[role=tab]:visible").all()
    assert len(tabs) > 3
    for tab in tabs:
        tab.click()
        page.wait_for_timeout(300)  # The tab fades in.
        assert problems(page) == []


def test_distill_stops_with_the_best_and_continues_as_the_visitor_asks(visit, smollm2):
    """Stopping the training during its refit keeps the layers refitted so far. The results before it are recorded."""
    page = visit()
    assert prune(page, 90).startswith("Done")
    unfold(page, "generation")
    set_slider(page, "length", 5)
    set_slider(page, "minutes", 10)
    page.click("#distill-start")
    page.wait_for_function(SOME_LAYERS, timeout=WORK)
    assert page.is_visible("#distill-curve")
    page.click("#distill-stop")
    page.wait_for_selector(
        "#distill-status .done, #distill-status .stopped, #distill-status .failed", timeout=WORK
    )
    assert re.match(r"Refitted on [\d,]+ tokens in", page.inner_text("#distill-status"))
    assert page.evaluate(IMPROVED)
    wait_for_results(page, "distillation")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Measuring')", timeout=WORK)
    assert page.inner_text("#text-undistilled").startswith(QUESTION)
    text = page.inner_text("#text-after")
    assert text.startswith(QUESTION)
    assert len(smollm2.tokenizer(text).input_ids) <= len(smollm2.tokenizer(QUESTION).input_ids) + 6


def test_results_are_there_on_arrival_and_follow_the_slider(visit):
    page = visit()
    wait_for_results(page, "20% of the MLP neurons removed")
    assert "Recorded on" in page.inner_text("#result-heading")
    assert "…" not in page.inner_text("#measures")
    page.wait_for_selector("#export:visible")
    page.check("#form input[value=f16]")
    page.focus("#neurons-fraction input[type=range]")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    wait_for_results(page, "30% of the MLP neurons removed")
    page.evaluate(
        """() => {
            const slider = document.querySelector("#neurons-fraction input[type=range]");
            Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(slider, 90);
            slider.dispatchEvent(new Event("input", {bubbles: true}));
            slider.dispatchEvent(new PointerEvent("pointerup", {bubbles: true}));
        }"""
    )
    wait_for_results(page, "90% of the MLP neurons removed")
    page.fill("#prompt textarea", "Who are you?")
    page.wait_for_selector(".changed:visible")
    page.fill("#prompt textarea", QUESTION)
    page.wait_for_selector(".changed", state="hidden")
    page.click("#run-live")
    page.wait_for_selector("#status .busy")
    page.wait_for_selector("#run-live", state="hidden", timeout=WORK)
    page.wait_for_selector("#status .done", timeout=WORK)
    assert page.is_checked("#form input[value=f16]")


def test_stop_leaves_the_page_usable(visit):
    page = visit()
    set_percent(page, 43)
    page.click("#prune")
    page.click("#stop")
    page.wait_for_selector("#status .stopped")
    assert "Stopped" in page.inner_text("#status")
    assert prune(page, 30).startswith("Done")


def test_pressing_prune_again_replaces_the_measuring(visit):
    page = visit()
    set_percent(page, 84)
    page.click("#prune")
    page.wait_for_selector("#status:has-text('Measuring perplexity')", timeout=WORK)
    set_percent(page, 85)
    page.click("#prune")
    wait_for_results(page, "85% of the MLP neurons removed")
    page.click("#stop")
    page.wait_for_selector("#status .stopped")
    page.click("#prune")
    page.wait_for_selector("#status .done", timeout=WORK)
    assert "85%" in page.inner_text("#result-heading")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("../../etc/passwd", "is not a model"),
        ("nobody/nothing", "shows no model"),
        ("/tmp", "is not a model"),
    ],
)
def test_bad_models_get_one_clear_message(visit, model, says):
    page = visit()
    box = page.locator("#model input")
    box.fill(model)
    box.press("Enter")
    page.wait_for_selector(f"text={says}")
    page.click("#prune")
    page.wait_for_selector("#status .failed")
    assert says in page.inner_text("#status")


def test_nothing_to_cut_says_what_to_do(visit):
    page = visit()
    set_percent(page, 0)
    page.wait_for_selector("text=Nothing is removed yet: move the slider.")
    page.click("#prune")
    page.wait_for_selector("#status .failed")
    assert "move the slider" in page.inner_text("#status")


def test_what_a_visitor_writes_is_shown_as_text(visit):
    page = visit()
    page.fill("#prompt textarea", "<img src=x onerror=alert(1)> is")
    assert prune(page, 30).startswith("Done")
    assert page.inner_text("#text-before").startswith("<img src=x onerror=alert(1)> is\n")
    assert page.locator("#texts img").count() == 0


@pytest.mark.parametrize(
    ("width", "height", "scheme"), [(390, 844, "dark"), (1366, 768, "light"), (1920, 1080, "dark")]
)
def test_fits_the_screen(visit, width, height, scheme):
    page = visit(width, height, color_scheme=scheme, script=NOTE_SHIFTS)
    # What a first result takes is in sight, in the order in which it is used, and stays where it is.
    tops = [page.locator(f"#{name}").bounding_box()["y"] for name in FIRST]
    assert tops == sorted(tops)
    last = page.locator(f"#{FIRST[-1]}").bounding_box()
    assert last["y"] + last["height"] <= height
    assert page.evaluate("shifted") <= 0.05
    page.click("#examples button >> nth=1")
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('2 + 2')")
    assert prune(page, 30).startswith("Done")
    assert page.locator("#texts").bounding_box()["y"] < height  # On a phone, the page scrolls to them.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Tabs move into a menu only if they do not fit.
    last_tab = page.locator("#inspect button[role=tab]:has-text('Prune or quantize?')")
    assert last_tab.count() == (0 if width < 720 else 1)


def test_a_layer_is_removed_by_a_press_and_by_the_keyboard_and_put_back(visit, parameters_after):
    page = visit(1366, 768)
    calibrate_on_little(page)
    assert page.is_visible("#picture .layers")
    assert page.is_hidden("#picture .bar")
    start, share = count(page), parameters_after(Neurons(fraction=0.2))
    assert start == share
    page.click('#picture [data-layer="4"]', position={"x": 5, "y": 3})
    wait_for_count(page, parameters_after(Layers(layers=(4,)), Neurons(fraction=0.2)))
    assert "1 of the 30 layers (4)" in page.inner_text("#cut-note")
    page.focus('#picture [data-layer="0"]')
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    wait_for_count(page, parameters_after(Layers(layers=(2, 4)), Neurons(fraction=0.2)))
    # The focus stays where it was, and what has it stands below the drawing.
    assert page.evaluate("document.activeElement.dataset.layer") == "2"
    page.wait_for_selector("#picture .hint:has-text('Layer 2: 3.5M parameters, 2.6% of the model')")
    page.keyboard.press(" ")
    wait_for_count(page, parameters_after(Layers(layers=(4,)), Neurons(fraction=0.2)))
    page.wait_for_selector("body[data-changed]", state="attached")
    page.click("#prune")
    wait_for_results(page, "Layers 4")
    page.get_by_role("tab", name="Recipe").click()
    page.wait_for_selector("#recipe:has-text('layers:')")
    assert "- 4" in page.inner_text("#recipe")


def test_a_phone_shows_the_bar_in_place_of_the_layers(visit):
    page = visit(390, 844)
    assert page.is_visible("#picture .bar")
    assert page.is_hidden("#picture .layers")


def test_the_page_needs_no_sign_in_and_no_other_host(browser, page_url):
    context = browser.new_context()
    page = context.new_page()
    hosts = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.goto(page_url)
    page.wait_for_selector("#parameters-after")
    context.close()
    assert hosts == {page_url.split("/")[2]}


BOXES = """(root) => ["h1", ".texts article", "table.measures"].map((selector) => {
    const {x, y, width} = document.querySelector(`${root} ${selector}`).getBoundingClientRect();
    return [x, y + scrollY, width];
})"""


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1366, 768), (1920, 1080)])
def test_results_are_there_before_gradio_has_drawn_the_page_and_stay_where_they_are(
    browser, page_url, width, height
):
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="dark")
    page = context.new_page()
    page.route("**/assets/*.js", lambda route: route.abort())
    page.goto(page_url, wait_until="commit")
    look = page.locator("#first-look")
    page.wait_for_load_state("domcontentloaded")
    for words in ("The capital of France is Paris.", "Perplexity", "Facts"):
        assert words in look.inner_text()
    assert page.evaluate("document.body.classList.contains('dark')")
    first = page.evaluate(BOXES, "#first-look")
    page.unroute("**/assets/*.js")
    page.goto(page_url)
    look.wait_for(state="detached")
    for before, after in zip(first, page.evaluate(BOXES, "gradio-app"), strict=True):
        assert before == pytest.approx(after, abs=24)
    page.goto(f"{page_url}/?lesson=5", wait_until="commit")
    assert not look.count()
    context.close()
