"""Where a tensor is computed with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import paddle
from paddle import Tensor

__all__ = ["is_eager_on_cpu", "operations_of_gpus"]

_cpus_count_as_gpus = False


@paddle.jit.not_to_static
def is_eager_on_cpu(x: Tensor) -> bool:
    """Whether operations on a tensor run at once and on a CPU, as against a GPU or a program that is being traced."""
    return paddle.in_dynamic_mode() and x.place.is_cpu_place() and not _cpus_count_as_gpus


@contextmanager
def operations_of_gpus() -> Iterator[None]:
    """Run on CPUs the operations that GPUs run, to count what those keep."""
    global _cpus_count_as_gpus
    _cpus_count_as_gpus = True
    try:
        yield
    finally:
        _cpus_count_as_gpus = False
