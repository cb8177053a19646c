"""An older transformers in a folder of its own, which many programs still have, and what it computes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

OLDER = Path(sys.prefix) / "older"

_READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
text, *folders = sys.argv[1:]
for folder in folders:
    words = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    with torch.inference_mode():
        last = model(torch.arange(2, 50)[None]).logits[0, -1].tolist()
    print(json.dumps([transformers.__version__, words(text).input_ids, last]))
"""


def read_by_older(folders: Iterable[Path], text: str) -> list[tuple[str, list[int], list[float]]]:
    """Return, for saved models, the version that read them, the ids of a text and the logits after the ids 2 to 49."""
    read = subprocess.run(
        [sys.executable, "-c", _READ, text, *map(str, folders)],
        env=os.environ | {"PYTHONPATH": str(OLDER)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert read.returncode == 0, read.stderr[-2000:]
    return [tuple(json.loads(line)) for line in read.stdout.splitlines()]
