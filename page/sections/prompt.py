"""The prompt: a question or a text to continue, examples of it, and how both models write."""

from dataclasses import dataclass

import gradio as gr

from page.sections.events import Part, on_event
from page.server.form import CHAT, CONTINUE, EXAMPLE_PROMPTS, FIRST_PROMPTS
from pruning import catalog

FIRST_LENGTH = 40

MODES: list[tuple[str, str | int | float]] = [("Chat", CHAT), ("Continue", CONTINUE)]
PROMPT_LABELS = {
    CHAT: ("Question", "Both models answer it"),
    CONTINUE: ("Text to continue", "Both models continue it"),
}
BASE_MODEL = "This is a base model: it was not trained to answer questions, so it continues a text."


@dataclass(frozen=True)
class PromptPart:
    """The prompt, its mode and examples of it, above Prune.

    Attributes:
        mode: Whether both models answer a question in their chat format, or continue a text; and why they do, if
            that is not what the visitor chose.
        prompt: The question or the text.
        examples: Prompts to choose from.
    """

    mode: gr.Radio
    prompt: gr.Textbox
    examples: gr.Dataset

    @property
    def mode_outputs(self) -> list[Part]:
        """What `show_mode` sets."""
        return [self.mode, self.prompt, self.examples]

    def show_mode(self, mode: str, note: str = "", prompt: object = None) -> dict[Part, object]:
        """Return the mode, a note on it, and the prompt: the mode's first, unless the visitor wrote one.

        Args:
            mode: The mode.
            note: Why it is not another one, if that needs to be said.
            prompt: What stands in the box; None to leave it.
        """
        label, info = PROMPT_LABELS[mode]
        box = gr.Textbox(label=label, info=info)
        if prompt is not None:
            box = gr.Textbox(to_first_prompt(prompt, mode), label=label, info=info)
        samples = [[text] for text in EXAMPLE_PROMPTS[mode]]
        return {
            self.mode: gr.Radio(value=mode, info=note),
            self.prompt: box,
            self.examples: gr.Dataset(components=[self.prompt], samples=samples),
        }


@dataclass(frozen=True)
class SamplingPart(PromptPart):
    """The prompt, and what becomes of it. The seed is that of the recipe too.

    Attributes:
        length: The most tokens that both models write.
        temperature: How they are sampled.
        seed: The seed of the sampling, and of the recipe.
    """

    length: gr.Slider
    temperature: gr.Slider
    seed: gr.Number


def build_prompt() -> PromptPart:
    """Lay out what stands above Prune."""
    mode = gr.Radio(MODES, value=CHAT, label="Mode", elem_id="mode")
    label, info = PROMPT_LABELS[CHAT]
    prompt = gr.Textbox(FIRST_PROMPTS[CHAT], label=label, info=info, lines=1, max_lines=4, elem_id="prompt")
    # The column reserves the space until the browser has loaded the chips.
    with gr.Column(elem_id="chips", min_width=0):
        examples = gr.Dataset(
            components=[prompt],
            samples=[[text] for text in EXAMPLE_PROMPTS[CHAT]],
            label="Examples",
            type="index",
            elem_id="examples",
        )
    return PromptPart(mode, prompt, examples)


def build_sampling(first: PromptPart) -> SamplingPart:
    """Lay out how both models write, folded up, and return it with the prompt."""
    with gr.Accordion("Text generation settings", open=False, elem_id="generation"):
        length = gr.Slider(5, 200, value=FIRST_LENGTH, step=1, label="New tokens", elem_id="length")
        temperature = gr.Slider(
            0,
            1.5,
            value=0,
            step=0.1,
            label="Temperature",
            info="0 always picks the likeliest token; higher is more varied",
            elem_id="temperature",
        )
        seed = gr.Number(0, label="Seed", precision=0, info="Used for both texts", elem_id="seed")
    return SamplingPart(first.mode, first.prompt, first.examples, length, temperature, seed)


def wire(sampling: SamplingPart, model: gr.Dropdown) -> None:
    """Connect the prompt to its mode, its examples and the model."""

    def switch_mode(mode: str, prompt: str) -> dict[Part, object]:
        return sampling.show_mode(mode if mode in FIRST_PROMPTS else CHAT, prompt=prompt)

    def suit_mode(model: str, prompt: str) -> dict[Part, object]:
        return sampling.show_mode(*mode_for(model), prompt)

    on_event([sampling.mode.input], switch_mode, [sampling.mode, sampling.prompt], sampling.mode_outputs)
    on_event([sampling.examples.click], choose_example, [sampling.examples, sampling.mode], [sampling.prompt])
    on_event([model.input], suit_mode, [model, sampling.prompt], sampling.mode_outputs)


def choose_example(number: object, mode: object) -> object:
    """Return the selected example; an unknown number leaves the prompt as it is."""
    prompts = EXAMPLE_PROMPTS.get(mode, ()) if isinstance(mode, str) else ()
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(prompts):
        return gr.skip()
    return prompts[number]


def mode_for(model: object) -> tuple[str, str]:
    """Return the mode that suits a model, and why if it is not to chat.

    Whether a model that is not in the catalog can chat is found out when it is loaded.
    """
    entry = catalog.find(model) if isinstance(model, str) else None
    return (CHAT, "") if entry is None or entry.instruct else (CONTINUE, BASE_MODEL)


def to_first_prompt(prompt: object, mode: str) -> str:
    """Return the first prompt of a mode in place of another mode's or of none; what a visitor wrote remains."""
    if isinstance(prompt, str) and prompt.strip() and prompt not in FIRST_PROMPTS.values():
        return prompt
    return FIRST_PROMPTS[mode]
