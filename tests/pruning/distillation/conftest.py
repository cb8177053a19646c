"""Fixtures of the tests of distillation: a trained model, the same without most of its neurons, and text."""

import pytest
import torch

import pruning
from pruning import Neurons, Recipe
from pruning.distillation.data import TrainingTokens
from pruning.text.passages import GENRES, passage
from pruning.text.tokens import token_ids
from tests.helpers.models import trained


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More threads gain nothing on models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def student():
    """The trained model without most of its neurons."""
    step = Neurons(fraction=0.9, criterion="random")
    return pruning.prune(Recipe(base="tiny", steps=[step]), trained(), share_memory=True).model


@pytest.fixture(scope="module")
def data():
    base = trained()
    text = "\n\n".join(passage(genre, "calibration") for genre in GENRES)
    tokens = token_ids(base.model, base.tokenizer, text)
    return TrainingTokens(tokens[:8000], (tokens[8000:8256], tokens[8256:8512]), tokens[:0])
