"""The command `importance`."""

from statistics import fmean
from typing import Annotated

import typer

from pruning.architectures.shape import Shape
from pruning.cli.options import (
    AsJson,
    CalibrationText,
    CalibrationTokens,
    Device,
    Model,
    Plot,
    Seed,
    check_picture,
    given,
)
from pruning.cli.output import print_json, reporter
from pruning.criteria import DEFAULT_CRITERION
from pruning.criteria.own import is_file_name, load_criterion
from pruning.evaluation.importance import layer_importance, neuron_importance
from pruning.evaluation.inspection import why_no_scores
from pruning.evaluation.plot import save_plot
from pruning.loading.load import load
from pruning.progress import clear_bar
from pruning.text.choice import Calibration
from pruning.text.passages import CHAT_AND_GENERAL


def importance(
    model: Model,
    criterion: Annotated[
        str, typer.Option("--criterion", help="What scores the neurons; or FILE.py:NAME, of your own.")
    ] = DEFAULT_CRITERION,
    calibration: CalibrationText = CHAT_AND_GENERAL,
    tokens: CalibrationTokens = None,
    seed: Seed = 0,
    plot: Plot = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much each layer and each neuron matters."""
    check_picture(plot)
    name = load_criterion(criterion).key if is_file_name(criterion) else criterion
    text = Calibration.named(calibration, **given(tokens=tokens))
    base = load(model, device=device, progress=reporter())
    layers = layer_importance(base, text, seed=seed, progress=reporter())
    reason = why_no_scores(Shape.of(base.model.config))
    neurons = None
    if reason is None:
        neurons = neuron_importance(base, text, criterion=name, seed=seed, progress=reporter())
    clear_bar()
    if plot is not None:
        title = f"How much each layer of {model} changes the residual stream"
        save_plot(plot, title, {"": [*layers.items()]}, "layer", "block influence", bars=True)
    if as_json:
        print_json({"layers": layers, "neurons": neurons, "criterion": name})
        return
    print(
        f"{'layer':>5}  {'influence':>9}" + (f"  mean score of its neurons ({criterion})" if neurons else "")
    )
    for layer, influence in layers.items():
        print(f"{layer:>5}  {influence:>9.4f}" + (f"  {fmean(neurons[layer]):.4g}" if neurons else ""))
    if reason:
        print(reason)
