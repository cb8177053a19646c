"""Every family that llama.cpp knows, cut by every step, in some types: right, or refused with the reason.

Small models with random weights are exported, opened by llama.cpp and compared with transformers. A cell shows the
largest difference of a log-probability, or refers to the reason below the table.
"""

import argparse
import copy
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import sqrt
from pathlib import Path
from typing import Any

import pruning
from benchmarks.common import table
from pruning import Channels, Experts, Heads, Layers, Neurons, Vocabulary, Weights
from pruning.architectures.config import known_types
from pruning.architectures.families import EXPERT, NEURON
from pruning.architectures.reasons import reason_against
from pruning.architectures.shape import Shape
from pruning.architectures.tiny_model import random_model
from pruning.errors import ModelError, PruningError
from pruning.sharing.gguf import GGUF_TYPES, gguf_types
from pruning.sharing.gguf.compare import ResultsDiffer, compare, compare_16_bits
from pruning.sharing.gguf.expect import expect
from pruning.sharing.gguf.quantize import quantize
from pruning.sharing.gguf.types import is_convertible
from tests.helpers.converter import ForkingConverter
from tests.helpers.models import FAMILIES, WITH_BOS, small_config, tiny, tokenizer

TYPES = ("f16", "q8_0", "q4_0")

SIZES = {
    "gpt2": {"n_embd": 64, "n_inner": 96, "n_layer": 3},
    "opt": {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 96, "num_hidden_layers": 3},
    "gpt_neox": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3},
}
MODERN = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32}
OPTIONS = {
    "qwen3": {"attention_bias": False},
    "gemma2": {"query_pre_attn_scalar": 32, "num_hidden_layers": 4},
    "gemma3_text": {"query_pre_attn_scalar": 32, "num_hidden_layers": 8},
    "mistral": {"sliding_window": None},
}
"""What differs from the small models of the tests: rows that divide by 32, and what llama.cpp can express.

For K-quants, whose blocks are eight times as long, the models are eight times as wide.
"""

WIDTHS = (
    *("n_embd", "n_inner", "hidden_size", "word_embed_proj_dim", "ffn_dim", "intermediate_size"),
    *("head_dim", "query_pre_attn_scalar"),
)

SCALE = 0.6
"""Of the tests' random matrices, which are so large that 16 bits round off more than they do of a trained model."""

VARIANTS = {
    "mistral, with a window": ("mistral", {"sliding_window": 16}),
    "qwen3, with biases": ("qwen3", {"attention_bias": True}),
}

OTHERS = "others"
"""Stands for the types that the table of families has no line for and llama.cpp knows."""

_SECTIONS = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    | {"mrope_section": [1, 1, 0], "mrope_interleaved": True}
}
_EACH_FOURTH = [*3 * ["sliding_attention"], "full_attention"]

OPTIONS_OF_OTHERS: Mapping[str, Mapping[str, Any]] = {
    "afmoe": {"num_hidden_layers": 4, "layer_types": _EACH_FOURTH, "mup_enabled": True},
    "cohere2": {"num_hidden_layers": 8, "layer_types": _EACH_FOURTH * 2},
    "deepseek_v32": {"index_head_dim": 64, "index_topk": 2048},
    "dots1": {"num_key_value_heads": 4},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 4},
    "falcon_mamba": {"intermediate_size": 128},
    "gemma4_text": {"vocab_size_per_layer_input": len(tokenizer())},
    "glm_moe_dsa": {"index_head_dim": 64, "index_topk": 2048},
    "gpt_oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "laguna": {
        "num_hidden_layers": 5,
        "num_attention_heads_per_layer": [4, 8, 8, 8, 4],
        "mlp_layer_types": ["dense", *4 * ["sparse"]],
        "layer_types": ["full_attention", *3 * ["sliding_attention"], "full_attention"],
    },
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "llama4_text": {"num_hidden_layers": 5, "attention_chunk_size": 8192},
    "mamba": {"intermediate_size": 128},
    "minicpm3": {"dim_model_base": 256},
    "mimo_v2_flash": {"head_dim": 24},
    "olmoe": {"num_key_value_heads": 4},
    "phi": {"num_key_value_heads": 4},
    "qwen3_5_moe_text": _SECTIONS,
    "qwen3_5_text": _SECTIONS,
    "qwen3_moe": {"norm_topk_prob": True},
    "qwen3_next": {"linear_key_head_dim": 32, "linear_value_head_dim": 32},
    "smollm3": {"num_hidden_layers": 8},
    "starcoder2": {"sliding_window": None},
}
"""What differs from the small models of these types: what llama.cpp can express."""

