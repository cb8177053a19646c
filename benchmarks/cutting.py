"""Time to cut, over the time to copy the bytes of the tensors that are new."""

import statistics
import time

import torch

from benchmarks.common import base, table
from pruning import Neurons, Recipe, prune

ROUNDS = 5


def main() -> None:
    model = base()
    shared = {p.data_ptr() for p in model.model.parameters()}
    rows = []
    for fraction in (0.2, 0.5):
        for criterion, repair in (("ppm", False), ("activation", False), ("activation", True)):
            step = Neurons(fraction=fraction, criterion=criterion, repair=repair)
            recipe = Recipe(base=model.source.name, steps=[step])
            pruned = prune(recipe, model)
            new = [p for p in pruned.model.parameters() if p.data_ptr() not in shared]
            cuts, copies = [], []
            for _ in range(ROUNDS):
                start = time.perf_counter()
                prune(recipe, model)
                cuts.append(time.perf_counter() - start)
                start = time.perf_counter()
                copied = [torch.clone(p) for p in new]
                copies.append(time.perf_counter() - start)
                del copied
            cut, copy = statistics.median(cuts), statistics.median(copies)
            name = criterion + (" + repair" if repair else "")
            rows.append((f"{fraction:.0%}", name, f"{cut:.2f} s", f"{copy:.2f} s", f"{cut / copy:.1f}"))
    table(
        "Cutting, statistics ready (medians of five, alternating)",
        ["neurons", "criterion", "cut", "copy of the new tensors", "ratio"],
        rows,
    )
