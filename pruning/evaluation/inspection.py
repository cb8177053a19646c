"""A closer look at what pruning did: next tokens, losses token by token, importance layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.lm_head import backbone, logits_of
from pruning.architectures.matrices import neuron_matrices
from pruning.architectures.reasons import reason_against
from pruning.architectures.shape import Shape
from pruning.calibration.block_influence import block_influences
from pruning.calibration.calibrate import statistics_of, windows_of
from pruning.calibration.residual_streams import ResidualStreams
from pruning.calibration.statistics import InputMoments
from pruning.criteria import MLP, criterion_named
from pruning.errors import RecipeError, panics_as_errors
from pruning.lazy import torch
from pruning.loading.load import LoadedModel
from pruning.progress import Progress, Reporter, silent
from pruning.steps.neurons import Neurons
from pruning.text.choice import DEFAULT_CALIBRATION, Calibration
from pruning.text.likelihood import token_losses
from pruning.text.prompt import CausalLM, check_prompt, encode_prompt
from pruning.text.tokens import token_ids, usable_window

LONGEST_TEXT = 4_000
"""The most characters of a text whose tokens are inspected."""


@dataclass(frozen=True)
class NextToken:
    """One possible next token of a prompt. `probability`: from 0 to 1."""

    text: str
    probability: float


def next_tokens(
    model: CausalLM, prompt: str, count: int = 10, *, progress: Reporter = silent
) -> list[NextToken]:
    """Return the likeliest next tokens of a prompt, the likeliest first.

    Args:
        model: The model and its tokenizer.
        prompt: The text to continue.
        count: How many tokens to return.
        progress: Called before the model reads the prompt.

    Raises:
        RecipeError: The prompt is empty, too long for the model, of more than `MAX_PROMPT_TOKENS` tokens, or has
            a token that the model has no embedding for.
    """
    ids = encode_prompt(model.tokenizer, prompt)
    check_prompt(model, ids)
    progress(Progress("Reading the prompt"))
    with torch.inference_mode():
        hidden = backbone(model.model)(input_ids=ids.to(model.model.device), use_cache=False)
        last = logits_of(model.model, hidden.last_hidden_state[0, -1:])[0]
    top = last.softmax(dim=0).topk(min(count, len(last)))
    with panics_as_errors():
        texts = model.tokenizer.batch_decode([[int(index)] for index in top.indices])
    return [NextToken(text, float(value)) for text, value in zip(texts, top.values, strict=True)]


@dataclass(frozen=True)
class TokenLoss:
    """A token of a text and its loss under each model.

    Attributes:
        text: The token as text.
        losses: Negative log-likelihood in nats by model; None for the first token, which is not predicted.
    """

    text: str
    losses: tuple[float | None, ...]


def losses_by_token(models: Sequence[CausalLM], text: str, *, progress: Reporter = silent) -> list[TokenLoss]:
    """Compute the negative log-likelihood of every token of a text under several models.

    Args:
        models: Models that share a tokenizer.
        text: At most `LONGEST_TEXT` characters; of its first `LONGEST_TEXT` tokens, as many as the model's
            context holds.
        progress: Called before each model reads the text.

    Raises:
        RecipeError: The text is empty, too long or a single token, or the models split it differently.
    """
    if not isinstance(text, str) or not text.strip():
        raise RecipeError("There is no text to read. Write some.")
    if len(text) > LONGEST_TEXT:
        raise RecipeError(
            f"The text has {len(text):,} characters; at most {LONGEST_TEXT:,} are allowed. Shorten it."
        )
    tokenizer = models[0].tokenizer
    ids = token_ids(models[0].model, tokenizer, text)[: usable_window(models[0].model, LONGEST_TEXT)]
    if any(
        not torch.equal(ids, token_ids(model.model, model.tokenizer, text)[: len(ids)])
        for model in models[1:]
    ):
        raise RecipeError(
            "The two models split the text into different tokens, because the vocabulary was cut, so single "
            "tokens cannot be compared."
        )
    if len(ids) < 2:
        raise RecipeError("The text is a single token, which cannot be predicted. Write more.")
    losses = []
    for number, model in enumerate(models):
        progress(Progress("Reading the text, models", number, len(models)))
        losses.append(token_losses(model.model, ids).tolist())
    with panics_as_errors():
        pieces = tokenizer.batch_decode([[int(token)] for token in ids])
    return [
        TokenLoss(piece, (None,) * len(models) if at == 0 else tuple(row[at - 1] for row in losses))
        for at, piece in enumerate(pieces)
    ]


def why_no_scores(shape: Shape) -> str | None:
    """Return why the neurons of a model have no scores, as a sentence; None if they have."""
    family = shape.anatomy.family
    if family.neurons_in_experts:
        return f"The neurons of {family.title} are inside experts, and only neurons of an ordinary MLP have scores."
    if reason := reason_against(shape.anatomy, "neurons"):
        return f"The neurons of {family.title} are not scored one by one: {reason}."
    return None


def neuron_scores(
    base: LoadedModel,
    criterion: str,
    calibration: Calibration | None = None,
    seed: int = 0,
    *,
    progress: Reporter = silent,
) -> list[torch.Tensor]:
    """Score every MLP neuron under a criterion.

    Returns:
        For each layer, the scores, `[neurons]`; higher is more important.

    Raises:
        RecipeError: The criterion is unknown, or scores the gate and up rows of a neuron separately; or the model has
            no MLP neurons that can be scored one by one.
    """
    chosen = criterion_named(criterion)
    if chosen.gated_only:
        raise RecipeError(f"{chosen.title} does not give a neuron a single score. Choose another criterion.")
    shape = Shape.of(base.model.config)
    anatomy = shape.anatomy
    if reason := why_no_scores(shape):
        raise RecipeError(f"{reason} Look at the importance of its layers instead.")
    moments: Mapping[str, InputMoments] = {}
    if chosen.needs_calibration:
        modules = Neurons(fraction=0.5, criterion=criterion).hooked_modules(shape)
        moments = statistics_of(
            base, calibration or DEFAULT_CALIBRATION, modules, seed, progress=progress
        ).moments
    scores = []
    for layer in range(anatomy.layers):
        mlp = MLP(*neuron_matrices(base.model, anatomy, layer))
        generator = torch.Generator().manual_seed((seed + layer) % 2**63)
        scores.append(
            chosen.score(mlp, moments.get(anatomy.output_projection(layer)), generator).float().cpu()
        )
    return scores


def importance_map(scores: Sequence[torch.Tensor], columns: int = 64) -> list[list[float]]:
    """Summarize scores as a picture of layers × columns.

    Args:
        scores: For each layer, `[neurons]`.
        columns: The most columns of a row.

    Returns:
        For each layer, its scores from the highest to the lowest, as shares of the highest, thinned
        out evenly.
    """
    rows = []
    for row in scores:
        ordered = row.sort(descending=True).values
        picked = ordered[torch.linspace(0, len(ordered) - 1, min(columns, len(ordered))).long()]
        rows.append((picked / ordered[0].clamp_min(1e-30)).tolist())
    return rows


def overlaps(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor], fraction: float) -> list[float]:
    """Compare which neurons two criteria keep.

    Args:
        one: For each layer, scores, `[neurons]`.
        other: Scores of the same neurons under another criterion.
        fraction: The share of the neurons that is removed, from 0 to 1.

    Returns:
        For each layer, the share of the neurons kept under `one` that `other` keeps too.
    """
    shares = []
    for a, b in zip(one, other, strict=True):
        kept = len(a) - int(fraction * len(a))
        both = set(a.topk(kept).indices.tolist()) & set(b.topk(kept).indices.tolist())
        shares.append(len(both) / kept)
    return shares


def layer_influences(
    base: LoadedModel,
    calibration: Calibration | None = None,
    seed: int = 0,
    *,
    progress: Reporter = silent,
) -> list[float]:
    """Measure the block influence of every layer on the calibration text (see `block_influences`)."""
    windows = windows_of(base, calibration or DEFAULT_CALIBRATION, seed, progress)
    return block_influences(
        ResidualStreams(base.model, anatomy_of(base.model.config), windows, progress)
    ).tolist()
