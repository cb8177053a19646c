"""The loss of distillation is the published formula, and hidden states are matched layer by layer."""

import pytest
import torch
from torch.nn import functional

import pruning
from pruning import Layers, Recipe, RecipeError
from pruning.architectures.lm_head import backbone
from pruning.architectures.probe import default_config, probe_config
from pruning.architectures.tiny_model import random_model
from pruning.distillation.loss import DistillationLoss, OutputHead, layer_map, relative_error
from pruning.distillation.settings import Training
from pruning.errors import ModelError
from tests.helpers.models import loaded, tiny, trained


def windows(rows, length):
    return torch.randint(320, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "qwen2"])
@pytest.mark.parametrize(("temperature", "ce_loss_weight"), [(1.0, 0.0), (2.5, 0.0), (1.5, 0.7)])
@pytest.mark.parametrize("embeddings", [False, True])
def test_loss_and_gradient_are_those_of_the_formula(family, temperature, ce_loss_weight, embeddings):
    student, teacher = tiny(family, seed=1), tiny(family, seed=2)
    student.requires_grad_(True)
    for module in (student.get_input_embeddings(), student.get_output_embeddings()):
        module.weight.requires_grad_(embeddings)
    settings = Training(
        steps=1, temperature=temperature, ce_loss_weight=ce_loss_weight, embeddings=embeddings
    )
    ids = windows(3, 70)
    names = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]

    loss = DistillationLoss(student, teacher, settings, None, torch.float32)(ids)
    grads = torch.autograd.grad(loss, parameters)

    logits, teacher_logits = student(ids).logits, teacher(ids).logits
    divergence = functional.kl_div(
        functional.log_softmax(logits / temperature, -1).flatten(0, 1),
        functional.softmax(teacher_logits / temperature, -1).flatten(0, 1),
        reduction="batchmean",
    )
    cross_entropy = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected = temperature**2 * divergence + ce_loss_weight * cross_entropy
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert any(grad.abs().max() > 0 for grad in grads)
    for name, ours, theirs in zip(names, grads, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-3, atol=1e-6, msg=lambda message, name=name: f"{name}: {message}"
        )


def test_hidden_states_add_their_mean_relative_error():
    student, teacher, ids = tiny("llama", seed=1), tiny("llama", seed=2), windows(2, 40)
    plain, matched = (
        DistillationLoss(
            student, teacher, Training(steps=1, hidden_loss_weight=weight), None, torch.float32, range(3)
        )(ids)
        for weight in (0.0, 0.5)
    )
    ours, theirs = (
        model.base_model(ids, output_hidden_states=True).hidden_states for model in (student, teacher)
    )
    errors = [
        ((one - other).norm(dim=-1) / other.norm(dim=-1)).square().mean()
        for one, other in zip(ours[1:], theirs[1:], strict=True)
    ]
    assert len(errors) == 3
    assert (matched - plain).item() == pytest.approx(0.5 * sum(errors).item() / 3, rel=1e-4)


def test_tokens_with_large_states_do_not_drown_the_others():
    states = torch.tensor([[1.0, 0.0], [1000.0, 0.0]])
    assert relative_error(states * 1.1, states).item() == pytest.approx(0.01, rel=1e-3)


def test_bfloat16_products_change_the_loss_by_little(student):
    ids = windows(2, 64)
    losses = [
        DistillationLoss(student, trained().model, Training(steps=1), None, dtype)(ids).item()
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.fixture(scope="module")
def six_layers():
    """A model whose norms are as training leaves them: no two layers alike."""
    teacher = loaded("llama", num_hidden_layers=6)
    with torch.no_grad():
        for number, layer in enumerate(teacher.model.model.layers):
            layer.input_layernorm.weight.mul_(1 + number / 10)
    return teacher


def without_layers(teacher, *layers):
    return pruning.prune(Recipe(base="tiny", steps=[Layers(layers=layers)]), teacher).model


def test_layers_are_mapped_by_their_known_origins(six_layers):
    student = without_layers(six_layers, 1, 3)
    assert layer_map(student, six_layers.model, (0, 2, 4, 5)) == (1, 3, 4, 5)
    assert layer_map(student, six_layers.model, (0, 1, 2, 3)) == (0, 1, 2, 5)


def test_layers_of_unknown_origin_are_recognized_by_their_norms(six_layers):
    student = without_layers(six_layers, 1, 3)
    assert layer_map(student, six_layers.model) == (1, 3, 4, 5)
    assert layer_map(six_layers.model, six_layers.model) == tuple(range(6))


def test_layers_that_nothing_tells_apart_are_spaced_evenly(six_layers):
    student = without_layers(six_layers, 1, 3)
    with torch.no_grad():
        student.model.layers[0].input_layernorm.weight = torch.nn.Parameter(torch.ones(32) / 3)
    assert layer_map(student, six_layers.model) == (1, 2, 4, 5)


def test_hidden_states_of_different_widths_are_refused():
    student, teacher = tiny("llama"), tiny("llama", hidden_size=48)
    with pytest.raises(RecipeError, match=r"have 32 channels, and the teacher's 48.*hidden_loss_weight to 0"):
        layer_map(student, teacher)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.0625}),
        ("gemma2", {"final_logit_softcapping": 3.0}),
        ("phi", {}),
    ],
)
def test_the_head_of_a_loss_gives_the_logits_of_the_model(model_type, options):
    model = random_model(probe_config(default_config(model_type), **options))
    ids = torch.arange(10, 18)[None]
    with torch.inference_mode():
        hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
        expected = model(input_ids=ids, use_cache=False).logits[0]
        torch.testing.assert_close(OutputHead(model, torch.float32)(hidden), expected, atol=1e-4, rtol=1e-4)


def test_a_model_that_does_more_than_a_product_at_its_head_is_not_distilled():
    model = random_model(probe_config(default_config("bert"), is_decoder=True))
    with pytest.raises(ModelError, match="cannot be distilled here"):
        OutputHead(model, torch.float32)
