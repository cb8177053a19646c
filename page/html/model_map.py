"""The model map: a model's layers as a drawing, and on a phone its parameters as a bar by component.

The style sheet shows one of them. The counts, the legend and the table belong to both.
"""

from collections.abc import Collection, Sequence
from html import escape

from page.html.layer_map import DrawnLayer, draw_layers, layer_table, layers_of
from page.html.render import format_change, format_count
from pruning.architectures.families import CHANNEL, KEY_VALUE, LAYER, NEURON, QUERY, TOKEN
from pruning.architectures.shape import Shape
from pruning.loading.source import Source
from pruning.steps import Weights
from pruning.steps.base import Step

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

SPARSE_COMPONENTS = {"attention", "mlp"}
"""The components in which the step `weights` sets single weights to zero."""

UNIT_TITLES = {
    NEURON: "MLP neurons in each layer",
    KEY_VALUE: "key/value groups in each layer",
    QUERY: "attention heads in each layer",
    LAYER: "layers",
    CHANNEL: "channels of the residual stream",
    TOKEN: "tokens of the vocabulary",
}


def draw_model(
    original: Shape,
    pruned: Shape | None,
    origin: str = "",
    zeros: float = 0.0,
    removed: Collection[int] | None = None,
    pressable: bool = False,
    prefix: str = "parameters",
) -> str:
    """Draw the model map.

    Args:
        original: The shape of the original model.
        pruned: The shape that the cuts lead to; equal to `original` if nothing is cut. None to draw the original alone.
        origin: Where the weights come from (see `weights_origin`).
        zeros: The share of the weights of attention and MLP that are set to zero.
        removed: The numbers of the removed layers; None if none are, or if they are chosen during the pruning.
        pressable: Whether a press on a layer removes it.
        prefix: What the ids of the counts begin with.

    Returns:
        The drawing, the bar, their legend, both parameter counts, and the same as tables for screen readers.
    """
    alone, pruned = pruned is None, pruned or original
    sizes = {name: size for name, size in original.components.items() if size}
    kept = pruned.components
    total, total_kept = sum(sizes.values()), sum(kept.values())
    parts = "".join(
        _part(name, size, kept[name], total, zeros if name in SPARSE_COMPONENTS else 0)
        for name, size in sizes.items()
    )
    legend = "".join(_legend_entry(name, size, kept[name]) for name, size in sizes.items())
    rows = "".join(
        f"<tr><th>{COMPONENT_TITLES[name][0]}</th><td>{size:,}</td><td>{kept[name]:,}</td></tr>"
        for name, size in sizes.items()
    )
    summary = f"Original model: {total:,} parameters; pruned model: {total_kept:,}"
    if alone:
        summary = f"The model has {total:,} parameters"
    layers = layers_of(original, pruned, removed)
    hint = _hint(layers, pressable)
    outside = [(name, sizes.get(name, 0), kept[name]) for name in ("embeddings", "head")]
    return (
        '<section class="model-map">'
        f'<div class="drawing">{draw_layers(layers, outside, total, pressable, zeros)}</div>'
        f'<p class="hint" data-rest="{hint}">{hint}</p>'
        f'<div class="bar" role="img" aria-label="{summary}">{parts}</div>'
        f'<ul class="legend">{legend}</ul>{_figures(total, None if alone else total_kept, zeros, prefix)}'
        f'<table class="screen-reader-only"><caption>{summary}</caption>{rows}</table>'
        f"{layer_table(layers)}{_explanation(list(sizes), origin)}</section>"
    )


def _hint(layers: Sequence[DrawnLayer], pressable: bool) -> str:
    """Return the text below the drawing while no layer is pointed at: what to do, and what is not known yet."""
    before, after = layers[0].groups
    sentences = {
        "Press a layer to remove it.": pressable,
        "Calibration chooses the layers; the last ones stand for them.": any(
            layer.state == "undecided" for layer in layers
        ),
        "In each layer, other groups may be removed.": after < before,
    }
    return " ".join(sentence for sentence, holds in sentences.items() if holds)


