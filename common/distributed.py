"""Ranks: how many there are, sums over all of them, and one failure that ends all."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Sequence

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import nn
from paddle.base import core

__all__ = [
    "FailureWatch",
    "average_statistics",
    "barrier",
    "init_process_group",
    "is_main_process",
    "rank",
    "sum_over_ranks",
    "world_size",
]


def rank() -> int:
    """This process's number, 0 when it was started alone."""
    return int(os.environ.get("PADDLE_TRAINER_ID", 0))


def world_size() -> int:
    """Processes that train together, 1 when this one was started alone."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", 1))


def is_main_process() -> bool:
    """Whether this is rank 0, the one that prints and writes."""
    return rank() == 0


def init_process_group() -> FailureWatch | None:
    """Join the other ranks, if there are any, and watch over them."""
    if world_size() == 1:
        return None
    with contextlib.redirect_stderr(io.StringIO()):  # Paddle prints the flags that the launcher itself has set
        dist.init_parallel_env()
    return FailureWatch()


def sum_over_ranks(values: Sequence[float]) -> np.ndarray:
    """Add up each value over all ranks; float64, so counts stay exact up to 2**53."""
    totals = np.asarray(values, np.float64)
    if world_size() == 1:
        return totals
    tensor = paddle.to_tensor(totals)
    dist.all_reduce(tensor)
    return tensor.numpy()


def average_statistics(model: nn.Layer) -> None:
    """Give every rank the mean of what it gathered from its own data: BatchNorm's running means and variances."""
    if world_size() == 1:
        return
    for tensor in model.state_dict().values():
        # Paddle keeps the statistics as parameters that are not trained, not as buffers.
        if tensor.stop_gradient and tensor.is_floating_point():
            mean = tensor.detach().clone()
            dist.all_reduce(mean)
            tensor.set_value(mean / world_size())


def barrier() -> None:
    """Wait for all ranks; nothing to wait for in a single process."""
    if world_size() > 1:
        dist.barrier()


class FailureWatch:
    """Ends every rank with the same exit code when one of them fails, so that nobody waits for ever.

    The launcher shows rank 0 only, and stops the others without telling why. A failing rank therefore leaves its
    message in the job's key-value store; a thread of each rank looks there twice a second, rank 0 prints what it finds,
    and all exit. The thread works while the main one is blocked in a collective operation.
    """

    _INTERVAL = 0.5  # seconds

    def __init__(self):
        self._store = core.create_or_get_global_tcp_store()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def announce(self, message: str, exit_code: int) -> None:
        """Tell all ranks to exit with ``exit_code`` and, unless this is rank 0, wait until they could."""
        self._closed.set()
        with self._lock:
            self._store.set("failure", f"{exit_code} rank {rank()}: {message}")
            self._store.add("failures", 1)
        if not is_main_process():
            time.sleep(10 * self._INTERVAL)

    def close(self) -> None:
        """Stop watching; call it when the work is done, before the store goes away."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(self._INTERVAL):
            try:
                with self._lock:
                    failed = self._store.add("failures", 0)
            except Exception:  # the store lives in rank 0: it ended, and told the user why
                os._exit(2)
            if failed and not self._closed.is_set():
                exit_code, _, message = self._store.get("failure").decode().partition(" ")
                if is_main_process():
                    print(f"error: {message}", flush=True)
                os._exit(int(exit_code))
