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
from pruning.sharing.gguf.compare import compare
from pruning.sharing.gguf.expect import expect
from pruning.sharing.gguf.quantize import quantize
from pruning.sharing.gguf.types import check_known
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

OPTIONS_OF_OTHERS: Mapping[str, Mapping[str, Any]] = {
    "cohere2": {"num_hidden_layers": 8, "layer_types": [*3 * ["sliding_attention"], "full_attention"] * 2},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 4},
    "falcon_mamba": {"intermediate_size": 128},
    "gemma4_text": {"vocab_size_per_layer_input": len(tokenizer())},
    "gpt_oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "llama4_text": {"num_hidden_layers": 5, "attention_chunk_size": 8192},
    "mamba": {"intermediate_size": 128},
    "phi": {"num_key_value_heads": 4},
    "qwen3_5_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
        | {"mrope_section": [1, 1, 0], "mrope_interleaved": True}
    },
    "qwen3_moe": {"norm_topk_prob": True},
    "smollm3": {"num_hidden_layers": 8},
    "starcoder2": {"sliding_window": None},
}
"""What differs from the small models of these types: what llama.cpp can express."""

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
                cells = [each if isinstance(each, str) else f"{each:.3f}" for each in found]
                shown = [
                    f"({reasons.setdefault(cell, len(reasons) + 1)})" if not cell[0].isdigit() else cell
                    for cell in cells
                ]
                rows.append([family, name, *shown])
                print("  ", family, name, *shown, flush=True)
    table("the largest difference of a log-probability, or the reason", ["family", "step", *types], rows)
    for reason, number in reasons.items():
        print(f"({number}) {reason}")


def _others() -> list[str]:
    """Return the types that llama.cpp knows and the table of families does not."""
    found = []
    for name in sorted({*known_types()} - {*FAMILIES}):
        with suppress(ModelError):
            check_known(Shape.of(small_config(name, **OPTIONS_OF_OTHERS.get(name, {}))))
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
) -> list[float | str]:
    """Return for each type the largest difference, or why it is refused."""
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
            except PruningError as error:
                return [f"cannot be cut: {error}"] * len(types)
        loaded = pruning.load(str(folder))
        obstacles = gguf_types(Shape.of(loaded.model.config))
        if obstacles["f16"]:
            return [obstacles["f16"]] * len(types)
        file = Path(place) / "model.gguf"
        expected = expect(loaded.model, loaded.tokenizer, "the model", lambda _: None)
        found: list[float | str] = []
        try:
            if last := converter.convert(folder, file, "f16", {}):
                raise PruningError(f"The converter could not read the model: {last}")
            for kind in types:
                written = file
                if obstacles[kind]:
                    found.append(obstacles[kind])
                    continue
                if kind != "f16":
                    written = Path(place) / f"{kind}.gguf"
                    quantize(file, written, kind, lambda _: None)
                comparison = compare(written, expected, GGUF_TYPES[kind], lambda _: None)
                found.append(max(each.largest for each in comparison.differences))
        except PruningError as error:
            found += [str(error)] * (len(types) - len(found))
        return found
