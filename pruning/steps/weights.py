"""Single weights: zeros in the projections, on an unchanged shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pruning.architectures.anatomy import Anatomy, TensorSpec
from pruning.architectures.families import CHANNEL, EXPERT, NEURON
from pruning.architectures.placement import parameter
from pruning.architectures.shape import Shape
from pruning.calibration.experts import expert_input_norms
from pruning.calibration.statistics import moments_of
from pruning.cost.cost import Cost, in_sequence
from pruning.cost.passes import FLOAT
from pruning.cost.plan import Plan
from pruning.errors import RecipeError
from pruning.lazy import torch
from pruning.progress import Progress, Reporter
from pruning.steps.base import Step, StepContext, StepResult
from pruning.steps.settings import Choices, Setting, Slider, share, word
from pruning.steps.sizes import fraction_of, one_number
from pruning.surgery import cut

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNIFORM = one_number("every projection loses the same share of its weights")

PATTERNS = {"2:4": (2, 4), "4:8": (4, 8)}
"""How many of how many consecutive inputs become zero."""

WEIGHT_CRITERIA: Mapping[object, str] = {"wanda": "Weight × activation (Wanda)", "magnitude": "Magnitude"}


@dataclass(frozen=True)
class SparsityNote:
    """The zeros in one component of the model.

    Attributes:
        component: Its name, such as `attention`.
        parameters: How many parameters it has.
        zeros: How many of them are zero.
        sparsity: Their share.
    """

    component: str
    parameters: int
    zeros: int
    sparsity: float


def _read(flag: str, text: str) -> dict[str, object]:
    """Read `50%` as a share of the weights and `2:4` as a pattern."""
    if ":" not in text:
        return {"fraction": share(flag, text)}
    if text not in PATTERNS:
        raise RecipeError(f"{flag} is {text!r}; write a share such as 50%, or one of {', '.join(PATTERNS)}.")
    return {"pattern": text}


class Weights(Step):
    """Set single weights of every projection of attention and MLP to zero.

    Give either `fraction` or a `pattern`. Of equal scores, those that come last become zero. Embeddings,
    norms, biases and the head do not change. The criteria:

    - `wanda`: |W_ij| · ‖X_j‖₂ with the inputs X `[tokens, inputs]` of the projection on calibration text,
      compared within each output i (Sun et al., 2024, eq. 1).
    - `magnitude`: |W_ij|, compared within each matrix (Han et al., 2015).

    Example:
        >>> import pruning
        >>> pruning.Weights(pattern="2:4").describe()
        '2 in 4 of the weights of attention and MLP, set to zero (wanda)'
    """

    title: ClassVar[str] = "Single weights"
    hint: ClassVar[str] = (
        "Sets weights to zero one by one: the model keeps its shape, and its file does not get smaller"
    )
    warning: ClassVar[str] = (
        "The weights that were cut are stored as zeros: the file is no smaller, and plain transformers is no "
        "faster. Only software made for sparse weights gains from them."
    )
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "fraction",
            "--weights",
            "Weights to set to zero, %",
            _read,
            Slider(lambda _shape: 90, percent=True),
            activates_step=True,
            usage="A share, such as 50%, or a pattern, such as 2:4",
        ),
        Setting(
            "pattern",
            "--weights-pattern",
            "Pattern of the zeros",
            word,
            Choices({"any": "Anywhere", "2:4": "2 of every 4 inputs", "4:8": "4 of every 8 inputs"}),
        ),
        Setting("criterion", "--weights-criterion", "Importance of a weight", word, Choices(WEIGHT_CRITERIA)),
    )
    must_be_last: ClassVar[str] = (
        "a later cut would break the pattern of the zeros, and a repair would fill them in"
    )

    step: Literal["weights"] = "weights"
    fraction: Annotated[float | None, fraction_of("weights"), UNIFORM] = Field(
        None, description="The share of the weights to set to zero, the same in every projection"
    )
    pattern: Literal["any", "2:4", "4:8"] = Field(
        "any",
        description="With a pattern half of the weights become zero, evenly, as some GPUs need it: two of "
        "every four consecutive inputs of an output, or four of every eight",
    )
    criterion: Literal["wanda", "magnitude"] = Field(
        "wanda", description="The size of a weight times the size of its input, or its size alone"
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_implied_fraction(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("pattern") in PATTERNS and values.get("fraction") == 0.5:
            return {key: value for key, value in values.items() if key != "fraction"}
        return values

    @model_validator(mode="after")
    def _check_alternatives(self) -> Self:
        if self.fraction is None and self.pattern == "any":
            raise ValueError("give a fraction or a pattern for the weights to set to zero")
        if self.fraction is not None and self.pattern != "any":
            raise ValueError(
                f"the pattern {self.pattern} sets half of the weights to zero; leave the fraction out, or "
                "make it 0.5"
            )
        return self

    def reads_text(self, shape: Shape) -> bool:
        """Return whether the criterion reads text."""
        del shape
        return self.criterion == "wanda"

    def reshape(self, shape: Shape) -> Shape:
        """Return the same shape, once it is known that the zeros fit."""
        seen = set()
        for spec in projections(shape.anatomy):
            if (spec.labels, spec.shape) in seen:
                continue
            seen.add((spec.labels, spec.shape))
            axis = _input_axis(shape.anatomy, spec)
            inputs = shape.length(spec.labels[axis], spec.shape[axis])
            if self.pattern != "any" and inputs % PATTERNS[self.pattern][1]:
                raise RecipeError(
                    f"{spec.name} has {inputs} inputs, not a multiple of {PATTERNS[self.pattern][1]}, so the "
                    f"pattern {self.pattern} does not fit. Give a fraction, or round the cuts before it."
                )
            if self.fraction is not None and not int(self.fraction * inputs):
                raise RecipeError(
                    f"This sets none of the {inputs} weights of an output of {spec.name} to zero. "
                    "Ask for a larger fraction."
                )
        return shape

    def cost(self, plan: Plan) -> Cost:
        """Estimate a pass for the inputs' norms, sorting one matrix at a time, and the copies of all projections.

        A sort of n scores holds them twice, their order in 8-byte numbers and the mask, beside the result.
        """
        sizes, anatomy = plan.sizes, plan.shape.anatomy
        moments = plan.reading.forward(sizes) if self.reads_text(plan.shape) else Cost()
        if anatomy.family.neurons_in_experts:
            moments = moments.times(2)
        largest = max(prod(map(plan.shape.length, spec.labels, spec.shape)) for spec in projections(anatomy))
        return in_sequence(
            moments,
            Cost.holding(FLOAT * (sizes.projections - largest)),
            Cost(memory=8 * FLOAT * largest, held=FLOAT * largest),
        )

    def apply(self, context: StepContext) -> StepResult:
        """Set the weights with the lowest scores to zero."""
        anatomy = context.shape.anatomy
        input_norms = self._input_norms(context)
        sparse = {}
        for spec in projections(anatomy):
            context.progress(
                Progress("Setting weights to zero, layers", (spec.layer or 0) + 1, anatomy.layers)
            )
            weight = parameter(context.model, spec.name)
            axis = _input_axis(anatomy, spec)
            scores = weight.movedim(axis, -1).abs().float()
            if spec.name in input_norms:
                scores = scores * input_norms[spec.name].to(scores.device)
            if not torch.isfinite(scores).all():
                raise RecipeError(
                    f"The scores of {spec.name} are not finite: the weights or the calibration text are "
                    "damaged. Load the model again or choose another text."
                )
            sparse[spec.name] = weight.masked_fill(self._lowest(scores).movedim(-1, axis), 0)
        model = cut(context.model, context.shape, {}, sparse, context.progress)
        notes = _sparsity(model, anatomy, context.progress)
        return StepResult(model, context.tokenizer, notes, changed=frozenset(sparse))

    def _input_norms(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Return √E[x²] of the inputs of each matrix, by its name; empty if no text is needed.

        `[inputs]`, or `[experts, 1, inputs]` for the matrices of experts.
        """
        if not self.reads_text(context.shape):
            return {}
        anatomy, windows = context.shape.anatomy, context.required_windows
        plain = {spec.name: spec.module for spec in projections(anatomy) if len(spec.shape) == 2}
        moments = moments_of(context.model, [*plain.values()], windows, context.progress)
        norms = {name: moments[module].square.sqrt() for name, module in plain.items()}
        inside = [spec for spec in projections(anatomy) if len(spec.shape) == 3]
        if inside:
            of_experts = expert_input_norms(context.model, anatomy, windows, context.progress)
            for spec in inside:
                states, neurons = of_experts[spec.layer or 0]
                norms[spec.name] = (neurons if anatomy.writes_neurons(spec) else states)[:, None]
        return norms

    def _lowest(self, scores: torch.Tensor) -> torch.Tensor:
        """Return which weights become zero, as a mask `[..., outputs, inputs]`; of equal scores, the last."""
        if self.fraction is None:
            zeros, group = PATTERNS[self.pattern]
        else:
            group = scores.shape[-1] if self.criterion == "wanda" else scores.shape[-2] * scores.shape[-1]
            zeros = int(self.fraction * group)
        groups = scores.reshape(-1, group)
        order = torch.sort(groups, dim=1, descending=True, stable=True).indices
        mask = torch.zeros_like(groups, dtype=torch.bool)
        return mask.scatter_(1, order[:, group - zeros :], True).view_as(scores)

    @property
    def gentler(self) -> str | None:
        """Weights chosen with the text lose less than those chosen by their size."""
        return "Choose the weights by wanda, which reads text." if self.criterion == "magnitude" else None

    def describe(self) -> str:
        """Return how many weights become zero, and by which criterion."""
        if self.fraction is not None:
            size = f"{100 * self.fraction:.4g} %"
        else:
            size = "{} in {}".format(*PATTERNS[self.pattern])
        return f"{size} of the weights of attention and MLP, set to zero ({self.criterion})"


