"""What people type from other tools, and the option or command here that means it."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches

_SHARE = ("--neurons", "--budget")
_SIZE = ("--budget", "--intermediate-size")

OPTIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("ratio", "pruning-ratio", "prune-ratio", "amount", "fraction", "percent"), _SHARE),
    **dict.fromkeys(("sparsity", "sparsity-ratio", "unstructured"), ("--weights",)),
    **dict.fromkeys(
        ("sparsity-type", "sparsity-pattern", "pattern", "nm", "semi-structured"), ("--weights-pattern",)
    ),
    **dict.fromkeys(("compression", "compression-ratio", "p"), _SHARE),
    **dict.fromkeys(("size", "target-size", "target", "params", "parameters", "memory", "max-size"), _SIZE),
    **dict.fromkeys(("mlp", "ffn", "width", "intermediate"), ("--neurons", "--intermediate-size")),
    **dict.fromkeys(("depth", "blocks", "num-layers", "drop-layers", "block-influence"), ("--layers",)),
    **dict.fromkeys(("attention", "num-heads", "attention-heads", "kv-heads"), ("--heads",)),
    **dict.fromkeys(("hidden", "d-model", "embedding-size", "residual"), ("--channels", "--hidden-size")),
    **dict.fromkeys(("vocab", "tokenizer"), ("--vocabulary", "--vocab-size")),
    **dict.fromkeys(
        ("data", "dataset", "calib", "calibration-data", "calibration-dataset"), ("--calibration", "--text")
    ),
    **dict.fromkeys(
        ("samples", "nsamples", "num-samples", "max-tokens", "seqlen"), ("--tokens", "--max-new-tokens")
    ),
    **dict.fromkeys(
        ("out", "output-dir", "output-path", "save", "save-dir", "save-model", "dest"), ("--output",)
    ),
    **dict.fromkeys(
        ("method", "metric", "metrics", "importance", "score", "strategy"), ("--criterion", "--skills")
    ),
    **dict.fromkeys(("force", "f", "exist-ok", "yes", "y"), ("--overwrite",)),
    **dict.fromkeys(("heal", "recover", "refit"), ("--repair",)),
    **dict.fromkeys(("no-eval", "skip-eval"), ("--no-evaluate",)),
    **dict.fromkeys(("eval", "ppl", "perplexity"), ("--evaluate",)),
    **dict.fromkeys(("config", "yaml"), ("--recipe",)),
    **dict.fromkeys(("base", "reference", "baseline", "compare"), ("--against", "--teacher")),
    **dict.fromkeys(("benchmark", "benchmarks", "task"), ("--tasks",)),
    **dict.fromkeys(("max-length", "length"), ("--max-new-tokens", "--tokens")),
    **dict.fromkeys(("temp",), ("--temperature",)),
    **dict.fromkeys(("quantize", "quantization", "bits", "quant"), ("--type",)),
    **dict.fromkeys(("low-memory", "offload"), ("--stream",)),
    **dict.fromkeys(("torch-dtype", "precision"), ("--dtype",)),
    **dict.fromkeys(("device-map",), ("--device",)),
    **dict.fromkeys(("plan", "preview", "simulate", "n"), ("--dry-run",)),
}
"""For an option of other tools, those here that mean it: the first that a command has is suggested."""

NOTES: Mapping[str, str] = {
    **dict.fromkeys(
        ("device", "cuda", "gpu", "cpu"),
        "prune, evaluate, generate and search take --device; elsewhere it is chosen by what fits",
    ),
    **dict.fromkeys(
        ("dtype", "fp16", "bf16"),
        "prune takes --dtype, such as --dtype bfloat16; by default the precision is that of the base",
    ),
    **dict.fromkeys(
        ("model", "model-name", "model-path", "m"), "The model is the first argument, without an option"
    ),
    **dict.fromkeys(
        ("prompt", "question", "input"), "The prompt is the second argument of generate, without an option"
    ),
    **dict.fromkeys(("finetune", "train", "retrain"), "Training is a command of its own: secateur distill"),
    **dict.fromkeys(("private",), "Private is the default"),
    **dict.fromkeys(("trust-remote-code",), "Code from the Hub is never run"),
}
"""What is said of an option that has no equal here."""

COMMANDS: Mapping[str, str] = {
    **dict.fromkeys(("compress", "shrink", "cut", "trim", "slim"), "prune"),
    **dict.fromkeys(("eval", "benchmark", "bench", "measure", "perplexity", "ppl", "test"), "evaluate"),
    **dict.fromkeys(("chat", "ask", "run", "complete", "sample", "predict"), "generate"),
    **dict.fromkeys(("push", "upload", "share"), "publish"),
    **dict.fromkeys(("convert", "gguf", "quantize", "save"), "export"),
    **dict.fromkeys(("finetune", "fine-tune", "train", "heal", "recover", "teach"), "distill"),
    **dict.fromkeys(("list", "ls"), "models"),
    **dict.fromkeys(("check", "validate"), "verify"),
    **dict.fromkeys(("show", "inspect", "describe", "stats", "size"), "info"),
    **dict.fromkeys(("plan", "estimate", "dry-run"), "preview"),
    **dict.fromkeys(("optimize", "auto", "find"), "search"),
}
"""For a command of other tools, the one here that means it."""


def suggest_option(written: str, command: str, options: Collection[str]) -> str:
    """Return one line for an option that a command does not have.

    Args:
        written: The option as it was typed.
        command: The command.
        options: The options that it has.
    """
    word = written.strip("-").replace("_", "-").lower()
    meant = [option for option in (f"--{word}", *OPTIONS.get(word, ())) if option in options]
    if not meant and word not in NOTES:
        meant = get_close_matches(f"--{word}", options, n=1, cutoff=0.8)
    known = meant[0] if meant else None
    hint = f"Use {known}" if known else NOTES.get(word, f"secateur {command} --help lists the options")
    return f"{command} has no option {written}. {hint}."


def suggest_command(written: str, commands: Collection[str]) -> str:
    """Return one line for a command that does not exist."""
    known = COMMANDS.get(written.lower()) or next(iter(get_close_matches(written, commands, n=1)), None)
    hint = f"Use {known}" if known in commands else "secateur --help lists the commands"
    return f"There is no command {written!r}. {hint}."
