"""The look of the page: one accent color, grays, and system fonts. Nothing is fetched from another host."""

from pathlib import Path

import gradio as gr

# In the head, because Gradio's `css` would prefix every rule, including those for phones.
HEAD = (
    f"<style>{(Path(__file__).parent / 'style.css').read_text(encoding='utf-8')}</style>"
    # `?lesson=5&only` shows a lesson without the rest of the page.
    "<script>document.documentElement.classList.toggle("
    "'only-lesson', new URLSearchParams(location.search).has('only'))</script>"
)

THEME = gr.themes.Base(
    primary_hue=gr.themes.Color(
        name="leaf",
        c50="#f1f8f1",
        c100="#dcefdc",
        c200="#b9dfba",
        c300="#8cc98e",
        c400="#5fae63",
        c500="#3c9142",
        c600="#2c7532",
        c700="#245e29",
        c800="#1f4b23",
        c900="#193e1d",
        c950="#0b220e",
    ),
    neutral_hue="zinc",
    radius_size="sm",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    block_title_text_color="*neutral_800",
    block_title_text_color_dark="*neutral_100",
    slider_color="*primary_600",
    slider_color_dark="*primary_400",
)
