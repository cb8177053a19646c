"""What a user is handed can be trained as any model, and its base does not change."""

import pytest
import torch

from pruning import Calibration, PruningError, Recipe, prune, run
from pruning.steps import STEPS
from tests.helpers.models import FAMILIES, folder_of, loaded
from tests.pruning.steps.samples import SAMPLES


def train(model):
    """Take three steps on a few random tokens."""
    ids = torch.randint(model.config.vocab_size, (1, 16), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model.train()(ids, labels=ids).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("step", STEPS)
def test_training_a_pruned_model_does_not_change_its_base(family, step):
    base = loaded(family)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    recipe = Recipe(
        base=str(folder_of(family)),
        calibration=Calibration(text="story", tokens=600, window=128),
        steps=SAMPLES[step].alone[:1],
    )
    try:
        pruned = prune(recipe, base)
    except PruningError as refusal:
        pytest.skip(f"{family}: {refusal}")
    untrained = {name: value.clone() for name, value in pruned.model.named_parameters()}
    train(pruned.model)
    assert any(not torch.equal(value, untrained[name]) for name, value in pruned.model.named_parameters())
    for name, value in base.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(value.requires_grad for value in base.model.parameters())


def test_memory_is_shared_only_if_asked_for():
    base = loaded("llama")
    recipe = Recipe(base=str(folder_of("llama")), steps=SAMPLES["layers"].alone[:1])
    places = {value.data_ptr() for value in base.model.parameters()}
    for make in (prune, run):
        more = {"evaluate": False} if make is run else {}
        for shared in (False, True):
            model = make(recipe, base=base, share_memory=shared, **more).model
            assert all((value.data_ptr() in places) == shared for value in model.parameters())


def test_tied_embeddings_stay_tied_and_are_trained_together():
    model = prune(
        Recipe(base=str(folder_of("llama")), steps=SAMPLES["neurons"].alone[:1]), loaded("llama")
    ).model
    tied = model.config.tie_word_embeddings
    train(model)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