NOT_CUT, ROUNDED, OTHER = "–", "≈", "≠"
"""Cells for what Secateur does not cut, and files that are refused: for rounding to 16 bits alone, or not."""
SHOWN = f"0123456789{NOT_CUT}{ROUNDED}{OTHER}"
"""What begins a cell that is not a reason below the table."""
MOST_IN_ROWS = 20
"""Of more types, each has one row."""

_QUICK: dict[str, Any] = {"criterion": "l2", "repair": False}


def _steps(times: int) -> Mapping[str, Sequence[Any]]:
    """Return the steps of each row, for models that are so many times as wide."""
    neurons = Neurons(intermediate_size=64 * times, **_QUICK)
    return {
        "uncut": (),
        "layers": (Layers(layers=(1,)),),
        "heads, groups": (Heads(groups=1, repair=False),),
        "heads, queries": (Heads(queries=1, repair=False),),
        "channels": (Channels(hidden_size=32 * times, repair=False),),
        "neurons": (neurons,),
        "experts": (Experts(num_experts=4, criterion="random"),),
        "vocabulary": (Vocabulary(fraction=0.1),),
        "weights": (Weights(fraction=0.5, criterion="magnitude"),),
        "layers, neurons, vocabulary": (Layers(layers=(1,)), neurons, Vocabulary(fraction=0.1)),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--families", nargs="+", default=[*FAMILIES, *VARIANTS], help=f"their types; {OTHERS} for all others"
    )
    parser.add_argument(
        "--types", choices=[name for name in GGUF_TYPES if name != "bf16"], nargs="+", default=list(TYPES)
    )


