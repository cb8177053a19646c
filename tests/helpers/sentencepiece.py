"""A small model with a SentencePiece tokenizer, as Llama 2, Mistral and Gemma have one."""

import json
import shutil
from pathlib import Path

from pruning.text.passages import GENRES, passage
from tests.helpers.models import tiny


def sentencepiece_folder(folder: Path, *, with_model_file: bool) -> Path:
    """Train a tokenizer on the bundled passages, and save a small Llama with it.

    Args:
        folder: Where to save it.
        with_model_file: Whether `tokenizer.model` is beside `tokenizer.json`, as in a base; a pruned model has none.
    """
    import sentencepiece
    from transformers import AutoTokenizer

    model = tiny("llama", vocab_size=800, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    sentences = [line for genre in GENRES for line in passage(genre, "calibration").splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=800,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.999,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    written = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    original = shutil.copy(folder / "tokenizer.model", folder / "kept.model")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    if with_model_file:
        shutil.move(original, folder / "tokenizer.model")
    else:
        Path(original).unlink()
        (folder / "tokenizer.model").unlink(missing_ok=True)
    return folder
