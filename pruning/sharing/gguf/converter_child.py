"""Inside the converter's process: set its limits, correct what the converter reads wrongly, and run it.

`python -I converter_child.py MEMORY SECONDS PARENT FOLDER OF-THE-CONVERTER EXTRA-METADATA ARGUMENT…`. It is run by its
path, outside of the package, so that it imports nothing of Secateur.
"""

import contextlib
import ctypes
import importlib
import json
import os
import re
import resource
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CORRECTED = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text")
"""The types of model whose sizes mean what `corrections` takes them for."""

SIGMOID_ROUTERS = (
    *("afmoe", "deepseek_v3", "deepseek_v32", "dots1", "exaone_moe", "glm4_moe_lite", "glm_moe_dsa"),
    *("minimax_m2", "solar_open"),
)
"""The types whose routers score experts by a sigmoid, which transformers does not write into their configs."""

WIDTHS = {
    "gpt2": "n_inner",
    "gpt_bigcode": "n_inner",
    "falcon": "ffn_hidden_size",
    "phi": "intermediate_size",
}
"""The number of neurons of the types for which the converter takes four times the channels."""


def limit(memory: int, seconds: int, parent: int) -> None:
    """Bound what this process may take, and end it together with the one that started it."""
    for kind, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds)):
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))
    with contextlib.suppress(AttributeError):  # Not Linux.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def corrected(converter: Any, extra: dict[str, Any], gguf: Any) -> type:
    """Return a class of the converter that writes what the model's config says and what its tokenizer does.

    Args:
        converter: The converter's class for an architecture.
        extra: Additional metadata to write, by key.
        gguf: The converter's copy of that module.
    """

    class Corrected(converter):
        model_arch = converter.model_arch
        no_mtp = True  # transformers drops the layers for multi-token prediction (MTP).

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            fill_in(self.hparams)

        def set_vocab(self) -> None:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.dir_model)
            backend = json.loads(tokenizer.backend_tokenizer.to_str())
            if backend["model"]["type"] != "BPE":
                refuse(
                    f"its tokenizer is of the kind {backend['model']['type']}, and Secateur exports BPE alone"
                )
            if backend["model"].get("byte_fallback"):
                add_sentencepiece(self, backend, gguf)
            else:
                self._set_vocab_gpt2()
            add_special_tokens(self, tokenizer, gguf)
            avoid_name_rules(self.gguf_writer, set(tokenizer.get_vocab()), gguf)

        def get_vocab_base(self) -> tuple[list[str], list[int], str]:
            # The converter stops at a token that the model has no row for, as Gemma 3 has one.
            from transformers import AutoTokenizer

            count = self.hparams["vocab_size"]
            highest = max(AutoTokenizer.from_pretrained(self.dir_model).get_vocab().values())
            self.hparams["vocab_size"] = max(count, highest + 1)
            tokens, kinds, split = super().get_vocab_base()
            self.hparams["vocab_size"] = count
            return tokens[:count], kinds[:count], split

        def get_vocab_base_pre(self, tokenizer: Any) -> Any:
            # The converter recognizes a tokenizer by a hash over token ids, which a cut vocabulary changes.
            backend = json.loads(tokenizer.backend_tokenizer.to_str())
            if (name := split_name(backend)) is not None:
                return name
            return super().get_vocab_base_pre(tokenizer)

        def set_gguf_parameters(self) -> None:
            super().set_gguf_parameters()
            for key, (value, kind) in corrections(self.hparams, gguf).items():
                put(self.gguf_writer, f"{self.gguf_writer.arch}.{key}", value, kind, gguf)
            for key, value in extra.items():
                put(self.gguf_writer, key, value, kind_of(value, gguf), gguf)

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Any:
            for part, data in split_fused(self, data_torch, name):
                # The class for StableLM returns its stacked norms from a generator, which drops them.
                returned = yield from super().modify_tensors(data, part, bid)
                yield from returned or ()

        def generate_extra_tensors(self) -> Any:
            yield from super().generate_extra_tensors()
            # llama.cpp asks for an output matrix of its own here, and a tied model's file has none.
            if self.model_arch == gguf.MODEL_ARCH.GPTNEOX and self.hparams.get("tie_word_embeddings"):
                embeddings = self.model_tensors["gpt_neox.embed_in.weight"]()
                yield "output.weight", embeddings

    Corrected.__name__ = converter.__name__
    return Corrected


def refuse(reason: str) -> None:
    """End the conversion with a reason that the user reads."""
    raise SystemExit(f"REFUSED {reason}")


