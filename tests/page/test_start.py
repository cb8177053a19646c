"""The page starts without what only its workers need."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_imports_neither_pytorch_nor_transformers():
    program = "import page.layout, sys; print(*{'torch', 'transformers', 'accelerate'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
