"""Count floating-point operations as torch sees them, with the kernels that its own counter does not know."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from math import prod
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


def _attention(query, key, value, *_, out_shape=None, **__):
    # Shared keys and values are read once for each query head.
    return sdpa_flop_count(query, (*query[:2], *key[2:]), (*query[:2], *value[2:]))


def _attention_backward(grad, query, key, value, *_, out_shape=None, **__):
    return sdpa_backward_flop_count(grad, query, (*query[:2], *key[2:]), (*query[:2], *value[2:]))


_KERNELS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.linalg_cholesky_ex: lambda a, *_, out_shape=None, **__: prod(a[:-2]) * a[-1] ** 3 / 3,
    aten.cholesky_inverse: lambda a, *_, out_shape=None, **__: prod(a[:-2]) * a[-1] ** 3 * 2 / 3,
    aten.cholesky_solve: lambda b, a, *_, out_shape=None, **__: 2 * prod(b) * a[-1],
    aten.linalg_solve_triangular: lambda a, b, *_, out_shape=None, **__: prod(b) * a[-1],
}


class _ThisThread(Executor):
    """Runs what it is given in the thread that gives it."""

    def __init__(self, *_):
        pass

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        future.set_result(function(*args, **kwargs))
        return future


def count_flop(work: Callable[[], object]) -> float:
    """Return how many operations matrix products do while some work runs, which repairs in this thread."""
    with (
        patch("pruning.repair.projection.ThreadPoolExecutor", _ThisThread),
        FlopCounterMode(display=False, custom_mapping=_KERNELS) as counter,
    ):
        work()
    return counter.get_total_flops()
