"""Run llama.cpp's converter in a process of its own, without secrets and with limits."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pruning.child_environment import child_environment
from pruning.errors import ModelError, SavingError
from pruning.progress import Progress, Reporter
from pruning.sharing.gguf.printed import last_line
from pruning.sharing.gguf.types import converter_folder

CONVERTER_MEMORY = 16 * 2**30
"""Bytes of address space that the converter may take, besides eight times those of the weights."""

CONVERTER_SECONDS = 900
"""Seconds of computing that the converter may take, besides one for each megabyte of the weights."""

_LAUNCH = "import sys; sys.path.append(sys.argv.pop(1)); from converter_child.child import main; main()"
"""Imports that package by itself, so that the process imports nothing else of Secateur."""

_REASONS = {
    r"KeyError: '([\w.]+)'": "it expects {} in the config, which is not there",
    r"Can not map tensor '([\w.]+)'": "it has no place for the tensor {}",
}
"""Patterns for the last line that it prints, each with what a user is told."""


def convert(
    folder: Path, output: Path, type: str, notes: Path, facts: Mapping[str, Any], progress: Reporter
) -> None:
    """Run the converter and report its progress. If the reporter raises, the process is killed.

    Args:
        folder: A folder that holds a saved model.
        output: The file to write.
        type: `f16`, `bf16` or `f32`.
        notes: A folder for files that the converter reads and writes besides.
        facts: Additional metadata to write, by key.
        progress: Is called with each stage.

    Raises:
        ModelError: The converter cannot read the model.
        SavingError: The disk is full.
    """
    described, extra, log = notes / "described.json", notes / "extra.json", notes / "log"
    general = {key: value for key, value in facts.items() if key.startswith("general.")}
    described.write_text(json.dumps(general), encoding="utf-8")
    extra.write_text(json.dumps({key: facts[key] for key in facts.keys() - general}), encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    limits = CONVERTER_MEMORY + 8 * size, CONVERTER_SECONDS + size // 10**6, os.getpid()
    command = [
        *(sys.executable, "-I", "-c", _LAUNCH, str(Path(__file__).parent)),
        *(*map(str, limits), str(converter_folder()), str(extra)),
        *("--outtype", type, "--outfile", str(output), "--metadata", str(described), str(folder)),
    ]
    with _child(command, log) as process:
        while process.poll() is None:
            written = re.findall(r"Writing: +(\d+)%", log.read_text(encoding="utf-8", errors="replace"))
            progress(Progress("Converting to GGUF, percent", int(written[-1]) if written else 0, 100))
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    if process.returncode:
        raise _explain(log.read_text(encoding="utf-8", errors="replace"), folder)


@contextmanager
def _child(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command without our secrets and offline; kill it, and what it started, when the block ends."""
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=child_environment(HF_HUB_OFFLINE="1"),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _explain(log: str, folder: Path) -> Exception:
    # numpy says how many items it wrote, and not why it wrote no more.
    if re.search(r"No space left on device|File too large|\d+ requested and \d+ written", log):
        return SavingError("The GGUF file could not be written: the disk is full. Make room and try again.")
    if "pre-tokenizer was not recognized" in log:
        return ModelError(
            f"llama.cpp does not know the tokenizer of {folder.name}: it splits texts into words in a way that "
            "llama.cpp does not have."
        )
    if refused := re.search(r"^REFUSED (.+)$", log, re.MULTILINE):
        return ModelError(f"{folder.name} cannot be exported to GGUF: {refused[1]}.")
    said = last_line(log)
    for pattern, reason in _REASONS.items():
        if found := re.search(pattern, said):
            return ModelError(f"llama.cpp's converter cannot read {folder.name}: {reason.format(found[1])}.")
    return ModelError(
        f"llama.cpp's converter could not read {folder.name}. The last line that it printed is: {said or 'nothing'}"
    )
