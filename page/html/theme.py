"""The look of the page: one accent color, grays, and system fonts. Nothing is fetched from another host."""

from pathlib import Path

import gradio as gr

_FOLDER = Path(__file__).parent


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


FAVICON, PREVIEW = _FOLDER / "favicon.svg", _FOLDER / "preview.png"
# `server.front_page` puts it into the page: Gradio's `css` would prefix every rule, including those for phones,
# and its `head` comes after its scripts have run.
HEAD = f"<style>{_read('style.css')}</style><script>{_read('page.js')}</script>"

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
    # White on the sixth shade has a contrast of 5.6 : 1; on the fifth, Gradio's own choice, of 3.9 : 1.
    color_accent="*primary_600",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_700",
    button_primary_border_color="*primary_600",
    button_primary_border_color_dark="*primary_600",
    slider_color="*primary_600",
    slider_color_dark="*primary_400",
)
