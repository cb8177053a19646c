"""Single weights: zeros in the projections, on an unchanged shape."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import model_validator
from transformers import PreTrainedModel

from pruning.architectures.anatomy import Anatomy, TensorSpec
from pruning.architectures.placement import parameter
from pruning.architectures.shape import Shape
from pruning.calibration.statistics import moments_of
from pruning.errors import RecipeError
from pruning.progress import Progress
from pruning.steps.base import Step, StepContext, StepResult
from pruning.steps.settings import Choices, Setting, Slider, share, word
from pruning.steps.sizes import one_number, share_of
from pruning.surgery import cut

UNIFORM = one_number("every projection loses the same share of its weights")

PATTERNS = {"2:4": (2, 4), "4:8": (4, 8)}
"""How many of how many consecutive inputs become zero."""

WEIGHT_CRITERIA = {"wanda": "Weight × activation (Wanda)", "magnitude": "Magnitude"}


def _read(flag: str, text: str) -> dict:
    """`50%` as a share of the weights; `2:4` as a pattern."""
    if ":" not in text:
        return {"fraction": share(flag, text)}
    if text not in PATTERNS:
        raise RecipeError(f"{flag} is {text!r}; write a share such as 50%, or one of {', '.join(PATTERNS)}.")
    return {"pattern": text}


class Weights(Step):
    """Set single weights of every projection of attention and MLP to zero.

    Give either `fraction`, the share of weights, or a `pattern`: `2:4` sets two of every four consecutive
    inputs of each output to zero, `4:8` four of every eight. `criterion`: `wanda`, |W_ij|·‖X_j‖₂ with the
    inputs X of the projection on calibration text, compared within each output (Sun et al., 2024, eq. 1);
    or `magnitude`, |W_ij|, compared within each matrix (Han et al., 2015). Of equals, those that come last
    become zero. Embeddings, norms, biases and the head stay as they are.
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
            "The same share in every projection; in the shell also a pattern, such as 2:4",
            _read,
            Slider(lambda shape: 90, percent=True),
            activates_step=True,
        ),
        Setting(
            "pattern",
            "--weights-pattern",
            "Pattern of the zeros",
            "With a pattern half of the weights become zero, evenly, as some GPUs want it",
            word,
            Choices({"any": "Anywhere", "2:4": "2 of every 4 inputs", "4:8": "4 of every 8 inputs"}),
        ),
        Setting(
            "criterion",
            "--weights-criterion",
            "Importance of a weight",
            "Its size alone, or its size times what comes in",
            word,
            Choices(WEIGHT_CRITERIA),
        ),
    )
    must_be_last: ClassVar[str] = (
        "a later cut would break the pattern of the zeros, and a repair would fill them in"
    )

    step: Literal["weights"] = "weights"
    fraction: Annotated[share_of("weights") | None, UNIFORM] = None
    pattern: Literal["any", "2:4", "4:8"] = "any"
    criterion: Literal["wanda", "magnitude"] = "wanda"

    @model_validator(mode="before")
    @classmethod
    def _pattern_says_it_all(cls, values):
        if isinstance(values, dict) and values.get("pattern") in PATTERNS and values.get("fraction") == 0.5:
            return {key: value for key, value in values.items() if key != "fraction"}
        return values

    @model_validator(mode="after")
    def _one_choice(self):
        if self.fraction is None and self.pattern == "any":
            raise ValueError("give a fraction or a pattern for the weights to set to zero")
        if self.fraction is not None and self.pattern != "any":
            raise ValueError(
                f"the pattern {self.pattern} sets half of the weights to zero; leave the fraction out, or "
                "make it 0.5"
            )
        return self

    @property
    def needs_calibration_text(self) -> bool:
        return self.criterion == "wanda"

    def reshape(self, shape: Shape) -> Shape:
        first = (spec for spec in projections(shape.anatomy) if spec.layer == 0)
        for spec in first:
            axis = shape.anatomy.input_axis(spec)
            inputs = shape.length(spec.labels[axis], spec.shape[axis])
            if self.pattern != "any" and inputs % PATTERNS[self.pattern][1]:
                raise RecipeError(
                    f"{spec.name} has {inputs} inputs, no multiple of {PATTERNS[self.pattern][1]}, so the "
                    f"pattern {self.pattern} does not fit. Give a fraction, or round the cuts before it."
                )
            if self.pattern == "any" and not int(self.fraction * inputs):
                raise RecipeError(
                    f"This sets none of the {inputs} weights of an output of {spec.name} to zero. "
                    "Ask for a larger fraction."
                )
        return shape

    def apply(self, context: StepContext) -> StepResult:
        anatomy = context.shape.anatomy
        moments = {}
        if self.needs_calibration_text:
            sites = [spec.module for spec in projections(anatomy)]
            moments = moments_of(context.model, sites, context.windows, context.progress)
        thinned = {}
        for spec in projections(anatomy):
            context.progress(Progress("Setting weights to zero, layers", spec.layer + 1, anatomy.layers))
            weight = parameter(context.model, spec.name)
            turned = weight if anatomy.input_axis(spec) == 1 else weight.T
            scores = turned.abs().float()
            if self.needs_calibration_text:
                scores = scores * moments[spec.module].square.sqrt()
            if not torch.isfinite(scores).all():
                raise RecipeError(
                    f"The scores of {spec.name} are not finite: the weights or the calibration text are "
                    "damaged. Load the model again or choose another text."
                )
            gone = self._going(scores)
            thinned[spec.name] = weight.masked_fill(gone if turned is weight else gone.T, 0)
        model = cut(context.model, context.shape, {}, thinned)
        return StepResult(model, context.tokenizer, _sparsity(model, anatomy))

    def _going(self, scores: torch.Tensor) -> torch.Tensor:
        """Which weights become zero, as a mask `[outputs, inputs]`; of equal scores, the last."""
        zeros, among = PATTERNS.get(self.pattern, (None, None))
        if among is None:
            among = scores.shape[1] if self.criterion == "wanda" else scores.numel()
            zeros = int(self.fraction * among)
        compared = scores.reshape(-1, among)
        order = torch.sort(compared, dim=1, descending=True, stable=True).indices
        mask = torch.zeros_like(compared, dtype=torch.bool)
        return mask.scatter_(1, order[:, among - zeros :], True).view_as(scores)

    def describe(self) -> str:
        if self.pattern == "any":
            size = f"{100 * self.fraction:.4g} %"
        else:
            size = "{} in {}".format(*PATTERNS[self.pattern])
        return f"{size} of the weights of attention and MLP, set to zero ({self.criterion})"


def projections(anatomy: Anatomy) -> list[TensorSpec]:
    """The weight matrices of attention and MLP."""
    return [
        spec for spec in anatomy.tensors if spec.component in ("attention", "mlp") and len(spec.shape) == 2
    ]


def _sparsity(model: PreTrainedModel, anatomy: Anatomy) -> tuple[dict, ...]:
    """For each component its parameters, how many of them are zero, and their share."""
    totals: dict[str, list[int]] = {}
    for spec in anatomy.tensors:
        values = parameter(model, spec.name)
        total = totals.setdefault(spec.component, [0, 0])
        total[0] += values.numel()
        total[1] += values.numel() - int(torch.count_nonzero(values))
    return tuple(
        {"component": component, "parameters": size, "zeros": zeros, "sparsity": zeros / size}
        for component, (size, zeros) in totals.items()
    )
