"""The process that workers are forked from: it has imported what they need, and done nothing else.

A plain fork of the page would copy locks that its other threads hold, and a fork after a matrix product hangs.
Importing this module is cheap, so that the server can start before the page imports anything.
"""

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

from pruning.child_environment import child_environment

PRELOADED = (
    "torch",
    "transformers",
    "transformers.generation.utils",
    "safetensors.torch",
    "pyarrow.compute",
    "pyarrow.parquet",
    "page.workers.worker",
    "pruning.pipeline",
    "pruning.architectures.masks",
    "pruning.architectures.prove",
    "pruning.distillation.trainer",
    "pruning.text.decoding",
)
"""What workers need: also what the library imports when it is first used, which each worker would import again."""

context: ForkServerContext = multiprocessing.get_context("forkserver")


def start() -> None:
    """Start the server, with an environment that holds no secret. It imports while this process goes on."""
    forkserver.set_forkserver_preload(list(PRELOADED))
    everything = dict(os.environ)
    for name in everything.keys() - child_environment().keys():
        del os.environ[name]
    try:
        forkserver.ensure_running()
    finally:
        os.environ.update(everything)
