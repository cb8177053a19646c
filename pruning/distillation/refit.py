"""The text for the refit before a training by minutes."""

from pruning.distillation.data import TrainingTokens
from pruning.distillation.settings import Training
from pruning.text.tokens import Windows

SHARE = 0.4
"""The share of a training by minutes in which the layers are refitted, before the optimizer starts."""

PASSES = 4
"""Forward passes that take about as long as a refit of all layers on the same text."""

MOST_TOKENS = 24_576
"""The most tokens that a refit reads; more of them gained nothing that a person would see."""

FEWEST_TOKENS = 2048
"""The fewest tokens that a refit reads; fewer do not determine a layer's weights."""

HELDOUT_WINDOWS = 2
"""Held-out windows that decide how far each layer is refitted: each layer reads them several times."""


def refit_windows(data: TrainingTokens, training: Training, seconds: float, seed: int) -> Windows | None:
    """Choose as much text for a refit as there is time to read.

    Args:
        data: The tokens that the student is trained and evaluated on.
        training: The settings.
        seconds: How long one evaluation of the student takes.
        seed: Seed of the order of the windows.

    Returns:
        The windows, or None if the training has no minutes, or too few for a refit.
    """
    if training.minutes is None:
        return None
    speed = sum(map(len, data.heldout)) / (PASSES * seconds)
    tokens = min(MOST_TOKENS, SHARE * 60 * training.minutes * speed)
    if tokens < FEWEST_TOKENS:
        return None
    fitting = data.windows(range(int(tokens / training.window)), training.window, seed)
    return Windows(tuple(fitting), data.heldout[:: max(1, len(data.heldout) // HELDOUT_WINDOWS)])
