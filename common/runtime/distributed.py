"""The ranks of a run, and collective operations that also work in a single process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

__all__ = [
    "barrier",
    "gather_objects",
    "gather_rows",
    "gather_scalars",
    "is_main_process",
    "rank",
    "sum_over_ranks",
    "world_size",
]


def rank() -> int:
    """This process's rank; 0 in a single process."""
    return int(os.environ.get("PADDLE_TRAINER_ID", 0))


def world_size() -> int:
    """The number of ranks; 1 in a single process."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", 1))


def is_main_process() -> bool:
    """Whether this is rank 0, the one that prints and writes."""
    return rank() == 0


def sum_over_ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Sum each value over all ranks; float64, so counts are exact up to 2**53."""
    totals = np.asarray(values, np.float64)
    if world_size() == 1:
        return totals
    tensor = paddle.to_tensor(totals)
    dist.all_reduce(tensor)
    return tensor.numpy()


def gather_rows(values: Sequence[float]) -> np.ndarray:
    """Every rank's values: float64 ``[world_size, len(values)]``."""
    rows = np.zeros((world_size(), len(values)))
    rows[rank()] = values
    return sum_over_ranks(rows.ravel()).reshape(rows.shape)


def gather_scalars(values: Sequence[paddle.Tensor]) -> paddle.Tensor:
    """Every rank's scalars: float32 ``[world_size, len(values)]``. The host does not wait for the device."""
    rows = paddle.zeros([world_size(), len(values)])
    rows[rank()] = paddle.stack(values)
    if world_size() > 1:
        dist.all_reduce(rows)
    return rows


def gather_objects(own: Any) -> list[Any]:
    """Every rank's object, in the order of the ranks."""
    if world_size() == 1:
        return [own]
    gathered: list[Any] = []
    dist.all_gather_object(gathered, own)
    return gathered


def barrier() -> None:
    """Wait for all ranks; returns at once in a single process."""
    if world_size() > 1:
        dist.barrier()
