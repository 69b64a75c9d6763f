"""Which sample comes when: the same for any number of workers, and shared out among the ranks."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import paddle

__all__ = ["IterationSampler", "SampleKey", "ShardedEvalSampler", "ShardedTrainSampler", "TrainSampler"]


class SampleKey(NamedTuple):
    """What a dataset is asked for: an index, and where in the run it stands, from which its random numbers come."""

    index: int  # type: ignore[assignment]  # tuple has a method of this name, which nothing here asks for
    epoch: int
    position: int


@dataclass(eq=False)
class TrainSampler(paddle.io.BatchSampler, ABC):
    """Yields this rank's batches of :class:`SampleKey` in an order that only the seed and the epoch decide.

    Args:
        num_samples: size of the data set.
        batch_size: samples a rank gets in one batch.
        seed: seed of the run.
        rank, world_size: this rank and their number.
        group: batches that make one optimizer step (gradient accumulation).
    """

    num_samples: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    group: int = 1
    repeats = 1  # times a sample stands in a row

    def __post_init__(self):
        self.num_batches = self._count_batches()
        self.set_range(0)

    @abstractmethod
    def _count_batches(self) -> int:
        """Batches that a rank gets in one epoch."""

    def set_range(self, epoch: int, first_batch: int = 0, end: int | None = None) -> None:
        """Choose the epoch, from 0, and which of its batches to yield: from ``first_batch`` to before ``end``."""
        self.epoch, self.first_batch, self.end = epoch, first_batch, self.num_batches if end is None else end

    def __len__(self) -> int:
        return self.end - self.first_batch


@dataclass(eq=False)
class ShardedTrainSampler(TrainSampler):
    """An epoch is one permutation of the data set.

    Positions p of the shuffled epoch go to rank ``p % world_size``, so the union of the ranks' batches is the same for
    any number of ranks with the same global batch. What does not fill a whole group of ``group`` batches on every rank
    is left out; it is different every epoch.

    Args:
        repeats: times a sample stands in a row with different augmentation, one copy to each rank, while the epoch
            keeps its length (repeated augmentation, arXiv 1901.09335).

    Raises:
        ValueError: an epoch would be empty.
    """

    repeats: int = 1

    def _count_batches(self) -> int:
        step = self.batch_size * self.world_size * self.group
        if self.num_samples < step:
            raise ValueError(
                f"{self.num_samples} training images are too few: one step takes batch size {self.batch_size} x "
                f"{self.world_size} ranks x {self.group} accumulated batches = {step}"
            )
        return self.num_samples // step * self.group

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_samples)
        order = np.repeat(order, self.repeats)[: self.num_samples]
        positions = np.arange(self.rank, self.num_batches * self.batch_size * self.world_size, self.world_size)
        for batch in range(self.first_batch, self.end):
            own = positions[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [SampleKey(int(order[position]), self.epoch, int(position)) for position in own]


@dataclass(eq=False)
class IterationSampler(TrainSampler):
    """A run that is counted in steps: all of it is one epoch, made of permutations of the data set one after the other.

    The data set may be smaller than a batch; nothing is left out between two permutations. What comes at a step depends
    on the seed, not on how many steps there are, so a longer run begins as a shorter one.

    Args:
        steps: optimizer steps of the run.
    """

    steps: int = field(kw_only=True)

    def _count_batches(self) -> int:
        return self.steps * self.group

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = functools.lru_cache(maxsize=2)(self._permutation)
        for batch in range(self.first_batch, self.end):
            places = range(batch * self.batch_size, (batch + 1) * self.batch_size)
            positions = [place * self.world_size + self.rank for place in places]
            yield [
                SampleKey(int(order(position // self.num_samples)[position % self.num_samples]), 0, position)
                for position in positions
            ]

    def _permutation(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, number]).permutation(self.num_samples)


class ShardedEvalSampler(paddle.io.BatchSampler):
    """Yields every sample once over all ranks: this rank's are ``rank, rank + world_size, ...``, never padded."""

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1):
        self.indices = range(rank, num_samples, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [SampleKey(index, 0, index) for index in self.indices[start : start + self.batch_size]]
