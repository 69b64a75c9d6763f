"""The rate at which the machine copies memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tools.benchmarking.runner import Runner, TimedRunner
from tools.benchmarking.subjects import Copy

__all__ = ["build"]


def build(subject: Copy) -> Runner:
    """Prepare the copy: on CPUs in as many threads as the subject has, each with a part of its own.

    Raises:
        UserError: the device does not exist.
    """
    values = subject.megabytes * 2**20 // 4
    if subject.device != "cpu":
        return TimedRunner(_on_gpu(subject.device, values))
    source, target = np.ones(values, np.float32), np.zeros(values, np.float32)
    pairs = list(zip(*(np.array_split(array, subject.threads) for array in (target, source)), strict=True))
    pool = ThreadPoolExecutor(subject.threads)
    return TimedRunner(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs)))


def _on_gpu(device: str, values: int):
    import paddle

    from common.runtime.device import select_device

    select_device(device)
    source = paddle.ones([values])

    def copy() -> None:
        source.clone()
        paddle.device.synchronize()

    return copy
