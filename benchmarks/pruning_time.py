"""Time to prune, over the time to copy the new tensors, and OptiPFair's time over ours."""

from functools import partial

import torch

from benchmarks.common import ROUNDS, base, medians, table
from benchmarks.optipfair_baseline import calibration_seconds, prune_with_optipfair
from pruning import Calibration, Neurons, Recipe, prune
from pruning.calibration.calibrate import windows_of

FRACTIONS = (0.2, 0.5)
OURS = {
    "ours, peak_to_peak (weights alone)": {"criterion": "peak_to_peak"},
    "ours, default, no repair": {"repair": False},
    "ours, default + repair": {},
}
COPY, OPTIPFAIR = "a copy of the new tensors", "OptiPFair, default (weights alone)"


def main() -> None:
    """Time cuts of two sizes, with statistics ready, and print a table."""
    model = base().model
    windows = windows_of(base(), Calibration())
    rows = []
    for fraction in FRACTIONS:
        recipes = {
            name: Recipe(base=base().source.name, steps=[Neurons(fraction=fraction, multiple_of=1, **values)])
            for name, values in OURS.items()
        }
        # All lead to the same shapes. Run once before, so that the statistics are ready.
        *_, pruned = [prune(recipe, base()).model for recipe in recipes.values()]
        shared = {parameter.data_ptr() for parameter in model.parameters()}
        new = [parameter for parameter in pruned.parameters() if parameter.data_ptr() not in shared]
        tasks = {name: partial(prune, recipe, base()) for name, recipe in recipes.items()}
        tasks[OPTIPFAIR] = partial(prune_with_optipfair, model, fraction)
        tasks[COPY] = lambda new=new: [torch.clone(parameter) for parameter in new]
        seconds = medians(tasks)
        if fraction == FRACTIONS[0]:
            calibrating, rest = calibration_seconds(model, fraction, windows.fitting + windows.heldout)
            seconds["OptiPFair, data-driven, without its pass over the text"] = rest
            seconds["OptiPFair, data-driven, with it"] = calibrating + rest
        best = seconds["ours, default + repair"]
        rows += [
            (
                f"{fraction:.0%}",
                name,
                f"{1000 * value:,.0f} ms",
                f"{value / seconds[COPY]:.1f}",
                f"{value / best:.2f}",
            )
            for name, value in seconds.items()
        ]
    table(
        f"Pruning, statistics ready (medians of {ROUNDS} turns; data-driven OptiPFair once). OptiPFair works "
        "in place: a copy of the base is part of its time",
        ["neurons", "what", "time", "over the copy", "over ours with repair"],
        rows,
    )
