"""Prune, quantize, or both: quality against bytes on disk.

Each model is exported to GGUF, the written file is de-quantized, and the result is measured with the library's own
evaluation. The offline weights are 4-bit weights that were de-quantized, so their figures are not those of 16-bit
weights: compare at 8 and 5 bits too, and give `--model` a model of the Hub where there is one with 16-bit weights.
"""

import argparse
import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import PreTrainedModel

import pruning
from benchmarks.common import table
from pruning import Neurons, Recipe
from pruning.evaluation import perplexity
from pruning.evaluation.answers import Answers, evaluate_answers
from pruning.evaluation.answers import compare as compare_answers
from pruning.evaluation.frontier import on_frontier
from pruning.sharing.gguf import GGUF_TYPES, export
from pruning.sharing.gguf.compare import measure
from pruning.sharing.gguf.quantize import quantize
from pruning.sharing.gguf.verify import read_origin

TYPES = ("f16", "q8_0", "q5_0", "q4_0")
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""The tensors of a layer of a Llama in GGUF, and in transformers."""


@dataclass(frozen=True)
class Point:
    """One model in one type.

    Attributes:
        model: What was cut.
        type: How the file stores weights.
        bytes: The file's size.
        ratio: Its perplexity over that of the uncut model, not rounded.
        answers: Its answers; None if they were not asked for.
        llama: How far llama.cpp is from transformers with the unrounded model, on average.
    """

    model: str
    type: str
    bytes: int
    ratio: float
    answers: Answers | None
    llama: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--model", default="smollm2-135m", help="a model of the Llama family")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.2, 0.4])
    parser.add_argument("--types", choices=TYPES, nargs="+", default=list(TYPES))
    parser.add_argument(
        "--tokens", type=int, default=None, help="measure perplexity on this number of tokens"
    )
    parser.add_argument("--questions", type=int, default=None, help="ask this number; 0 asks none")


def main(
    model: str, fractions: Sequence[float], types: Sequence[str], tokens: int | None, questions: int | None
) -> None:
    """Measure every model in every type, and print which are on the frontier."""
    base = pruning.load(model)
    reference = perplexity.evaluate(base, tokens=tokens).overall.value
    before = None if questions == 0 else evaluate_answers(base, questions=questions)
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as place:
        for name, cut in _models(base, fractions):
            for point in _measure(name, cut, Path(place), types, reference, before, tokens, questions):
                points.append(point)
                print("  ", *_row(point, points, before), flush=True)
    table(
        f"{model}, de-quantized from the written files; perplexity unrounded and uncut: {reference:.2f}",
        [
            "model",
            "type",
            "MB",
            "perplexity, ratio",
            "frontier",
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
    base: pruning.LoadedModel, fractions: Sequence[float]
) -> Iterator[tuple[str, pruning.LoadedModel | pruning.Pruned]]:
    yield "uncut", base
    for fraction in fractions:
        recipe = Recipe(base=base.source.name, steps=[Neurons(fraction=fraction, multiple_of=32)])
        yield f"{fraction:.0%} of the neurons", pruning.prune(recipe, base, share_memory=True)


def _measure(
    name: str,
    model: pruning.LoadedModel | pruning.Pruned,
    place: Path,
    types: Sequence[str],
    reference: float,
    before: Answers | None,
    tokens: int | None,
    questions: int | None,
) -> Iterator[Point]:
    key = name.replace(" ", "-").replace("%", "")
    folder, whole = place / key, place / f"{key}.gguf"
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    export(folder, whole, "f16")
    for kind in types:
        file = whole if kind == "f16" else place / f"{key}-{kind}.gguf"
        if file != whole:
            quantize(whole, file, kind, lambda _: None)
        read = replace_weights(model.model, file)
        rounded = replace(model, model=read)
        ratio = perplexity.evaluate(rounded, tokens=tokens).overall.value / reference
        answers = None if before is None else evaluate_answers(rounded, questions=questions)
        origin = read_origin(file)
        assert origin.prompt is not None
        off = measure(file, origin.prompt, torch.get_num_threads())
        yield Point(name, GGUF_TYPES[kind].name, file.stat().st_size, ratio, answers, off.mean)


def replace_weights(model: PreTrainedModel, file: Path) -> PreTrainedModel:
    """Return a copy of a Llama with the weights of a GGUF file, de-quantized."""
    read = copy.deepcopy(model)
    tensors = dict(read.named_parameters())
    for tensor in GGUFReader(file).tensors:
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        name, heads = _name_of(tensor.name), read.config.num_attention_heads
        if ".k_proj." in name:
            heads = read.config.num_key_value_heads
        if (
            ".q_proj." in name or ".k_proj." in name
        ):  # The converter reorders what the rotary embedding reads.
            values = values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        off = (values - tensors[name]).abs().max() / tensors[name].abs().max()
        assert off < 0.2, f"{name} is another tensor: off by {off:.2f} of its largest value"
        tensors[name].copy_(values)
    return read


def _name_of(name: str) -> str:
    whole: Mapping[str, str] = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in whole:
        return whole[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{suffix}"


def _row(point: Point, points: Sequence[Point], before: Answers | None) -> list[object]:
    place = points.index(point)
    efficient = on_frontier([(each.bytes, each.ratio) for each in points])
    row: list[object] = [point.model, point.type, f"{point.bytes / 1e6:.0f}", f"{point.ratio:.2f}"]
    row.append("yes" if efficient[place] else "")
    if before is None or point.answers is None:
        return [*row, "not asked", "", f"{point.llama:.3f}"]
    lost = [
        -(compare_answers(before, each.answers).kept.share or 0.0) if each.answers else 1.0 for each in points
    ]
    efficient = on_frontier([(each.bytes, loss) for each, loss in zip(points, lost, strict=True)])
    kept = compare_answers(before, point.answers).kept
    shown = f"{kept.share or 0:.0%} of {kept.items} ({kept.low:.0%} to {kept.high:.0%})"
    return [*row, shown, "yes" if efficient[place] else "", f"{point.llama:.3f}"]
