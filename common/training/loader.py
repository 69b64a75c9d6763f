"""Data loaders, and the seeds of the toolkits' transforms."""

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
    cv2.setNumThreads(0)  # the readers already share the cores; 1 instead of 0 can hang in a forked process


def build_loader(
    dataset: paddle.io.Dataset, sampler: paddle.io.BatchSampler, workers: int, collate: Callable[[list], Any]
) -> paddle.io.DataLoader:
    """Read the samples that ``sampler`` selects in ``workers`` processes (0: in this one), which end with this one.

    The data set must not raise: Paddle's loader then waits forever in its reading thread. It must return the error as
    a text beside an array instead: a batch without any array ends the loader like the last one.
    """
    return paddle.io.DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate, worker_init_fn=_start_reader
    )


def seed_generators(*seeds: int) -> None:
    """Seed Python's and NumPy's global generators, which the toolkits' transforms use."""
    words = np.random.SeedSequence(seeds).generate_state(8)
    random.seed(words[:4].tobytes())
    np.random.seed(words[4:])