def _figures(total: int, total_kept: int | None, zeros: float, prefix: str) -> str:
    before = (
        f'<div><span class="figure" id="{prefix}-before" data-count="{total}">{format_count(total)}</span> '
        f"<small>parameters{'' if total_kept is None else ', original'}</small></div>"
    )
    if total_kept is None:
        return f'<div class="figures">{before}</div>'
    change = f"pruned <b>{format_change(total, total_kept)}</b>"
    if total_kept == total:
        change = f"<b>same size</b>, {zeros:.0%} of the weights are zero" if zeros else "nothing removed"
    return (
        f'<div class="figures">{before}<div class="arrow" aria-hidden="true">→</div>'
        f'<div><span class="figure pruned" id="{prefix}-after" '
        f'data-count="{total_kept}">{format_count(total_kept)}</span> <small>{change}</small></div></div>'
    )


def _explanation(names: Sequence[str], origin: str) -> str:
    """Return what the parts are and where the weights come from, folded up."""
    terms = "".join(
        f"<dt>{title}</dt><dd>{hint}</dd>" for title, hint in (COMPONENT_TITLES[name] for name in names)
    )
    source = f"<dt>Weights</dt><dd>{escape(origin)}</dd>" if origin else ""
    return f"<details><summary>About the parts and the weights</summary><dl>{terms}{source}</dl></details>"


def zeros_of(steps: Sequence[Step]) -> float:
    """Return the share of the weights of attention and MLP that the last step sets to zero; 0 for other steps."""
    step = steps[-1] if steps else None
    if not isinstance(step, Weights):
        return 0.0
    return 0.5 if step.fraction is None else step.fraction


def _part(name: str, size: int, kept: int, total: int, zeros: float) -> str:
    removed = size - kept
    figures = f"{size:,} → {kept:,}" if removed else f"{size:,}"
    hatched = f'<span class="removed" style="width:{100 * removed / size:.3f}%"></span>' if removed else ""
    return (
        f'<div class="part {name}" style="width:{100 * size / total:.3f}%" '
        f'title="{COMPONENT_TITLES[name][0]}: {figures}">'
        f'<span class="{"kept sparse" if zeros else "kept"}" style="width:{100 * kept / size:.3f}%'
        f'{f";--zeros:{zeros:.3f}" if zeros else ""}"></span>{hatched}</div>'
    )


def _legend_entry(name: str, size: int, kept: int) -> str:
    title, _ = COMPONENT_TITLES[name]
    figures = f"{format_count(size)} → <b>{format_count(kept)}</b>" if kept != size else format_count(size)
    return f'<li class="{name}"><i></i>{title} <span>{figures}</span></li>'


def weights_origin(source: Source) -> str:
    """Return sentences that name the weights that are loaded, and what was made of them. They are not escaped yet."""
    origin = f"{source.origin[:1].upper()}{source.origin[1:]}"
    # A package's version is part of the origin.
    if source.revision and not source.revision.startswith("pypi:"):
        origin = f"{origin}, revision {source.revision[:12]}"
    return " ".join([f"{origin}.", *source.notes])


def cut_note(
    original: Shape, pruned: Shape, other_cuts: Sequence[str] = (), removed: Collection[int] = ()
) -> str:
    """Render what is cut, unit by unit.

    Args:
        original: The shape of the original model.
        pruned: The shape that the cuts lead to.
        other_cuts: Descriptions of steps that leave the shape as it is, such as weights set to zero.
        removed: The numbers of the removed layers, if the visitor chose them.
    """
    numbers = f" ({', '.join(map(str, sorted(removed)))})" if removed else ""
    cuts = [
        f"<b>{original.count(unit) - pruned.count(unit):,}</b> of the {original.count(unit):,} {title}"
        f"{numbers if unit == LAYER else ''}"
        for unit, title in UNIT_TITLES.items()
        if pruned.count(unit) < original.count(unit)
    ]
    cuts += [escape(cut) for cut in other_cuts]
    if not cuts:
        return '<p class="note">Nothing is removed yet: move the slider.</p>'
    return f'<p class="note">Removes {"; ".join(cuts)}.</p>'
