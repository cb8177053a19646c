"""A model cut in one line, and what a folder holds."""

import pruning
from pruning.progress import silent


def cut(base, fraction=0.25, evaluate=False, progress=silent):
    steps = [pruning.Neurons(fraction=fraction, criterion="l2", repair=False)]
    recipe = pruning.Recipe(base=base.source.name, steps=steps)
    return pruning.run(recipe, base=base, evaluate=evaluate, progress=progress)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
