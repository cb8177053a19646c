"""Time to cut, over the time to copy the bytes of the tensors that are new, and the peer's over ours."""

from functools import partial

import torch

from benchmarks.common import ROUNDS, base, medians, table
from benchmarks.peer import calibration_seconds, pruned_by_peer
from pruning import Calibration, Neurons, Recipe, prune
from pruning.calibration import calibrate as calibration

FRACTIONS = (0.2, 0.5)
OURS = {
    "ours, ppm (weights alone)": {"criterion": "peak_to_peak"},
    "ours, default, no repair": {"repair": False},
    "ours, default + repair": {},
}
COPY, PEER = "a copy of the new tensors", "optipfair, default (weights alone)"


def main() -> None:
    model = base().model
    windows = calibration.windows_of(base(), Calibration())
    rows = []
    for fraction in FRACTIONS:
        recipes = {
            name: Recipe(base=base().source.name, steps=[Neurons(fraction=fraction, **values)])
            for name, values in OURS.items()
        }
        # All cut the same shapes. Made once before, so that the statistics are ready.
        *_, pruned = [prune(recipe, base()).model for recipe in recipes.values()]
        shared = {parameter.data_ptr() for parameter in model.parameters()}
        new = [parameter for parameter in pruned.parameters() if parameter.data_ptr() not in shared]
        tasks = {name: partial(prune, recipe, base()) for name, recipe in recipes.items()}
        tasks[PEER] = partial(pruned_by_peer, model, fraction)
        tasks[COPY] = lambda new=new: [torch.clone(parameter) for parameter in new]
        seconds = medians(tasks)
        if fraction == FRACTIONS[0]:
            reading, cutting = calibration_seconds(model, fraction, windows.fitting + windows.heldout)
            seconds["optipfair, data-driven, without its pass over the text"] = cutting
            seconds["optipfair, data-driven, with it"] = reading + cutting
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
        f"Cutting, statistics ready (medians of {ROUNDS} turns; data-driven optipfair once). The peer works "
        "in place: a copy of the base is part of its time",
        ["neurons", "what", "time", "over the copy", "over ours with repair"],
        rows,
    )
