"""OptiPFair 0.4.2, the closest comparable library, used as its documentation describes.

https://peremartra.github.io/optipfair: `MAW` is its default criterion, from weights alone; a `dataloader`
weights it by activations, its best mode. It prunes in place, so the base is copied first.
"""

import copy
import logging
import time
from collections.abc import Sequence
from unittest.mock import patch

import torch
from transformers import PreTrainedModel

from benchmarks.common import Unavailable

try:
    import optipfair
    from optipfair.pruning import mlp_glu
except ImportError:
    raise Unavailable(
        "this benchmark compares with OptiPFair, which is not installed; "
        "run `pip install -r requirements-bench.txt`."
    ) from None

logging.getLogger("optipfair").setLevel(logging.WARNING)


def prune_with_optipfair(
    base: PreTrainedModel, fraction: float, windows: Sequence[torch.Tensor] | None = None
) -> PreTrainedModel:
    """Return a copy of the base without that fraction of its neurons; data-driven if `windows` are given."""
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


def remove_layers_with_optipfair(
    base: PreTrainedModel, count: int, windows: Sequence[torch.Tensor]
) -> PreTrainedModel:
    """Return a copy of the base without its least important layers, as OptiPFair's documentation chooses them."""
    model = copy.deepcopy(base)
    batches = [
        {"input_ids": window[None], "attention_mask": torch.ones_like(window[None])} for window in windows
    ]
    scores = optipfair.analyze_layer_importance(model, batches, show_progress=False)
    return optipfair.prune_model(
        model,
        pruning_type="DEPTH",
        layer_indices=sorted(scores, key=scores.__getitem__)[:count],
        show_progress=False,
    )


def calibration_seconds(
    base: PreTrainedModel, fraction: float, windows: Sequence[torch.Tensor]
) -> tuple[float, float]:
    """Measure the seconds of a data-driven cut: of its pass over the text, and of all the rest."""
    passes = []

    def timed(*arguments: object, **options: object) -> None:
        start = time.perf_counter()
        pass_over_text(*arguments, **options)
        passes.append(time.perf_counter() - start)

    pass_over_text = mlp_glu.run_calibration_forward_passes
    start = time.perf_counter()
    with patch.object(mlp_glu, "run_calibration_forward_passes", timed):
        prune_with_optipfair(base, fraction, windows)
    return sum(passes), time.perf_counter() - start - sum(passes)
