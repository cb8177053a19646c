"""Print the peak of private memory that recipes take, each as one line of JSON; runs as a process of its own.

Arguments: a folder or a catalog name, and recipes as JSON.
"""

import json
import os
import sys
import threading
import time

import torch

import pruning
from pruning.calibration import cache
from pruning.memory import private_memory, release_memory


class Peak:
    """The most private memory since `start`, sampled by a thread."""

    def __init__(self) -> None:
        self.most = 0
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self.most = max(self.most, private_memory(os.getpid()))
            time.sleep(0.002)


def main() -> None:
    torch.set_num_threads(1)
    base, peak = pruning.load(sys.argv[1]), Peak()
    base.model(torch.zeros(1, 8, dtype=torch.long))
    for text in sys.argv[2:]:
        cache.clear()
        release_memory()
        before = peak.most = private_memory(os.getpid())
        pruning.prune(pruning.Recipe.parse(text), base)
        print(json.dumps({"bytes": peak.most - before}), flush=True)


if __name__ == "__main__":
    main()
