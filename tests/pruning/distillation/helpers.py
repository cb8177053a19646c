"""What the tests of distillation share."""

import torch

from pruning.distillation.progress import TrainingProgress

QUICK = {"batch": 4, "window": 32, "learning_rate": 3e-3, "num_evals": 4, "precision": "float32"}
"""Settings of a training that takes no time on a tiny model."""


def copy_of(model):
    """The values of a model's tensors, by name."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(one, other):
    """Assert that two models or copies have the same values, bit for bit."""
    one, other = (each if isinstance(each, dict) else each.state_dict() for each in (one, other))
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


def recorder(events):
    """A reporter that appends the training's own events to a list."""
    return lambda event: events.append(event) if isinstance(event, TrainingProgress) else None
