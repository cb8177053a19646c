"""Limit the converter's process, correct what the converter reads wrongly, and run it.

Its arguments are `MEMORY SECONDS PARENT FOLDER-OF-THE-CONVERTER EXTRA-METADATA ARGUMENT…`.
"""

import contextlib
import ctypes
import importlib
import json
import os
import resource
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from .config_keys import fill_in, head_size
from .metadata import corrections, kind_of, put
from .tensors import extra_tensors, pair_rotated, renamed, split_fused
from .vocabulary import add_sentencepiece, add_special_tokens, avoid_name_rules, split_name


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
        _n_nextn = 0  # The class for MiMo V2 has their number here.

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            fill_in(self.hparams)
            if self.hparams["model_type"] == "bamba":
                self.undo_permute = False  # `pair_rotated` does it, for half of each head.
            if self.hparams["model_type"] == "mimo_v2_flash":
                share = self.rope_parameters["full_attention"].get("partial_rotary_factor", 0.334)
                self.rope_parameters["partial_rotary_factor"] = share

        def get_attn_layers(self) -> list[int]:
            # The class for Granite asks for them in its constructor, by a name that transformers has changed.
            kinds = self.hparams.get("layer_types") or []
            self.hparams["layer_types"] = [kind.replace("full_attention", "attention") for kind in kinds]
            return super().get_attn_layers()

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
            for part, data in split_fused(self, data_torch, renamed(self.hparams, name)):
                paired = pair_rotated(self.hparams, data, part)
                # The class for StableLM returns its stacked norms from a generator, which drops them.
                returned = yield from super().modify_tensors(paired, part, bid)
                yield from returned or ()

        def weight_quant(self, weight: Any) -> Any:
            # The class for BitNet rounds to three values, and transformers computes with what is stored.
            return weight

        def generate_extra_tensors(self) -> Any:
            yield from super().generate_extra_tensors()
            yield from extra_tensors(self)

    Corrected.__name__ = converter.__name__
    return Corrected


def refuse(reason: str) -> None:
    """End the conversion with a reason that the user reads."""
    raise SystemExit(f"REFUSED {reason}")


def needs_llama(config: dict[str, Any]) -> bool:
    """Return whether llama.cpp reads such a model rightly as a Llama alone.

    Its architectures for Qwen 2 and Phi-3 take the heads' size for channels / heads.
    """
    if config.get("model_type") not in ("qwen2", "phi3"):
        return False
    return config["num_attention_heads"] * head_size(config) != config["hidden_size"]


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
