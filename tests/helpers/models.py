"""Real transformers models, small enough to build in milliseconds, for every family that can be pruned.

A new family needs one entry in `CONFIGS`, and one in `_MLPS` if its MLP is not named and laid out as Llama's.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import pruning
from pruning.architectures.probe import default_config, probe_config
from pruning.architectures.tiny_model import random_model
from pruning.text.passages import GENRES, passage

try:
    import fcntl
except ImportError:  # Windows has no fcntl: there each worker may train for itself.
    fcntl = None

BOS, EOS = "<s>", "</s>"
VOCABULARY = 320
PROMPT = "The old man walked to the"

_MODERN = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
}

CONFIGS = {
    "gpt2": {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 1024},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
    },
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    },
    "llama": _MODERN
    | {"num_hidden_layers": 3, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "mistral": _MODERN | {"intermediate_size": 53, "sliding_window": 16, "tie_word_embeddings": False},
    "qwen2": _MODERN | {"tie_word_embeddings": True, "vocab_size": 328},
    "qwen3": _MODERN | {"head_dim": 12, "attention_bias": True, "tie_word_embeddings": True},
    "gemma2": _MODERN | {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3_text": _MODERN | {"num_hidden_layers": 3, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "phi3": _MODERN | {"tie_word_embeddings": False},
}
"""A small config for each family: tied and untied, with biases and without, 2 or 3 layers.

The sizes of a config differ from one another, so that a swapped axis shows.
"""


@dataclass(frozen=True)
class _Mlp:
    """The MLP of a family, written down by hand, so that tests do not ask the library what the library did.

    `transposed`: its weights are `[in, out]`. `fused`: gate and up are the two halves of one matrix.
    """

    layers: str = "model.layers"
    inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    output: str = "mlp.down_proj"
    transposed: bool = False
    fused: bool = False

    @property
    def gated(self) -> bool:
        return self.fused or len(self.inputs) == 2


_MLPS = dict.fromkeys(CONFIGS, _Mlp()) | {
    "gpt2": _Mlp("transformer.h", ("mlp.c_fc",), "mlp.c_proj", transposed=True),
    "opt": _Mlp("model.decoder.layers", ("fc1",), "fc2"),
    "gpt_neox": _Mlp("gpt_neox.layers", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
    "phi3": _Mlp(inputs=("mlp.gate_up_proj",), fused=True),
}

FAMILIES = list(CONFIGS)
GATED = [family for family in FAMILIES if _MLPS[family].gated]

WITH_BOS = ("opt", "llama", "mistral", "gemma2", "gemma3_text")
"""Families whose test tokenizer begins each text with a BOS token, so that both kinds are tested."""

_folders = tempfile.TemporaryDirectory(prefix="secateur-tests-")

SHARED_FOLDER = "SECATEUR_TESTS_FOLDER"
"""The environment variable with the folder that the workers of one run of the tests share."""


def shared_folder() -> Path:
    """Return the folder of what the workers of one run share; a folder of this process outside of the tests."""
    return Path(os.environ.get(SHARED_FOLDER, _folders.name))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time work on a path."""
    with open(f"{path}.lock", "w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@lru_cache
def tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on a bundled text; `bos`: whether it begins each text with one."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [passage("story", "calibration")],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=EOS)


def config(model_type: str, **overrides) -> PreTrainedConfig:
    """Return the small config of a family, with some of its values changed."""
    words = tokenizer()
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": None}
    values = {"vocab_size": len(words)} | ids | CONFIGS[model_type] | overrides
    return CONFIG_MAPPING[model_type](**values)


def tiny(model_type: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """Build a model of a family with random weights, including norms and biases: none is zero or one."""
    model = _build(config(model_type, **overrides))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.copy_(parameter + noise if parameter.ndim == 1 else noise)
    return model


def _build(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id
    )
    return model.requires_grad_(False).eval()


def output_projection(model: PreTrainedModel, layer: int) -> str:
    """Return the name of the projection that reads a layer's neurons."""
    mlp = _MLPS[model.config.model_type]
    return f"{mlp.layers}.{layer}.{mlp.output}"


def matrices(model: PreTrainedModel, layer: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the matrices that compute a layer's neurons, `[neurons, hidden]`, gate first, and the one that
    reads them, `[hidden, neurons]`: views, found without the library."""
    mlp = _MLPS[model.config.model_type]
    inputs = [model.get_parameter(f"{mlp.layers}.{layer}.{name}.weight") for name in mlp.inputs]
    output = model.get_parameter(f"{output_projection(model, layer)}.weight")
    if mlp.transposed:
        return [matrix.T for matrix in inputs], output.T
    return list(inputs[0].chunk(2)) if mlp.fused else inputs, output


def count(model: PreTrainedModel) -> int:
    """Return the number of parameters of a model, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def save_tiny(folder: Path, model_type: str, dtype: torch.dtype = torch.float32, **overrides) -> Path:
    """Save a small model and its tokenizer to a folder."""
    tiny(model_type, **overrides).to(dtype).save_pretrained(folder)
    tokenizer(model_type in WITH_BOS).save_pretrained(folder)
    return folder


@lru_cache
def folder_of(model_type: str, **overrides) -> Path:
    """Return the folder of a small model that is saved once for the session. Do not write to it."""
    return save_tiny(
        Path(tempfile.mkdtemp(prefix=f"{model_type}-", dir=_folders.name)), model_type, **overrides
    )


def small_config(model_type: str, **values) -> PreTrainedConfig:
    """Return a small config of any type that transformers has, as its defaults have it, for the test tokenizer."""
    ids = {"vocab_size": len(tokenizer()), "bos_token_id": 0, "eos_token_id": 1}
    return probe_config(default_config(model_type), **ids | values)


def save_type(folder: Path, model_type: str, **values) -> str:
    """Save a small model of any type that transformers has, and the test tokenizer, to a folder."""
    random_model(small_config(model_type, **values)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@lru_cache
def loaded(model_type: str, **overrides) -> pruning.LoadedModel:
    """Return a small model as the library loads it, once for the session."""
    return pruning.load(str(folder_of(model_type, **overrides)))


@lru_cache
def trained() -> pruning.LoadedModel:
    """Return a small Llama trained on the bundled texts, so that a bad cut has something to lose."""
    folder = shared_folder() / "trained"
    with _alone(folder):
        if not folder.exists():
            made = Path(tempfile.mkdtemp(prefix="trained-", dir=shared_folder()))
            _save_trained(made)
            with suppress(OSError):  # Without a lock, another worker may have been faster.
                made.rename(folder)
    return pruning.load(str(folder))


def _save_trained(folder: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # More threads gain nothing here, and wait for one another on a busy machine.
    sizes = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 12}
    model = _build(config("llama", **sizes))
    generator = torch.Generator().manual_seed(0)
    words = tokenizer(bos=True)
    text = "\n\n".join(passage(genre, "calibration") for genre in GENRES)
    ids = torch.tensor(words(text, add_special_tokens=False, verbose=False).input_ids)
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    steps = 300
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        starts = torch.randint(len(ids) - 64, (16,), generator=generator)
        batch = torch.stack([ids[start : start + 64] for start in starts])
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    model.requires_grad_(False).eval().save_pretrained(folder)
    words.save_pretrained(folder)


def tokens(words, text):
    """The tokens of a text, special ones included."""
    return words.convert_ids_to_tokens(words(text).input_ids)
