"""Small tokenizers with chat templates: those of tests/data/chat_templates, written like the common ones."""

import json
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pruning.text.passages import passage
from tests.helpers.models import tokenizer

TEMPLATES = {
    file.stem: file.read_text(encoding="utf-8").removesuffix("\n")
    for file in sorted((Path(__file__).parents[1] / "data" / "chat_templates").glob("*.jinja"))
}

SPECIAL = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "chatml_default_system": ["<|im_start|>", "<|im_end|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "llama3_undated": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "gemma2": ["<start_of_turn>", "<end_of_turn>"],
    "gemma3": ["<start_of_turn>", "<end_of_turn>"],
    "mistral": ["[INST]", "[/INST]"],
    "mistral_system_last": ["[INST]", "[/INST]"],
    "deepseek": ["<|end▁of▁sentence|>"],
}
ADDED = {
    "qwen3": [AddedToken("<think>"), AddedToken("</think>")],
    "gemma3": [AddedToken("\n\n", normalized=False), AddedToken("<b>", normalized=False)],
    "deepseek": [AddedToken("<|User|>"), AddedToken("<|Assistant|>"), AddedToken("<think>")],
    "phi3": [
        AddedToken(f"<|{name}|>", rstrip=True, normalized=False, special=True)
        for name in ("user", "assistant", "system", "end")
    ],
}
KINDS = ("bytes", "prepend", "metaspace")


@lru_cache
def sentences() -> tuple[dict, list]:
    """The vocabulary and merges of a SentencePiece-like tokenizer, with single bytes."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([passage("story", "calibration")], trainer)
    values = json.loads(bpe.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *values["vocab"]]
    return {name: number for number, name in enumerate(names)}, [tuple(merge) for merge in values["merges"]]


def backend(kind):
    """Return a tokenizer of one of the `KINDS`: what stands before a text differs."""
    if kind == "bytes":
        return Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())
    vocabulary, merges = sentences()
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if kind == "prepend":  # As Llama 2 and Mistral.
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in ("<s>", "</s>")])
    return made


def made(template, special=(), added=(), kind="bytes"):
    """Return a small tokenizer with a chat template."""
    words = PreTrainedTokenizerFast(tokenizer_object=backend(kind), bos_token="<s>", eos_token="</s>")
    words.add_tokens(
        [*(AddedToken(token, normalized=False, special=True) for token in special), *added],
    )
    words.chat_template = template
    return words


@lru_cache
def named(name, kind="bytes"):
    """Return a small tokenizer with one of the chat templates."""
    return made(TEMPLATES[name], SPECIAL.get(name, ()), ADDED.get(name, ()), kind)


def conversation(*contents, system=None):
    """Return messages of the user and the assistant in turns."""
    turns = [
        {"role": "assistant" if number % 2 else "user", "content": content}
        for number, content in enumerate(contents)
    ]
    return turns if system is None else [{"role": "system", "content": system}, *turns]
