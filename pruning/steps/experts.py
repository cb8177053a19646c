"""Experts: whole experts of a mixture, the same number in every layer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pruning.architectures.families import EXPERT
from pruning.architectures.reasons import reason_against
from pruning.architectures.shape import Shape
from pruning.calibration.experts import expert_layers, expert_saliencies
from pruning.cost.cost import Cost, in_sequence
from pruning.cost.passes import copied
from pruning.cost.plan import Plan
from pruning.errors import RecipeError
from pruning.lazy import torch
from pruning.steps.base import Cut, StepContext, check_prunable, top
from pruning.steps.settings import Choices, Setting, Slider, share, whole, word
from pruning.steps.sizes import Size, describe_size, exactly_one, fraction_of, kept_size, one_number
from pruning.surgery import KeptIndices

UNIFORM = one_number("every layer keeps the same number of experts: a config holds one number for all layers")

CHOSEN_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "moe_top_k",
    "top_k_experts",
    "experts_per_token",
)
"""The keys of configs that hold how many experts read each token."""


class Experts(Cut):
    """Remove whole experts of a mixture, chosen layer by layer; routers and their corrections follow.

    Give either `fraction` or `num_experts`. If a router chooses groups of experts first, as many are removed of
    each group. The criteria:

    - `reap`: mean over the tokens routed to an expert of g(x) · ‖f(x)‖₂, with the router's weight g and the
      expert's output f `[channels]` (Lasby et al., 2025, "REAP the experts").
    - `frequency`: how many tokens the router sends to it.
    - `random`: none; needs no text.

    Example:
        >>> import pruning
        >>> pruning.Experts(fraction=0.25).describe()
        '25 % of the experts'
    """

    title: ClassVar[str] = "Experts"
    hint: ClassVar[str] = "The MLPs of a mixture, of which a router sends each token to a few"
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "fraction",
            "--experts",
            "Experts to cut, %",
            share,
            Slider(lambda shape: 75 if _has_experts(shape) else 0, percent=True),
            activates_step=True,
            usage="A share, such as 25%",
        ),
        Setting(
            "num_experts",
            "--num-experts",
            "Experts to keep in each layer, instead",
            whole,
            activates_step=True,
            usage="A number, such as 32",
        ),
        Setting(
            "criterion",
            "--expert-criterion",
            "Importance of an expert",
            word,
            Choices(
                {
                    "reap": "What it adds where it is chosen (REAP)",
                    "frequency": "How often it is chosen",
                    "random": "None: at random",
                }
            ),
        ),
    )

    step: Literal["experts"] = "experts"
    fraction: Annotated[float | None, fraction_of("experts"), UNIFORM] = Field(
        None, description="The share of the experts to remove, the same in every layer"
    )
    num_experts: Annotated[Size | None, UNIFORM] = Field(
        None, description="The number of experts to keep in each layer, instead of a share to remove"
    )
    criterion: Literal["reap", "frequency", "random"] = Field(
        "reap",
        description="How much an expert adds to the tokens that are sent to it, how many these are, or chance",
    )

    @model_validator(mode="after")
    def _check_alternatives(self) -> Self:
        if not exactly_one(self.fraction, self.num_experts):
            raise ValueError("give either fraction or num_experts for the experts to cut, and not both")
        return self

    def reads_text(self, shape: Shape) -> bool:
        """Return whether the criterion reads text."""
        del shape
        return self.criterion != "random"

    def reshape(self, shape: Shape) -> Shape:
        """Return the shape with fewer experts."""
        check_prunable(shape, "experts")
        experts, groups = shape.count(EXPERT), shape.anatomy.expert_groups
        kept = kept_size(experts, self.fraction, self.num_experts, groups)
        if kept >= experts:
            raise RecipeError(
                f"This removes none of the {experts} experts of a layer: {kept} would be kept. Ask for a larger "
                "fraction or a smaller num_experts."
            )
        chosen = max((getattr(shape.anatomy.config, key, None) or 1 for key in CHOSEN_KEYS), default=1)
        limited = getattr(shape.anatomy.config, "topk_group", None) or groups
        within_reach = kept // groups * min(limited, groups)
        if within_reach < chosen or (groups > 1 and kept // groups < 2):
            raise RecipeError(
                f"Each token is read by {chosen} experts, and {within_reach} could be chosen of the {kept} that "
                "would be kept. Keep more experts."
            )
        return shape.resized(EXPERT, kept)

    def cost(self, plan: Plan) -> Cost:
        """Estimate two passes, because each expert that was chosen is run once more, and the copies."""
        copies = Cost.holding(copied(plan.shape, self.reshape(plan.shape)))
        if not self.reads_text(plan.shape):
            return copies
        return in_sequence(plan.reading.forward(plan.sizes), plan.reading.forward(plan.sizes), copies)

    def rank(self, context: StepContext) -> KeptIndices:
        """Return the experts with the highest saliency, as many of each group."""
        anatomy = context.shape.anatomy
        experts, groups = anatomy.units[EXPERT], anatomy.expert_groups
        per_group = self.reshape(context.shape).count(EXPERT) // groups
        scores = self._scores(context)
        kept = []
        for layer in range(anatomy.layers):
            rows = scores.get(layer, torch.zeros(experts)).view(groups, -1)
            starts = range(0, experts, experts // groups)
            kept.append(
                torch.cat([start + top(row, per_group) for start, row in zip(starts, rows, strict=True)])
            )
        return {EXPERT: kept}

    def _scores(self, context: StepContext) -> dict[int, torch.Tensor]:
        """Return the score of each expert, `[experts]`, for each layer that has some."""
        anatomy = context.shape.anatomy
        if self.criterion != "random":
            return expert_saliencies(
                context.model, anatomy, context.required_windows, self.criterion == "reap", context.progress
            )
        generator = torch.Generator().manual_seed(context.seed % 2**63)
        return {
            layer: torch.rand(anatomy.units[EXPERT], generator=generator) for layer in expert_layers(anatomy)
        }

    def describe(self) -> str:
        """Return how many experts are removed."""
        return describe_size(self.fraction, self.num_experts, "the experts")


def _has_experts(shape: Shape) -> bool:
    return EXPERT in shape.anatomy.units and reason_against(shape.anatomy, "experts") is None
