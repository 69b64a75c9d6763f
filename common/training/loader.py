"""Batches out of a data set and a sampler, and where the random numbers of a sample come from."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import paddle

from ..runtime.signals import bind_to_parent

__all__ = ["build_loader", "seed_generators"]


def _start_reader(_: int) -> None:
    bind_to_parent()
    cv2.setNumThreads(0)  # the readers share the cores as it is; 1 in place of 0 can hang in a forked process


def build_loader(
    dataset: paddle.io.Dataset, sampler: paddle.io.BatchSampler, workers: int, collate: Callable[[list], Any]
) -> paddle.io.DataLoader:
    """Read what ``sampler`` chooses in ``workers`` processes (0: in this one), which end with this one.

    The data set must not raise: Paddle's loader waits for ever when one does so in its reading thread. What cannot be
    read is handed on as a message instead, beside an array: a batch without one ends the loader as if it were the last.
    """
    return paddle.io.DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate, worker_init_fn=_start_reader
    )


def seed_generators(*seeds: int) -> None:
    """Seed the global generators of Python and NumPy, from which the toolkits' transforms draw."""
    words = np.random.SeedSequence(seeds).generate_state(8)
    random.seed(words[:4].tobytes())
    np.random.seed(words[4:])
