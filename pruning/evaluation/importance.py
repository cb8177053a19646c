"""How much each layer and each neuron of a model matters, as plain dictionaries."""

from transformers import PreTrainedTokenizerBase

from pruning.criteria import DEFAULT_CRITERION, Criterion
from pruning.evaluation import inspection
from pruning.loading.given import AnyModel, open_model
from pruning.progress import Reporter, bar, with_bar
from pruning.text.choice import DEFAULT_CALIBRATION, AnyCalibration, Calibration


@with_bar
def layer_importance(
    model: AnyModel,
    data: AnyCalibration | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    seed: int = 0,
    progress: Reporter = bar,
) -> dict[int, float]:
    """Measure how much each layer changes the residual stream: its block influence (ShortGPT; Men et al., 2024).

    Args:
        model: The model, as `pruning.prune` takes it.
        data: The text that it reads; by default the calibration text of new recipes.
        tokenizer: The tokenizer of a model that transformers loaded.
        seed: The seed of the text.
        progress: Is called with each stage; by default a bar on a terminal.

    Returns:
        For each layer, by its number from 0 on: 0 if it turns no token's state, at most 2.

    Raises:
        ModelError: The model cannot be used.
        RecipeError: The text is empty, or the model cannot read it.

    Example:
        >>> import pruning
        >>> importance = pruning.layer_importance("smollm2-135m", "story")
        >>> least = min(importance, key=importance.get)
        >>> pruned = pruning.prune("smollm2-135m", steps=pruning.Layers(layers=(least,)))
    """
    loaded = open_model(model, tokenizer, progress=progress)
    calibration = _calibration(data, progress)
    return dict(enumerate(inspection.layer_influences(loaded, calibration, seed, progress=progress)))


@with_bar
def neuron_importance(
    model: AnyModel,
    data: AnyCalibration | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    criterion: str | Criterion = DEFAULT_CRITERION,
    seed: int = 0,
    progress: Reporter = bar,
) -> dict[int, list[float]]:
    """Score every MLP neuron by a criterion: those with the lowest scores are the first to be pruned.

    Args:
        model: The model, as `pruning.prune` takes it.
        data: The text that it reads; by default the calibration text of new recipes.
        tokenizer: The tokenizer of a model that transformers loaded.
        criterion: The criterion, or its name.
        seed: The seed of the text, and of a criterion that draws at random.
        progress: Is called with each stage; by default a bar on a terminal.

    Returns:
        For each layer, by its number from 0 on, the score of each neuron.

    Raises:
        ModelError: The model cannot be used.
        RecipeError: The criterion is unknown, or the text is empty.

    Example:
        >>> import pruning
        >>> scores = pruning.neuron_importance("smollm2-135m", "story")
        >>> len(scores[0]) == pruning.load("smollm2-135m").model.config.intermediate_size
        True
    """
    loaded = open_model(model, tokenizer, progress=progress)
    name = criterion if isinstance(criterion, str) else criterion.key
    scores = inspection.neuron_scores(loaded, name, _calibration(data, progress), seed, progress=progress)
    return {layer: row.tolist() for layer, row in enumerate(scores)}


def _calibration(data: AnyCalibration | None, progress: Reporter) -> Calibration:
    return DEFAULT_CALIBRATION if data is None else Calibration.of(data, progress=progress)
