"""Attention heads: whole key/value groups, or the same number of query heads out of every group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.families import CHANNEL, KEY_VALUE, QUERY
from pruning.architectures.matrices import as_channels_first, has_value_matrix, value_matrix
from pruning.architectures.placement import parameter
from pruning.architectures.shape import Shape
from pruning.cost.cost import Cost, in_sequence
from pruning.cost.passes import FLOAT, Sizes, copied
from pruning.cost.plan import Plan
from pruning.cost.reading import refits
from pruning.errors import ModelError, RecipeError
from pruning.lazy import torch
from pruning.loading import load as loading
from pruning.progress import Progress
from pruning.steps.base import Cut, Refit, StepContext, check_prunable, most, refit_output_projections, top
from pruning.steps.settings import Choices, Setting, Slider, Switch, is_share, share, whole, word
from pruning.steps.sizes import Size, one_number
from pruning.surgery import KeptIndices

UNIFORM = one_number(
    "every layer loses the same number of heads: a config holds one number for all layers, "
    "so a model with several would not load"
)

Removed = Annotated[int, Field(ge=0), UNIFORM]

HEAD_CRITERIA: Mapping[object, str] = {
    "contribution": "What it contributes",
    "minitron": "Minitron's importance",
    "weights": "The size of its weights (no text needed)",
}


def _most_groups(shape: Shape) -> int:
    return most(shape, "groups", shape.count(KEY_VALUE) - 1)


def _most_queries(shape: Shape) -> int:
    return most(shape, "heads", shape.count(QUERY) // shape.count(KEY_VALUE) - 1)


def _read(flag: str, text: str) -> dict[str, object]:
    """Read `1` as a number of groups, and `50%` as a share of the heads."""
    return {"share": share(flag, text)} if is_share(text) else {"groups": whole(flag, text)}


class Heads(Cut):
    """Remove attention heads, chosen layer by layer.

    Give `groups` or `num_key_value_heads` for whole groups, `queries` for heads out of every group, or one of
    the first two with the last. The criteria:

    - `contribution`: E‖X_h W_hᵀ‖², what head h adds to the residual stream; X_h `[tokens, head size]` is its
      output and W_h `[channels, head size]` its columns of the output projection (computed from the Gram
      matrix of the outputs).
    - `minitron`: the L2 norm of a head's output, mean over the sequence and L2 over the batch (Muralidharan
      et al., 2024, §2.2).
    - `weights`: ‖W_O,h W_V,h‖_F, how much of the residual stream a head can move, by its output-value circuit
      (Elhage et al., 2021, "A mathematical framework for transformer circuits"); needs no text.

    Example:
        >>> import pruning
        >>> pruning.Heads(groups=1).describe()
        '1 key/value group of every layer'
    """

    title: ClassVar[str] = "Attention heads"
    hint: ClassVar[str] = (
        "Attention looks back at earlier words. Heads that share keys and values form a group."
    )
    added: ClassVar[frozenset[str]] = frozenset({"num_key_value_heads"})
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "groups",
            "--heads",
            "Groups of heads to cut",
            _read,
            Slider(_most_groups),
            activates_step=True,
            usage="A number, such as 1, or a share of the heads, such as 50%",
        ),
        Setting(
            "num_key_value_heads",
            "--num-key-value-heads",
            "Key/value heads to keep, instead",
            whole,
            activates_step=True,
            usage="A number, such as 2",
        ),
        Setting(
            "queries",
            "--query-heads",
            "Heads to cut out of every group",
            whole,
            Slider(_most_queries),
            activates_step=True,
            usage="A number, such as 1",
        ),
        Setting("criterion", "--head-criterion", "Importance of a head", word, Choices(HEAD_CRITERIA)),
        Setting("repair", "--repair", "Repair what remains", control=Switch()),
    )

    step: Literal["heads"] = "heads"
    groups: Removed = Field(
        0,
        description="How many key/value groups to remove from every layer, each with the query heads that "
        "share it",
    )
    num_key_value_heads: Annotated[Size | None, UNIFORM] = Field(
        None,
        description="How many key/value heads to keep in every layer, instead of groups to remove",
    )
    queries: Removed = Field(
        0, description="How many query heads to remove out of each key/value group that remains"
    )
    criterion: Literal["contribution", "minitron", "weights"] = Field(
        "contribution",
        description="What a head's output adds to the residual stream, how large its output is, or how large "
        "its weights are",
    )
    repair: bool | None = Field(
        None,
        description="Refits each layer's output projection to the heads kept, by least squares; by default "
        "if the criterion reads calibration text",
    )

    @classmethod
    def for_model(cls, model: str, **values: Any) -> Self:
        """Make the step; a share of the heads becomes groups if it can, and query heads of every group if not."""
        if (part := values.pop("share", None)) is not None:
            shape = Shape.of(loading.find(model, plain=True).config)
            groups = shape.count(KEY_VALUE)
            if 0 < round(part * groups) < groups:
                values["groups"] = round(part * groups)
            else:
                values["queries"] = max(1, round(part * (shape.count(QUERY) // groups)))
        return cls(**values)

    @model_validator(mode="before")
    @classmethod
    def _default_repair(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("repair") is None:
            values = values | {"repair": values.get("criterion") != "weights"}
        return values

    @model_validator(mode="after")
    def _check_alternatives(self) -> Self:
        if self.groups and self.num_key_value_heads is not None:
            raise ValueError("give either groups or num_key_value_heads for the heads to cut, and not both")
        if not self.groups and not self.queries and self.num_key_value_heads is None:
            raise ValueError("give groups, num_key_value_heads or queries for the heads to cut")
        return self

    def hooked_modules(self, shape: Shape) -> tuple[str, ...]:
        """Return the output projections of attention in all layers, if the criterion or repair needs them."""
        if self.criterion == "weights" and not self.repair:
            return ()
        anatomy = shape.anatomy
        return tuple(anatomy.output_projection(layer, QUERY) for layer in range(anatomy.layers))

    def reshape(self, shape: Shape) -> Shape:
        """Return the shape with fewer heads."""
        for unit in ("heads",) * bool(self.queries) + ("groups",) * (self.queries == 0 or self.groups > 0):
            check_prunable(shape, unit)
        if self.criterion == "weights" and not has_value_matrix(shape.anatomy):
            raise RecipeError(
                "The criterion weights needs a matrix in each layer that computes values from the residual stream, and "
                "this model has layers without one. Choose contribution or minitron."
            )
        groups, group_size = shape.count(KEY_VALUE), shape.count(QUERY) // shape.count(KEY_VALUE)
        removed_groups = self._removed_groups(groups)
        for removed, total, unit in (
            (removed_groups, groups, "key/value groups"),
            (self.queries, group_size, "query heads of a group"),
        ):
            if removed >= total:
                raise RecipeError(
                    f"There are {total} {unit}; {removed} cannot be removed. At least one must remain."
                )
        groups, group_size = groups - removed_groups, group_size - self.queries
        resized = shape.resized(KEY_VALUE, groups).resized(QUERY, groups * group_size)
        try:
            resized.config  # noqa: B018 - raises if there is no such config
        except ModelError:
            raise RecipeError(
                f"A model with {groups * group_size} query heads would not load: its hidden size is "
                f"{shape.count(CHANNEL)}. Remove another number of heads."
            ) from None
        return resized

    def cost(self, plan: Plan) -> Cost:
        """Estimate the contributions, ⟨H, Wᵀ W⟩ in double precision, the repair and the copies of attention."""
        sizes, after = plan.sizes, self.reshape(plan.shape)
        rankings = (sizes.shape.count(KEY_VALUE) != after.count(KEY_VALUE)) + bool(self.queries)
        products, memory = 0.0, 2 * FLOAT * sizes.queries * sizes.channels
        if self.criterion == "contribution":
            products = 2.0 * sizes.queries**2 * sizes.channels
            memory += 3 * 2 * FLOAT * sizes.queries**2
        if self.criterion == "weights":
            products = 2 * sizes.queries / sizes.heads * sizes.channels * (sizes.queries + sizes.keys)
        scores = Cost(products, memory).times(rankings * sizes.layers)
        removed = sizes.queries - Sizes(after).queries
        repair = Cost()
        if self.repair:
            repair = refits(sizes.layers, sizes.queries, removed, sizes.channels, plan.free)
        return in_sequence(scores, repair, Cost.holding(copied(plan.shape, after)))

    def rank(self, context: StepContext) -> KeptIndices:
        """Return the key/value groups and the query heads with the highest scores."""
        anatomy = context.shape.anatomy
        total = anatomy.units[KEY_VALUE]
        removed, group_size = self._removed_groups(total), anatomy.units[QUERY] // total
        kept: dict[str, list[torch.Tensor]] = {QUERY: [], KEY_VALUE: []}
        for layer in range(anatomy.layers):
            context.progress(Progress("Ranking heads, layers", layer + 1, anatomy.layers))
            groups, heads = torch.arange(total), torch.arange(group_size).repeat(total, 1)
            if removed:
                groups = top(self._scores(context, anatomy, layer, group_size), total - removed)
            if self.queries:
                scores = self._scores(context, anatomy, layer, 1).view(total, group_size)
                heads = torch.stack([top(row, group_size - self.queries) for row in scores])
            kept[KEY_VALUE].append(groups)
            kept[QUERY].append((groups[:, None] * group_size + heads[groups]).flatten())
        return kept

    def _removed_groups(self, groups: int) -> int:
        """Return how many key/value groups are removed out of a number of them."""
        if self.num_key_value_heads is None:
            return self.groups
        if self.num_key_value_heads >= groups:
            raise RecipeError(
                f"This removes none of the {groups} key/value heads of a layer: {self.num_key_value_heads} "
                "would be kept. Keep fewer, or leave num_key_value_heads out."
            )
        return groups - self.num_key_value_heads

    def _scores(
        self, context: StepContext, anatomy: Anatomy, layer: int, heads_per_unit: int
    ) -> torch.Tensor:
        """Return the scores of a layer's runs of `heads_per_unit` query heads, `[heads / heads_per_unit]`."""
        module = anatomy.output_projection(layer, QUERY)
        width = anatomy.head_width * heads_per_unit
        if self.criterion == "minitron":
            return context.required_statistics.moments[module].sequence.view(-1, width).norm(dim=1)
        spec = anatomy.tensor(f"{module}.weight")
        weight = as_channels_first(parameter(context.model, spec.name), spec).double()
        if self.criterion == "weights":
            circuits = _circuit_norms(weight, value_matrix(context.model, anatomy, layer), anatomy)
            return circuits.view(-1, heads_per_unit).sum(dim=1)
        gram = context.required_statistics.gram(module, context.progress).gram.double()
        contributions = (gram * (weight.T @ weight)).view(-1, width, gram.shape[1] // width, width)
        return contributions.sum(dim=(1, 3)).diagonal()

    def refit(self, context: StepContext, kept: KeptIndices) -> Refit:
        """Refit the output projections to the heads kept."""
        if not self.repair:
            return Refit()
        width = context.shape.anatomy.head_width
        columns = [(heads[:, None] * width + torch.arange(width)).flatten() for heads in kept[QUERY]]
        return refit_output_projections(context, QUERY, columns)

    @property
    def gentler(self) -> str | None:
        """Repair makes up for part of what was removed."""
        return None if self.repair else "Switch repair on."

    def describe(self) -> str:
        """Return how many heads are removed."""
        parts = []
        if self.groups:
            parts.append(f"{self.groups} key/value group{'s' if self.groups > 1 else ''} of every layer")
        if self.num_key_value_heads is not None:
            parts.append(f"all but {self.num_key_value_heads} of the key/value groups of every layer")
        if self.queries:
            parts.append(f"{self.queries} query head{'s' if self.queries > 1 else ''} of every group")
        return " and ".join(parts)


def _circuit_norms(output: torch.Tensor, values: torch.Tensor, anatomy: Anatomy) -> torch.Tensor:
    """Return ‖W_O,h W_V,h‖_F of each query head, by ‖A B‖²_F = ⟨Aᵀ A, B Bᵀ⟩: products of the size of a head.

    Args:
        output: W_O, `[channels, query heads · head size]`.
        values: W_V, `[key/value heads · head size, channels]`.
        anatomy: The layout of the model.
    """
    width = anatomy.head_width
    values = values.double().view(anatomy.units[KEY_VALUE], width, -1)
    outputs = output.view(len(output), anatomy.units[QUERY], width).permute(1, 2, 0)
    group_size = anatomy.units[QUERY] // anatomy.units[KEY_VALUE]
    shared = (values @ values.mT).repeat_interleave(group_size, dim=0)
    return (shared * (outputs @ outputs.mT)).sum(dim=(1, 2)).clamp_min(0).sqrt()
