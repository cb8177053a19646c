"""How to run a GGUF file: the lines for the two programs that people use."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path


def run_lines(file: Path, chats: bool) -> Mapping[str, str]:
    """Return the lines that run a file, by the program that they are for.

    Args:
        file: The GGUF file.
        chats: Whether it has a chat template.
    """
    name = shlex.quote(file.name)
    # Ollama's names are in lower case, and hold few signs.
    model = re.sub(r"[^a-z0-9._-]+", "-", file.stem.lower()).strip("-.") or "pruned"
    llama = f"llama-cli -m {name}" if chats else f'llama-completion -m {name} -no-cnv -p "Once upon a time"'
    return {
        "llama.cpp": llama,
        "Modelfile": f"FROM ./{file.name}",
        "ollama": f"ollama create {model} -f Modelfile && ollama run {model}",
    }
