"""The ranks of a run, and collective operations that also work in a single process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

__all__ = [
    "gather_objects",
    "gather_rows",
    "gather_scalars",
    "is_main_process",
    "meet_with",
    "rank",
    "sum_over_ranks",
    "wait_for_all_ranks",
    "world_size",
]

_meet: Callable[[], None] | None = None


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
    wait_for_all_ranks()
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
    wait_for_all_ranks()
    dist.all_gather_object(gathered, own)
    return gathered


def wait_for_all_ranks() -> None:
    """Wait for all ranks, however long one takes; Gloo gives up after 30 s."""
    if _meet and world_size() > 1:
        _meet()


def meet_with(meet: Callable[[], None] | None) -> None:
    """Set what :func:`wait_for_all_ranks` calls."""
    global _meet
    _meet = meet
