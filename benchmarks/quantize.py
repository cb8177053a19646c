"""Prune, quantize, or both: quality against bytes on disk.

Each model is exported to GGUF in several types. Its weights as the file holds them are measured with the library's own
evaluation, and llama.cpp reads the file as a check. The offline weights are 4-bit weights that were de-quantized, so
their figures are not those of 16-bit weights: compare at 8 and 5 bits too, and give `--model` a model of the Hub if the
machine reaches the Hub.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

import pruning
from benchmarks.common import table
from pruning import Distillation, Neurons, Recipe
from pruning.evaluation import perplexity
from pruning.evaluation.answers import Answers, evaluate_answers
from pruning.evaluation.answers import compare as compare_answers
from pruning.evaluation.frontier import on_frontier
from pruning.evaluation.skills import measure_skills, panel
from pruning.progress import silent
from pruning.sharing.gguf import GGUF_TYPES, export
from pruning.sharing.gguf.compare import measure
from pruning.sharing.gguf.quantize import quantize, round_weights
from pruning.sharing.gguf.verify import read_origin

TYPES = ("f16", "q8_0", "q5_0", "q4_0")


@dataclass(frozen=True)
class Point:
    """One model in one type.

    Attributes:
        model: What was done to it.
        type: A key of `GGUF_TYPES`.
        bytes: The file's size.
        ratio: Its perplexity over that of the uncut model, not rounded.
        accuracy: Its accuracy in the skills; None if they were not measured.
        answers: Its answers; None if they were not asked for.
        llama: How far llama.cpp is from transformers with the unrounded model, on average.
    """

    model: str
    type: str
    bytes: int
    ratio: float
    accuracy: float | None
    answers: Answers | None
    llama: float


@dataclass(frozen=True)
class Panels:
    """What each model is measured on.

    Attributes:
        tokens: Tokens of the five genres; None for all.
        questions: How many questions are asked; None for all.
        skills: Whether skills are measured.
    """

    tokens: int | None
    questions: int | None
    skills: bool


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.2, 0.4])
    parser.add_argument("--distill", type=float, default=5, help="minutes, after the largest cut; 0 for none")
    parser.add_argument("--types", choices=TYPES, nargs="+", default=list(TYPES))
    parser.add_argument(
        "--tokens", type=int, default=None, help="measure perplexity on this number of tokens"
    )
    parser.add_argument("--questions", type=int, default=None, help="ask this number; 0 asks none")
    parser.add_argument("--skills", action=argparse.BooleanOptionalAction, default=True)


def main(
    model: str,
    fractions: Sequence[float],
    distill: float,
    types: Sequence[str],
    tokens: int | None,
    questions: int | None,
    skills: bool,
) -> None:
    """Measure every model in every type, and print which are on the frontier."""
    panels = Panels(tokens, questions, skills)
    base = pruning.load(model)
    reference = perplexity.evaluate(base, tokens=tokens).overall.value
    before = None if questions == 0 else evaluate_answers(base, questions=questions)
    if before is not None and not before.good:
        print("None of the answers of the uncut model is good, so they are not compared.")
        before, panels = None, replace(panels, questions=0)
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as place:
        for name, cut in _models(base, fractions, distill):
            for point in _measure(name, cut, Path(place), types, reference, panels):
                points.append(point)
                print("  ", *_row(point, points, before), flush=True)
    table(
        f"{model}; perplexity uncut and unrounded: {reference:.2f}",
        [
            "model",
            "type",
            "MB",
            "perplexity, ratio",
            "frontier",
            "skills",
            "good answers kept",
            "frontier",
            "llama.cpp",
        ],
        [_row(point, points, before) for point in sorted(points, key=lambda point: point.bytes)],
    )
    print(
        "The offline weights are de-quantized 4-bit weights: these are not the figures of a model's 16-bit weights."
    )


def _models(
    base: pruning.LoadedModel, fractions: Sequence[float], distill: float
) -> Iterator[tuple[str, pruning.LoadedModel | pruning.Pruned]]:
    yield "uncut", base
    run = partial(pruning.prune, tokenizer=base, share_memory=True, progress=silent)
    for fraction in fractions:
        cut = Neurons(fraction=fraction, multiple_of=32)
        yield f"{fraction:.0%} of the neurons", run(Recipe(base=base.source.name, steps=(cut,)))
    if distill and fractions:
        steps = (Neurons(fraction=max(fractions), multiple_of=32), Distillation(minutes=distill))
        name = f"{max(fractions):.0%}, distilled for {distill:g} minutes"
        yield name, run(Recipe(base=base.source.name, steps=steps))


def _measure(
    name: str,
    model: pruning.LoadedModel | pruning.Pruned,
    place: Path,
    types: Sequence[str],
    reference: float,
    panels: Panels,
) -> Iterator[Point]:
    key = name.replace(" ", "-").replace("%", "").replace(",", "")
    folder, whole = place / key, place / f"{key}.gguf"
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    export(folder, whole, "f16")
    origin = read_origin(whole)
    assert origin.prompt is not None
    for type in types:
        file = whole if type == "f16" else place / f"{key}-{type}.gguf"
        if file != whole:
            quantize(whole, file, type, silent)
        rounded = replace(model, model=round_weights(model.model, type))
        yield Point(
            name,
            type,
            file.stat().st_size,
            perplexity.evaluate(rounded, tokens=panels.tokens).overall.value / reference,
            measure_skills(rounded, panel("reported")).overall.accuracy if panels.skills else None,
            None if panels.questions == 0 else evaluate_answers(rounded, questions=panels.questions),
            measure(file, origin.prompt, GGUF_TYPES[type], torch.get_num_threads()).mean,
        )


def _row(point: Point, points: Sequence[Point], before: Answers | None) -> list[object]:
    place = points.index(point)
    efficient = on_frontier([(each.bytes, each.ratio) for each in points])
    row: list[object] = [point.model, GGUF_TYPES[point.type].name, f"{point.bytes / 1e6:.0f}"]
    row += [f"{point.ratio:.2f}", "yes" if efficient[place] else ""]
    row.append("" if point.accuracy is None else f"{point.accuracy:.3f}")
    if before is None or point.answers is None:
        return [*row, "not asked", "", f"{point.llama:.3f}"]
    lost = [
        -(compare_answers(before, each.answers).kept.share or 0.0) if each.answers else 1.0 for each in points
    ]
    efficient = on_frontier([(each.bytes, loss) for each, loss in zip(points, lost, strict=True)])
    kept = compare_answers(before, point.answers).kept
    shown = f"{kept.share or 0:.0%} of {kept.items} ({kept.low:.0%} to {kept.high:.0%})"
    return [*row, shown, "yes" if efficient[place] else "", f"{point.llama:.3f}"]