def fill_in(config: dict[str, Any]) -> None:
    """Give a config the keys that the converter reads and that transformers has moved or left out."""
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    if "n_positions" in config:
        config.setdefault("n_ctx", config["n_positions"])
    for old, new in (("rotary_pct", "partial_rotary_factor"), ("rotary_emb_base", "rope_theta")):
        if new in rope:
            config.setdefault(old, rope[new])
    if config.get("model_type") == "cohere2":
        config.setdefault("rotary_pct", 1.0)
    if config.get("model_type") == "gemma4_text" and config.get("global_head_dim") is None:
        config["global_head_dim"] = config["head_dim"]
    kinds = config.get("layer_types") or []
    if "linear_attention" in kinds and (period := layer_period(kinds)):
        config["full_attention_interval"] = period
    if config.get("model_type") in SIGMOID_ROUTERS:
        config.setdefault("scoring_func", "sigmoid")
    if config.get("model_type") == "falcon" and not config.get("new_decoder_architecture"):
        # This number means nothing here, and transformers writes that of all heads.
        config["num_kv_heads"] = 1 if config.get("multi_query") else config["num_attention_heads"]


def corrections(config: dict[str, Any], gguf: Any) -> dict[str, Any]:
    """Return metadata that the converter derives from other sizes, where a cut model's config says something else."""
    kinds = gguf.GGUFValueType
    found: dict[str, Any] = {}
    if width := config.get(WIDTHS.get(config.get("model_type", ""), "")):
        found["feed_forward_length"] = width, kinds.UINT32
    if config.get("model_type") not in CORRECTED:
        return found
    rope = config.get("rope_parameters") or {}
    full, sliding = rope.get("full_attention", rope), rope.get("sliding_attention", {})
    if full.get("rope_theta"):
        found["rope.freq_base"] = float(full["rope_theta"]), kinds.FLOAT32
    if sliding.get("rope_theta"):
        found["rope.freq_base_swa"] = float(sliding["rope_theta"]), kinds.FLOAT32
    heads = config.get("num_attention_heads") or config.get("n_head")
    head = config.get("head_dim") or (config.get("hidden_size") or config["n_embd"]) // heads
    if full:
        found["rope.dimension_count"] = int(full.get("partial_rotary_factor", 1.0) * head), kinds.UINT32
        found["attention.key_length"] = found["attention.value_length"] = head, kinds.UINT32
    if (period := layer_period(config.get("layer_types") or [])) is not None and config.get("sliding_window"):
        found["attention.sliding_window_pattern"] = period, kinds.UINT32
    return found


def layer_period(kinds: Sequence[str]) -> int | None:
    """Return p if each p-th layer, and no other, reads the whole text; 0 if none does; None if there is no such p.

    It is all that llama.cpp knows of which layers read through a window.
    """
    full = [kind == "full_attention" for kind in kinds]
    if not any(full):
        return 0 if full else None
    period = full.index(True) + 1
    return period if all(whole == (number % period == 0) for number, whole in enumerate(full, 1)) else None


def split_fused(converter: Any, data: Any, name: str) -> list[tuple[str, Any]]:
    """Split what Phi-3 stores as one matrix, if the model is written as the architecture of Llama."""
    config = converter.hparams
    if config.get("model_type") != "phi3" or converter.gguf_writer.arch != "llama":
        return [(name, data)]
    if "qkv_proj" in name:
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        lengths = [
            config["num_attention_heads"] * head,
            *(2 * [config["num_key_value_heads"] * head]),
        ]
        parts = ("q_proj", "k_proj", "v_proj")
        return [
            (name.replace("qkv_proj", part), piece)
            for part, piece in zip(parts, data.split(lengths), strict=True)
        ]
    if "gate_up_proj" in name:
        return [
            (name.replace("gate_up_proj", part), piece)
            for part, piece in zip(("gate_proj", "up_proj"), data.chunk(2), strict=True)
        ]
    return [(name, data)]


def needs_llama(config: dict[str, Any]) -> bool:
    """Return whether llama.cpp reads such a model rightly as a Llama alone.

    Its architectures for Qwen 2 and Phi-3 take the heads' size for channels / heads.
    """
    if config.get("model_type") not in ("qwen2", "phi3"):
        return False
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    return heads * head != config["hidden_size"]


def put(writer: Any, key: str, value: Any, kind: Any, gguf: Any) -> None:
    """Write metadata, in place of what is there."""
    for part in writer.kv_data:
        part.pop(key, None)
    sub_type = kind_of(value[0], gguf) if isinstance(value, list) else None
    writer.add_key_value(key, value, kind, sub_type)


def kind_of(value: Any, gguf: Any) -> Any:
    """Return how metadata stores a value."""
    kinds = gguf.GGUFValueType
    table = {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING, list: kinds.ARRAY}
    return table[type(value)]


# How a tokenizer splits a text into words, as tokenizer.json writes it, to the name by which llama.cpp knows it.
_DIGITS = {"type": "Digits", "individual_digits": True}
_LLAMA3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
_QWEN2 = _LLAMA3.replace("\\p{N}{1,3}", "\\p{N}")


