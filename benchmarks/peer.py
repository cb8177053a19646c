"""The best comparable library, optipfair, as its documentation says to use it.

https://peremartra.github.io/optipfair: `MAW` is its default criterion, of weights alone; with a
`dataloader` it is weighed by activations, its best mode. It works in place, so the base is copied.
"""

import copy
import logging
import time
from collections.abc import Sequence
from unittest.mock import patch

import optipfair
import torch
from optipfair.pruning import mlp_glu
from transformers import PreTrainedModel

logging.getLogger("optipfair").setLevel(logging.WARNING)


def pruned_by_peer(
    base: PreTrainedModel, fraction: float, windows: Sequence[torch.Tensor] | None = None
) -> PreTrainedModel:
    """A copy of the base without that share of its neurons; data-driven where there are windows."""
    model = copy.deepcopy(base)
    loader = None
    if windows is not None:
        loader = [
            {"input_ids": window[None], "attention_mask": torch.ones_like(window[None])} for window in windows
        ]
    return optipfair.prune_model(
        model,
        neuron_selection_method="MAW",
        pruning_percentage=100 * fraction,
        dataloader=loader,
        show_progress=False,
    )


def calibration_seconds(
    base: PreTrainedModel, fraction: float, windows: Sequence[torch.Tensor]
) -> tuple[float, float]:
    """Seconds of a data-driven cut: of its pass over the text, and of all the rest."""
    read = []

    def timed(*arguments, **options):
        start = time.perf_counter()
        pass_over_text(*arguments, **options)
        read.append(time.perf_counter() - start)

    pass_over_text = mlp_glu.run_calibration_forward_passes
    start = time.perf_counter()
    with patch.object(mlp_glu, "run_calibration_forward_passes", timed):
        pruned_by_peer(base, fraction, windows)
    return sum(read), time.perf_counter() - start - sum(read)
