"""The layers of a model as a drawing in SVG: every part has the area of its parameters, and removed ones are gray."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from page.html.render import format_count
from pruning.architectures.families import KEY_VALUE, LAYER
from pruning.architectures.shape import Shape

WIDTH, HEIGHT = 1000, 264
"""The units of the drawing. It is stretched to the width of its column, and one unit of its height is a pixel."""


@dataclass(frozen=True)
class DrawnLayer:
    """The numbers that one layer is drawn from.

    Attributes:
        number: Its number in the original model, from 0 on.
        state: Whether it is removed; `undecided` if it stands for a layer that is chosen during the pruning.
        parameters: All its parameters, norms included.
        kept_parameters: How many of them are kept if the layer is.
        attention: The parameters of attention, and how many are kept.
        mlp: The same of the MLP.
        groups: The key/value groups of attention, and how many are kept.
    """

    number: int
    state: Literal["kept", "removed", "undecided"]
    parameters: int
    kept_parameters: int
    attention: tuple[int, int]
    mlp: tuple[int, int]
    groups: tuple[int, int]

    @property
    def area(self) -> int:
        """The parameters that are drawn: norms are too few to be seen."""
        return self.attention[0] + self.mlp[0]

    def describe(self, total: int) -> str:
        """Return its numbers as a sentence: what a screen reader says, and what stands below the drawing.

        Args:
            total: The parameters of the original model.
        """
        (attention, _), (mlp, _), (groups, _) = self.attention, self.mlp, self.groups
        in_groups = f" in {groups} groups" if groups > 1 else ""
        end = ""
        if self.state == "removed":
            end = ". Removed"
        elif self.kept_parameters != self.parameters:
            end = f". {format_count(self.kept_parameters)} kept"
        return (
            f"Layer {self.number}: {format_count(self.parameters)} parameters, {self.parameters / total:.1%} of the "
            f"model. Attention {format_count(attention)}{in_groups}, MLP {format_count(mlp)}{end}"
        )


def layers_of(original: Shape, pruned: Shape, removed: Collection[int] | None) -> list[DrawnLayer]:
    """Return the layers of a model as they are drawn.

    Args:
        original: The shape of the original model.
        pruned: The shape that the cuts lead to.
        removed: The numbers of the removed layers; None if they are chosen during the pruning. The last ones stand
            for them then.
    """
    total, kept_count = original.anatomy.layers, pruned.count(LAYER)
    absent = set(range(kept_count, total)) if removed is None else set(removed)
    kept = [layer for layer in range(total) if layer not in absent]
    # The shape of a finished model counts its own layers, one that was worked out counts those of the original.
    places = {layer: place for place, layer in enumerate(kept)} if pruned.anatomy.layers != total else {}
    sizes_before, sizes_after = _sizes_of_layers(original), _sizes_of_layers(pruned)
    layers = []
    for number in range(total):
        before, after = sizes_before(number), sizes_after(places.get(number, number))
        layers.append(
            DrawnLayer(
                number,
                "kept" if number not in absent else "undecided" if removed is None else "removed",
                sum(before.values()),
                sum(after.values()),
                (before["attention"], after["attention"]),
                (before["mlp"], after["mlp"]),
                (original.count(KEY_VALUE), pruned.count(KEY_VALUE)),
            )
        )
    return layers


def draw_layers(
    layers: Sequence[DrawnLayer],
    outside: Sequence[tuple[str, int, int]],
    total: int,
    pressable: bool = False,
    zeros: float = 0.0,
) -> str:
    """Draw layers from top to bottom, with what stands outside them on both sides.

    Args:
        layers: The layers.
        outside: The name of each component outside the layers, its parameters, and how many are kept.
        total: The parameters of the original model.
        pressable: Whether the layers are buttons.
        zeros: The share of the weights of attention and MLP that are set to zero.

    Returns:
        The drawing. Areas are in proportion to parameters. One layer takes part in the order of the Tab key, and
        `page.js` moves between them by the arrow keys.
    """
    columns = {name: (size, kept) for name, size, kept in outside if size}
    stack = sum(layer.area for layer in layers)
    scale = WIDTH / max(1, stack + sum(size for size, _ in columns.values()))
    left = scale * columns.get("embeddings", (0, 0))[0]
    width, top = scale * stack, 0.0
    drawn = []
    for name, (size, kept) in columns.items():
        start, share = 0.0 if name == "embeddings" else left + width, kept / size
        drawn.append(_path(name, [(start, 0, scale * size, HEIGHT * share)]))
        drawn.append(_path(f"{name} cut", [(start, HEIGHT * share, scale * size, HEIGHT * (1 - share))]))
    for layer in layers:
        height = HEIGHT * layer.area / max(1, stack)
        opens = f'<g class="layer {layer.state}" data-layer="{layer.number}" tabindex="{-1 if layer.number else 0}"'
        pressed = str(layer.state == "removed").lower()
        role = f'role="button" aria-pressed="{pressed}"' if pressable else 'role="img"'
        drawn.append(f'{opens} {role} aria-label="{layer.describe(total)}">')
        drawn += _layer(layer, (left, top, width, height), zeros)
        drawn.append("</g>")
        top += height
    label = "The layers of the model. Press one to remove it." if pressable else "The layers of the model"
    return (
        f'<svg class="layers" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="group" '
        f'aria-label="{label}">{"".join(drawn)}</svg>'
    )


def layer_table(layers: Sequence[DrawnLayer]) -> str:
    """Return the numbers of a drawing as a table."""
    rows = "".join(
        f'<tr><th scope="row">{layer.number}</th><td>{layer.attention[0]:,}</td><td>{layer.groups[0]}</td>'
        f"<td>{layer.mlp[0]:,}</td><td>{0 if layer.state == 'removed' else layer.kept_parameters:,}</td></tr>"
        for layer in layers
    )
    titles = ("Layer", "Attention", "Groups", "MLP", "Kept")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return (
        '<table class="screen-reader-only layer-table"><caption>Parameters by layer</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _sizes_of_layers(shape: Shape) -> Callable[[int], dict[str, int]]:
    """Return a function that gives the parameters of a layer by component, worked out once if all are alike."""
    if not shape.anatomy.layers_are_alike:
        return shape.layer_components
    sizes = shape.layer_components(0)
    return lambda _layer: sizes


Box = tuple[float, float, float, float]
"""Left edge, upper edge, width and height."""


def _layer(layer: DrawnLayer, row: Box, zeros: float) -> Iterator[str]:
    """Draw attention group by group, then the MLP; what is cut stands at the right of each."""
    left, top, width, height = row
    scale = width / layer.area if layer.area else 0.0
    (attention, kept_attention), (mlp, kept_mlp), (groups, kept_groups) = (
        layer.attention,
        layer.mlp,
        layer.groups,
    )
    group = scale * attention / groups
    kept = scale * kept_attention / kept_groups
    starts = [left + number * group for number in range(groups)]
    split = left + scale * attention
    yield _path("attention", [(start, top, kept, height) for start in starts[:kept_groups]], zeros)
    rest = [(start + kept, top, group - kept, height) for start in starts[:kept_groups]]
    yield _path("attention cut", [*rest, *((start, top, group, height) for start in starts[kept_groups:])])
    yield _path("mlp", [(split, top, scale * kept_mlp, height)], zeros)
    yield _path("mlp cut", [(split + scale * kept_mlp, top, scale * (mlp - kept_mlp), height)])
    yield (
        f'<rect class="frame" x="{left:.2f}" y="{top:.2f}" width="{width:.2f}" height="{height:.2f}"></rect>'
    )


def _path(name: str, boxes: Sequence[Box], zeros: float = 0.0) -> str:
    """Draw boxes of one kind; those without an area are left out."""
    lines = "".join(
        f"M{left:.2f} {top:.2f}h{width:.2f}v{height:.2f}h-{width:.2f}z"
        for left, top, width, height in boxes
        if width * height > 1e-6
    )
    opacity = f' fill-opacity="{1 - zeros:.2f}"' if zeros else ""
    return f'<path class="{name}" d="{lines}"{opacity}></path>' if lines else ""
