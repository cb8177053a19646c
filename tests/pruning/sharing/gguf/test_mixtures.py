"""A mixture whose router is undecided is compared with what transformers computes with rounded hidden states."""

import threading
from dataclasses import replace

import pytest
import torch

import pruning
from pruning.architectures.shape import Shape
from pruning.progress import silent
from pruning.sharing.gguf import GGUF_TYPES, export_and_compare
from pruning.sharing.gguf.compare import ResultsDiffer, compare, difference
from pruning.sharing.gguf.expect import Prompt, expect
from pruning.sharing.gguf.router_ties import rounded_states
from pruning.sharing.verify import verify
from tests.helpers.models import loaded, save_type

F16 = GGUF_TYPES["f16"]


@pytest.fixture(scope="module")
def undecided(tmp_path_factory):
    """A mixture with two experts, one for each token, whose scores almost agree in the last layer."""
    folder = save_type(
        tmp_path_factory.mktemp("undecided") / "model", "mixtral", num_local_experts=2, num_experts_per_tok=1
    )
    mixture = pruning.load(str(folder))
    model = mixture.model
    last = model.config.num_hidden_layers - 1
    router = model.get_parameter(f"model.layers.{last}.mlp.gate.weight")
    with torch.no_grad():
        router[1] = router[0] * (1 + 1e-6)
    model.save_pretrained(folder)
    return folder


def test_it_is_handed_over_with_a_note_and_verified(undecided, tmp_path):
    exported = export_and_compare(undecided, tmp_path / "model.gguf")
    assert sum(each.undecided for each in exported.differences)
    assert all(each.is_within(F16) for each in exported.differences)
    assert any("rounding decides between them" in note for note in exported.notes)
    checks = {check.name: check.holds for check in verify(str(tmp_path / "model.gguf")).checks}
    assert checks["opened"]
    assert checks["log-probabilities"]


def test_another_computation_of_an_undecided_mixture_is_refused(undecided, tmp_path):
    file = tmp_path / "model.gguf"
    export_and_compare(undecided, file)
    other = pruning.load(str(undecided))
    with torch.no_grad():
        other.model.get_parameter("model.layers.1.mlp.experts.down_proj")[0, :, 0] *= -1
    changed = expect(other.model, other.tokenizer, "mixture", F16, silent)
    with pytest.raises(ResultsDiffer):
        compare(file, changed, F16, silent)


def test_only_positions_beyond_the_bound_are_compared_with_rounded_states():
    prompt = Prompt((1, 2, 3), (0, 1, 2), ((5,),) * 3, ((-1.0,), (-2.0,), (-3.0,)))
    rounded = (((-1.0,), (-2.5,), (-3.0,)), ((-1.02,), (-2.0,), (-3.5,)))
    prompt = replace(prompt, rounded=rounded)
    near = difference(prompt, [[-1.02], [-2.49], [-3.0]], F16)
    assert (near.undecided, near.positions) == (1, 3)
    assert near.largest == pytest.approx(0.02)
    far = difference(prompt, [[-1.0], [-2.25], [-3.0]], F16)
    assert (far.undecided, far.largest) == (0, pytest.approx(0.25))
    unread = difference(prompt, [[float("nan")], [-2.0], [-3.0]], F16)
    assert not unread.is_within(F16)


def test_only_mixtures_are_read_with_rounded_states(undecided):
    assert len(expect(*_parts(pruning.load(str(undecided))), "mixture", F16, silent).prompts[0].rounded) > 1
    assert not expect(*_parts(loaded("llama")), "llama", F16, silent).prompts[0].rounded


def test_states_are_rounded_for_one_thread_and_while_the_block_runs():
    model = loaded("llama").model
    ids = torch.arange(8)[None]

    def logits():
        with torch.inference_mode():
            return model(ids, use_cache=False).logits

    before, beside = logits(), []
    with rounded_states(model, Shape.of_model(model).anatomy, 2**-11, 0):
        rounded = logits()
        other = threading.Thread(target=lambda: beside.append(logits()))
        other.start()
        other.join()
    assert 0 < float((rounded - before).abs().max()) < 0.1
    assert torch.equal(beside[0], before)
    assert torch.equal(logits(), before)


def _parts(model):
    return model.model, model.tokenizer
