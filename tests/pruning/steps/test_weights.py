"""Single weights: which become zero, by hand; what stays as it was; and what is refused."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import pruning
from pruning import Channels, Heads, Layers, Neurons, Recipe, RecipeError, Weights
from pruning.architectures.anatomy import anatomy_of
from pruning.architectures.shape import Shape
from pruning.calibration.calibrate import windows_of
from pruning.calibration.statistics import moments_of
from pruning.steps.weights import projections
from pruning.text.tokens import Windows
from tests.helpers.models import FAMILIES, folder_of, loaded, matrices, output_projection, save_tiny

TEXT = pruning.Calibration(tokens=1280, window=64)
IDS = torch.arange(3, 23)[None]
PROJECTIONS = {"gpt2": 4, "opt": 6, "gpt_neox": 4, "phi3": 4}
"""Of each layer, counted by hand; 7 in the other families."""


def recipe(*steps):
    return Recipe(base="tiny", calibration=TEXT, steps=steps)


def thinned(base, **values):
    return pruning.prune(recipe(Weights(**values)), base, share_memory=True)


def inputs_of(base, module):
    """The norm of each input of a projection over the calibration text, read window by window."""
    total = 0

    def see(module, inputs):
        nonlocal total
        total = total + inputs[0].reshape(-1, inputs[0].shape[-1]).square().sum(dim=0)

    handle = base.model.get_submodule(module).register_forward_pre_hook(see)
    windows = windows_of(base, TEXT)
    for window in windows.fitting + windows.heldout:
        base.model.base_model(input_ids=window[None])
    handle.remove()
    return total.sqrt()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_projection_of_attention_and_mlp_and_nothing_else(family):
    base = loaded(family)
    before = {name: value.clone() for name, value in base.model.named_parameters()}
    pruned = thinned(base, fraction=0.5).model
    touched = []
    for name, after in pruned.named_parameters():
        if (
            after.ndim == 2
            and "embed" not in name
            and not name.endswith(("wte.weight", "wpe.weight", "lm_head.weight"))
        ):
            touched.append(name)
            assert int((after == 0).sum()) == after.numel() // 2 or after.shape[-1] % 2
            assert torch.equal(after[after != 0], before[name][after != 0])
        else:
            assert after.data_ptr() == base.model.get_parameter(name).data_ptr()
    assert len(touched) == PROJECTIONS.get(family, 7) * base.model.config.num_hidden_layers
    assert touched == [spec.name for spec in projections(anatomy_of(base.model.config))]
    assert all(torch.equal(value, before[name]) for name, value in base.model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_wanda_compares_within_each_output(family):
    base = loaded(family)
    pruned = thinned(base, fraction=0.4).model
    seen = inputs_of(base, output_projection(base.model, 1))
    whole, left = matrices(base.model, 1)[1], matrices(pruned, 1)[1]
    gone = int(0.4 * whole.shape[1])
    for row, after in zip(whole, left, strict=True):
        order = (row.abs() * seen).argsort()
        assert (after[order[:gone]] == 0).all()
        assert torch.equal(after[order[gone:]], row[order[gone:]])


@pytest.mark.parametrize("family", FAMILIES)
def test_magnitude_compares_within_each_matrix(family):
    base = loaded(family)
    pruned = thinned(base, fraction=0.3, criterion="magnitude").model
    for whole, left in zip(base.model.parameters(), pruned.parameters(), strict=True):
        if int((left == 0).sum()):
            gone = int(0.3 * whole.numel())
            smallest = whole.abs().flatten().sort().values
            assert torch.equal(left != 0, whole.abs() > smallest[gone - 1])


@pytest.mark.parametrize("criterion", ["wanda", "magnitude"])
@pytest.mark.parametrize(("pattern", "among"), [("2:4", 4), ("4:8", 8)])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mistral"])
def test_patterns_run_along_the_inputs(family, pattern, among, criterion):
    base = loaded(family)
    pruned = thinned(base, pattern=pattern, criterion=criterion).model
    for layer in range(pruned.config.num_hidden_layers):
        reads, write = matrices(pruned, layer)
        for matrix in (*reads, write):
            runs = (matrix == 0).reshape(matrix.shape[0], -1, among)
            assert (runs.sum(dim=2) == among // 2).all()
    if criterion == "magnitude":
        whole = matrices(base.model, 0)[1].abs().reshape(32, -1, among)
        left = matrices(pruned, 0)[1].reshape(32, -1, among)
        assert (whole.where(left == 0, 0).amax(2) < whole.where(left != 0, torch.inf).amin(2)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_seen_as_if_read_at_once(family):
    base = loaded(family)
    sites = [spec.module for spec in projections(anatomy_of(base.model.config))]
    windows = Windows(tuple(torch.randint(3, 300, (4, 32))), tuple(torch.randint(3, 300, (2, 32))))
    moments = moments_of(base.model, sites, windows)
    seen = {}
    handles = [
        base.model.get_submodule(site).register_forward_pre_hook(
            lambda module, inputs, site=site: seen.update({site: inputs[0]})
        )
        for site in sites
    ]
    base.model.base_model(input_ids=torch.stack(windows.fitting + windows.heldout), use_cache=False)
    for handle in handles:
        handle.remove()
    for site in sites:
        square = seen[site].reshape(6 * 32, -1).square().mean(dim=0)
        torch.testing.assert_close(moments[site].square, square, rtol=1e-4, atol=1e-6)


def test_of_equals_the_first_stay():
    base = loaded("llama")
    weight = base.model.model.layers[0].mlp.up_proj.weight
    values = weight.clone()
    try:
        weight.copy_(values.sign())
        left = thinned(base, pattern="2:4", criterion="magnitude").model.model.layers[0].mlp.up_proj.weight
        assert torch.equal(left.view(-1, 4)[:, :2], weight.view(-1, 4)[:, :2])
        assert not left.view(-1, 4)[:, 2:].any()
    finally:
        weight.copy_(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zeros_are_exact_in_the_file_and_the_shape_is_the_same(dtype, tmp_path):
    base = pruning.load(str(save_tiny(tmp_path / "base", "llama", dtype)))
    pruned = thinned(base, fraction=0.5)
    report = pruned.report
    assert report.after.parameters == report.before.parameters
    assert report.after.bytes == report.before.bytes
    assert pruned.model.config.to_dict() | {"dtype": None} == base.model.config.to_dict() | {"dtype": None}
    pruned.save(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for spec in projections(anatomy_of(base.model.config)):
        tensor = stored[spec.name]
        assert tensor.dtype == dtype
        assert int((tensor == 0).sum()) == tensor.numel() // 2
        assert not tensor[tensor == 0].signbit().any()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(again(IDS).logits, pruned.model.float()(IDS).logits)


def test_the_report_counts_the_zeros():
    pruned = thinned(loaded("llama"), fraction=0.5)
    notes = {note.component: note for note in pruned.report.notes[0]}
    zeros = sum(int((parameter == 0).sum()) for parameter in pruned.model.parameters())
    assert sum(note.zeros for note in notes.values()) == zeros > 0
    assert {name: note.parameters for name, note in notes.items()} == {
        name: size for name, size in pruned.report.after.components.items() if size
    }
    assert notes["embeddings"].sparsity == notes["norms"].sparsity == 0
    # Biases stay as they are.
    assert 0.45 < notes["mlp"].sparsity < 0.5
    assert "no smaller" in Weights.warning


@pytest.mark.parametrize(
    "later",
    [
        Neurons(fraction=0.3),
        Heads(groups=1),
        Layers(count=1),
        Channels(hidden_size=24),
        Weights(fraction=0.6),
    ],
)
def test_nothing_can_follow(later):
    with pytest.raises(RecipeError, match=r"No step can follow the step weights: a later cut would break"):
        recipe(Weights(fraction=0.5), later).check(Shape.of(loaded("llama").model.config))


def test_a_pattern_needs_inputs_that_it_divides():
    shape = Shape.of(loaded("mistral").model.config)
    with pytest.raises(RecipeError, match=r"down_proj.weight has 53 inputs, not a multiple of 4"):
        Weights(pattern="2:4").reshape(shape)
    narrow = Neurons(intermediate_size=33, multiple_of=8).reshape(shape)
    assert Weights(pattern="4:8").reshape(narrow) == narrow


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "a fraction or a pattern"),
        ({"fraction": 0.3, "pattern": "2:4"}, "sets half of the weights to zero"),
        ({"fraction": 1.0}, "greater than 0 and less than 1"),
        ({"fraction": [0.5, 0.2]}, "the same share"),
        ({"pattern": "1:4"}, "pattern"),
        ({"fraction": 0.5, "criterion": "taylor"}, "criterion"),
    ],
)
def test_senseless_settings_are_refused(values, says):
    with pytest.raises(RecipeError, match=says):
        Weights(**values)


def test_half_and_a_pattern_of_half_is_the_pattern():
    assert Weights(fraction=0.5, pattern="2:4") == Weights(pattern="2:4")


def test_too_small_a_share_is_refused():
    with pytest.raises(RecipeError, match="sets none of the 32 weights"):
        Weights(fraction=0.02).reshape(Shape.of(loaded("llama").model.config))


@settings(max_examples=12, deadline=None)
@given(fraction=st.floats(0.05, 0.99), criterion=st.sampled_from(["wanda", "magnitude"]))
def test_no_more_becomes_zero_than_asked(fraction, criterion):
    base = loaded("gpt_neox")
    pruned = thinned(base, fraction=fraction, criterion=criterion).model
    for layer in range(2):
        for matrix in (*matrices(pruned, layer)[0], matrices(pruned, layer)[1]):
            among = matrix.shape[1] if criterion == "wanda" else matrix.numel()
            assert int((matrix == 0).sum()) == int(fraction * among) * (matrix.numel() // among)


@pytest.mark.parametrize(
    ("flags", "step"),
    [
        (["--weights", "50%"], {"step": "weights", "fraction": 0.5, "pattern": "any", "criterion": "wanda"}),
        (
            ["--weights", "2:4", "--weights-criterion", "magnitude"],
            {"step": "weights", "pattern": "2:4", "criterion": "magnitude"},
        ),
        (
            ["--channels", "20%", "--no-repair"],
            {"step": "channels", "fraction": 0.2, "criterion": "energy", "repair": False},
        ),
        (
            ["--hidden-size", "24", "--channel-criterion", "minitron"],
            {
                "step": "channels",
                "hidden_size": 24,
                "criterion": "minitron",
                "repair": True,
            },
        ),
    ],
)
def test_the_shell_asks_for_weights_and_channels(flags, step, monkeypatch, capsys):
    from pruning.cli import main

    monkeypatch.setattr("sys.argv", ["pruning", "preview", str(folder_of("llama")), *flags, "--json"])
    assert main() == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["steps"] == [step]