def split_name(backend: dict[str, Any]) -> str | None:
    """Return llama.cpp's name for how a byte-level tokenizer splits a text, or None if it is not known here."""
    steps = backend.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    patterns, by_words = [], False
    for step in steps:
        if step["type"] == "ByteLevel":
            by_words = step.get("use_regex", True)
            if step.get("add_prefix_space"):
                return None
        elif step["type"] == "Digits" and step.get("individual_digits"):
            patterns.append("digits")
        elif step["type"] == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            patterns.append(step["pattern"].get("Regex"))
        else:
            return None
    known = {
        ((), True): "gpt-2",
        (("digits",), True): "smollm",
        ((_LLAMA3,), False): "llama-bpe",
        ((_QWEN2,), False): "qwen2",
    }
    return known.get((tuple(patterns), by_words))


def add_sentencepiece(converter: Any, backend: dict[str, Any], gguf: Any) -> None:
    """Write a SentencePiece vocabulary; a token's score is the rank of the merge that makes it.

    llama.cpp merges the pair whose result has the highest score, so that only the order of the scores counts. Tokens
    that the model has no row for are left out.
    """
    kinds = gguf.TokenType
    model, count = backend["model"], converter.hparams["vocab_size"]
    tokens = [f"[PAD{number}]" for number in range(count)]
    scores, types = [-1e6] * count, [kinds.UNUSED] * count
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), rank)
    for token, number in model["vocab"].items():
        if number >= count:
            continue
        tokens[number], scores[number], types[number] = (
            token,
            -float(ranks.get(token, len(ranks))),
            kinds.NORMAL,
        )
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[number] = kinds.BYTE
        elif token == model.get("unk_token"):
            types[number] = kinds.UNKNOWN
    for added in backend["added_tokens"]:
        number = added["id"]
        if number >= count or types[number] == kinds.UNKNOWN:
            continue
        tokens[number] = added["content"]
        types[number] = kinds.CONTROL if added["special"] else kinds.USER_DEFINED
    writer = converter.gguf_writer
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    gguf.SpecialVocab(converter.dir_model, n_vocab=count).add_to_gguf(writer)
    put(writer, "tokenizer.ggml.add_space_prefix", prepends_space(backend), gguf.GGUFValueType.BOOL, gguf)


def prepends_space(backend: dict[str, Any]) -> bool:
    """Return whether a SentencePiece tokenizer writes a space before a text."""
    text = json.dumps([backend.get("normalizer"), backend.get("pre_tokenizer")])
    return '"Prepend"' in text or any(f'"prepend_scheme": "{name}"' in text for name in ("always", "first"))


def add_special_tokens(converter: Any, tokenizer: Any, gguf: Any) -> None:
    """Write which tokens begin and end a text, as the tokenizer does it."""
    writer = converter.gguf_writer
    ids = tokenizer("a").input_ids
    for name, place in (("bos", ids[:1]), ("eos", ids[-1:])):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            put(writer, f"tokenizer.ggml.{name}_token_id", number, gguf.GGUFValueType.UINT32, gguf)
        added = number is not None and place == [number]
        put(writer, f"tokenizer.ggml.add_{name}_token", added, gguf.GGUFValueType.BOOL, gguf)


def avoid_name_rules(writer: Any, tokens: set[str], gguf: Any) -> None:
    """Change a model's name that makes llama.cpp look for tokens that the model does not have."""
    name = next(part["general.name"].value for part in writer.kv_data if "general.name" in part)
    if not {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= tokens:
        changed = re.sub("phi-?3", "Phi 3", name, flags=re.IGNORECASE)
        put(writer, "general.name", changed, gguf.GGUFValueType.STRING, gguf)


def main() -> None:
    """Run the converter with the rest of the arguments."""
    memory, seconds, parent, folder, extra, *arguments = sys.argv[1:]
    limit(int(memory), int(seconds), int(parent))
    # The converter brings its own, newer copy of gguf.
    sys.path[:0] = [folder, str(Path(folder) / "gguf-py")]
    program = str(Path(folder) / "convert_hf_to_gguf.py")
    if (Path(folder) / "conversion").is_dir():
        patch(json.loads(Path(extra).read_text(encoding="utf-8")))
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


def patch(extra: dict[str, Any]) -> None:
    """Have the converter use corrected classes."""
    conversion: Any = importlib.import_module("conversion")
    gguf: Any = importlib.import_module("gguf")
    original = conversion.get_model_class

    def get_model_class(name: str, mmproj: bool = False) -> type:
        config = conversion.ModelBase.load_hparams(Path(sys.argv[-1]), False)
        found = original("LlamaForCausalLM" if needs_llama(config) else name, mmproj)
        # The class for Ministral 3 hands all work to another one, which would stay uncorrected.
        return corrected(getattr(found, "Ministral3Model", found), extra, gguf)

    conversion.get_model_class = get_model_class


if __name__ == "__main__":
    main()
