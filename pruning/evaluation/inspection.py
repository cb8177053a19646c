"""Looking closer at what a cut did: next tokens, losses token by token, and importance layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.shape import Shape
from pruning.calibration.block_influence import block_influences
from pruning.calibration.calibrate import statistics_of, windows_of
from pruning.criteria import MLP, criterion_named
from pruning.errors import RecipeError
from pruning.loading.load import LoadedModel
from pruning.progress import Reporter, silent
from pruning.steps.neurons import Neurons
from pruning.surgery import neuron_matrices
from pruning.text.choice import Calibration
from pruning.text.generation import CausalLM, encode_prompt
from pruning.text.likelihood import token_losses
from pruning.text.tokens import check_vocabulary, token_ids, usable_window

LONGEST_TEXT = 4_000


@dataclass(frozen=True)
class NextToken:
    """One continuation of a prompt. `probability`: from 0 to 1."""

    text: str
    probability: float


def next_tokens(model: CausalLM, prompt: str, count: int = 10) -> list[NextToken]:
    """The likeliest next tokens of a prompt, the likeliest first."""
    ids = encode_prompt(model.tokenizer, prompt)
    check_vocabulary(model.model, model.tokenizer, ids)
    with torch.inference_mode():
        last = model.model(input_ids=ids.to(model.model.device), use_cache=False).logits[0, -1].float()
    top = last.softmax(dim=0).topk(min(count, len(last)))
    return [
        NextToken(model.tokenizer.decode([index]), float(value))
        for value, index in zip(top.values, top.indices, strict=True)
    ]


@dataclass(frozen=True)
class TokenLoss:
    """A piece of a text, and what it cost each model: nats, None for the first piece, which nobody
    predicts."""

    text: str
    losses: tuple[float | None, ...]


def losses_by_token(models: Sequence[CausalLM], text: str) -> list[TokenLoss]:
    """The negative log-likelihood of every token of a text, for models that share a tokenizer.

    Raises `RecipeError` for a text that is empty or too long, and for models that read different tokens.
    """
    if not isinstance(text, str) or not text.strip():
        raise RecipeError("There is no text to read. Write some.")
    if len(text) > LONGEST_TEXT:
        raise RecipeError(
            f"The text has {len(text):,} characters; at most {LONGEST_TEXT:,} are read. Shorten it."
        )
    tokenizer = models[0].tokenizer
    ids = token_ids(models[0].model, tokenizer, text)[: usable_window(models[0].model, LONGEST_TEXT)]
    if any(
        not torch.equal(ids, token_ids(each.model, each.tokenizer, text)[: len(ids)]) for each in models[1:]
    ):
        raise RecipeError(
            "The two models read different tokens, since vocabulary was cut, so single tokens do not compare."
        )
    if len(ids) < 2:
        raise RecipeError("The text is a single token, which nothing predicts. Write more.")
    losses = [token_losses(each.model, ids).tolist() for each in models]
    pieces = tokenizer.batch_decode([[int(token)] for token in ids])
    return [
        TokenLoss(piece, (None,) * len(models) if at == 0 else tuple(row[at - 1] for row in losses))
        for at, piece in enumerate(pieces)
    ]


def neuron_scores(
    base: LoadedModel,
    criterion: str,
    calibration: Calibration | None = None,
    seed: int = 0,
    progress: Reporter = silent,
) -> list[torch.Tensor]:
    """The scores of every layer's neurons under a criterion, each `[neurons]`.

    Raises `RecipeError` for a criterion that gives a neuron several scores.
    """
    chosen = criterion_named(criterion)
    if chosen.gated_only:
        raise RecipeError(f"{chosen.title} gives no one score to a neuron. Choose another criterion.")
    anatomy = anatomy_of(base.model.config)
    moments = {}
    if chosen.needs_calibration:
        sites = Neurons(fraction=0.5, criterion=criterion).hooked_modules(Shape.of(base.model.config))
        moments = statistics_of(base, calibration or Calibration(), sites, seed, progress=progress).moments
    scores = []
    for layer in range(anatomy.layers):
        mlp = MLP(*neuron_matrices(base.model, anatomy, layer))
        generator = torch.Generator().manual_seed((seed + layer) % 2**63)
        scores.append(
            chosen.score(mlp, moments.get(anatomy.output_projection(layer)), generator).float().cpu()
        )
    return scores


def importance_map(scores: Sequence[torch.Tensor], columns: int = 64) -> list[list[float]]:
    """Layers × columns: each layer's scores from the highest to the lowest, as shares of its highest, thinned
    out evenly."""
    rows = []
    for row in scores:
        ordered = row.sort(descending=True).values
        picked = ordered[torch.linspace(0, len(ordered) - 1, min(columns, len(ordered))).long()]
        rows.append((picked / ordered[0].clamp_min(1e-30)).tolist())
    return rows


def overlaps(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor], fraction: float) -> list[float]:
    """For each layer, the share of the neurons kept under one set of scores that the other keeps too, when a
    fraction goes."""
    shares = []
    for a, b in zip(one, other, strict=True):
        kept = len(a) - int(fraction * len(a))
        both = set(a.topk(kept).indices.tolist()) & set(b.topk(kept).indices.tolist())
        shares.append(len(both) / kept)
    return shares


def layer_influences(
    base: LoadedModel, calibration: Calibration | None = None, seed: int = 0, progress: Reporter = silent
) -> list[float]:
    """The block influence of every layer on the calibration text (see `influence`)."""
    windows = windows_of(base, calibration or Calibration(), seed, progress)
    return block_influences(base.model, anatomy_of(base.model.config), windows, progress).tolist()