def projections(anatomy: Anatomy) -> list[TensorSpec]:
    """Return the weight matrices of attention and MLP, those inside experts too: what multiplies its inputs."""
    return [
        spec
        for spec in anatomy.tensors
        if spec.component in ("attention", "mlp")
        and (
            (len(spec.shape) == 2 and spec.name.endswith(".weight"))
            or (len(spec.shape) == 3 and spec.labels[0] == EXPERT and CHANNEL in spec.labels)
        )
    ]


def _input_axis(anatomy: Anatomy, spec: TensorSpec) -> int:
    """Return the axis of a matrix that its inputs run along; experts are on the first axis of theirs."""
    if len(spec.shape) == 2:
        return anatomy.input_axis(spec)
    return spec.labels.index(NEURON if anatomy.writes_neurons(spec) else CHANNEL)


def _sparsity(model: PreTrainedModel, anatomy: Anatomy, progress: Reporter) -> tuple[SparsityNote, ...]:
    """Count the zeros of each component."""
    parameters: dict[str, int] = {}
    zeros: dict[str, int] = {}
    for number, spec in enumerate(anatomy.tensors):
        progress(Progress("Counting zeros, tensors", number, len(anatomy.tensors)))
        values = parameter(model, spec.name)
        size = values.numel()
        parameters[spec.component] = parameters.get(spec.component, 0) + size
        zeros[spec.component] = zeros.get(spec.component, 0) + size - int(torch.count_nonzero(values))
    return tuple(
        SparsityNote(component, size, zeros[component], zeros[component] / size)
        for component, size in parameters.items()
    )
