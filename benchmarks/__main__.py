import platform
import sys
from datetime import date

import torch

from benchmarks import calibrating, cutting, quality

BENCHMARKS = {"quality": quality.main, "cutting": cutting.main, "calibrating": calibrating.main}

if __name__ == "__main__":
    chosen = sys.argv[1:] or list(BENCHMARKS)
    if unknown := set(chosen) - set(BENCHMARKS):
        sys.exit(f"No benchmark {', '.join(unknown)}. There are: {', '.join(BENCHMARKS)}.")
    print(
        f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name in chosen:
        BENCHMARKS[name]()