def main(families: Sequence[str], types: Sequence[str]) -> None:
    """Print the table, and below it the reasons."""
    if OTHERS in families:
        families = [*(each for each in families if each != OTHERS), *_others()]
    types = ["f16", *(kind for kind in types if kind != "f16")]
    times = max(1, *(GGUF_TYPES[kind].multiple // 32 for kind in types))
    reasons: dict[str, int] = {}
    rows = []
    with tempfile.TemporaryDirectory() as place, ForkingConverter() as converter:
        for family in families:
            base, has_experts = _base(family, Path(place), times)
            for name, steps in _steps(times).items():
                if name == "experts" and not has_experts:
                    continue
                found = _cell(base, steps, types, Path(place) / "work", converter)
                shown = [
                    cell if cell[0] in SHOWN else f"({reasons.setdefault(cell, len(reasons) + 1)})"
                    for cell in found
                ]
                rows.append([family, name, *shown])
                print("  ", family, name, *shown, flush=True)
    title = "the largest difference of a log-probability, or the reason"
    if len({family for family, *_ in rows}) > MOST_IN_ROWS:
        table(f"{title}: {' / '.join(types)}", ["type", *_steps(times)], _by_type(rows, [*_steps(times)]))
    else:
        table(title, ["family", "step", *types], rows)
    for reason, number in reasons.items():
        print(f"({number}) {reason}")


def _by_type(rows: Sequence[Sequence[str]], steps: Sequence[str]) -> list[list[str]]:
    """Return one row for each type with a cell for each step, which holds one value if all its values are equal."""
    found: dict[str, dict[str, str]] = {}
    for family, step, *cells in rows:
        found.setdefault(family, {})[step] = cells[0] if len({*cells}) == 1 else " / ".join(cells)
    return [[family, *(cells.get(step, "") for step in steps)] for family, cells in found.items()]


def _others() -> list[str]:
    """Return the types that llama.cpp knows and the table of families does not."""
    found = []
    for name in filter(is_convertible, sorted({*known_types()} - {*FAMILIES})):
        with suppress(ModelError):
            Shape.of(small_config(name, **OPTIONS_OF_OTHERS.get(name, {})))
            found.append(name)
    return found


def _base(family: str, place: Path, times: int) -> tuple[Path, bool]:
    """Save a small model, and return its folder and whether it has experts."""
    kind, extra = VARIANTS.get(family, (family, {}))
    if kind in FAMILIES:
        sizes = SIZES.get(kind, MODERN) | OPTIONS.get(kind, {}) | extra
        model = tiny(kind, **{key: value * times if key in WIDTHS else value for key, value in sizes.items()})
    else:
        shape = Shape.of(small_config(kind, **OPTIONS_OF_OTHERS.get(kind, {})))
        if not reason_against(shape.anatomy, "neurons"):
            shape = shape.resized(NEURON, 96 * times)
        model = copy.deepcopy(random_model(shape.config))
    has_experts = EXPERT in Shape.of(model.config).anatomy.units
    for values in model.parameters():
        if values.ndim > 1:
            values.mul_(SCALE / sqrt(times))
    folder = place / family.replace(" ", "-").replace(",", "")
    model.save_pretrained(folder)
    tokenizer(kind in WITH_BOS).save_pretrained(folder)
    return folder, has_experts


def _cell(
    base: Path, steps: Sequence[Any], types: Sequence[str], work: Path, converter: ForkingConverter
) -> list[str]:
    """Return one cell for each type: the largest difference, or the reason for the refusal."""
    with tempfile.TemporaryDirectory(prefix=work.name, dir=work.parent) as place:
        folder = base
        if steps:
            try:
                recipe = pruning.Recipe(
                    base=str(base),
                    calibration=pruning.Calibration(text="general", tokens=512),
                    steps=list(steps),
                )
                folder = pruning.run(recipe, evaluate=False).save(Path(place) / "model")
            except PruningError:
                return [NOT_CUT] * len(types)
        loaded = pruning.load(str(folder))
        obstacles = gguf_types(Shape.of(loaded.model.config))
        if obstacles["f16"]:
            return [obstacles["f16"]] * len(types)
        file = Path(place) / "model.gguf"
        expected = expect(loaded.model, loaded.tokenizer, "the model", GGUF_TYPES[types[-1]], lambda _: None)
        found: list[str] = []
        try:
            if last := converter.convert(folder, file, "f16", {}):
                raise PruningError(f"The converter could not read the model: {last}")
            for kind in types:
                written = file
                if obstacles[kind]:
                    found.append(obstacles[kind])
                    continue
                if kind == "f16":
                    comparison = compare_16_bits(
                        *(file, expected, GGUF_TYPES[kind], lambda _: None),
                        lambda exact: converter.convert(folder, exact, "f32", {}),
                    )
                else:
                    written = Path(place) / f"{kind}.gguf"
                    quantize(file, written, kind, lambda _: None)
                    comparison = compare(written, expected, GGUF_TYPES[kind], lambda _: None)
                undecided = sum(each.undecided for each in comparison.differences)
                largest = f"{max(each.largest for each in comparison.differences):.3f}"
                found.append(largest + f"*{undecided}" * bool(undecided))
        except ResultsDiffer as error:
            found += [f"{ROUNDED if error.by_rounding else OTHER} {error.largest:.3f}"] * (
                len(types) - len(found)
            )
        except PruningError as error:
            found += [str(error)] * (len(types) - len(found))
        return found
