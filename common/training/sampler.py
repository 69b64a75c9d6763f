"""The order of the samples: independent of the number of workers, and sharded over the ranks."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

__all__ = [
    "BalancedTrainSampler",
    "IterationSampler",
    "SampleKey",
    "ShardedEvalSampler",
    "ShardedTrainSampler",
    "TrainSampler",
]


class SampleKey(NamedTuple):
    """The argument of a dataset's ``__getitem__``: an index, and a position in the run to seed augmentation with."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    epoch: int
    position: int


@dataclass(eq=False)
class TrainSampler(ABC):
    """Yields this rank's batches of :class:`SampleKey` in an order that depends only on the seed and the epoch.

    Args:
        num_samples: size of the data set.
        batch_size: samples in a batch of one rank.
        seed: of the run.
        rank, world_size: this rank and the number of ranks.
        group: batches per optimizer step (gradient accumulation).
    """

    num_samples: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    group: int = 1
    repeats = 1  # copies of a sample in a row

    def __post_init__(self):
        self.num_batches = self._count_batches()
        self.set_range(0)

    @abstractmethod
    def _count_batches(self) -> int:
        """Batches of a rank in one epoch."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        return self.num_batches // self.group

    @abstractmethod
    def __iter__(self) -> Iterator[list[SampleKey]]:
        """Yield the batches of the range."""

    def set_range(self, epoch: int, first_batch: int = 0, end: int | None = None) -> None:
        """Select the epoch, from 0, and the range of its batches to yield; ``end`` is exclusive."""
        self.epoch, self.first_batch, self.end = epoch, first_batch, self.num_batches if end is None else end

    def __len__(self) -> int:
        return self.end - self.first_batch


@dataclass(eq=False)
class ShardedTrainSampler(TrainSampler):
    """An epoch is one permutation of the data set.

    Position p of the shuffled epoch goes to rank ``p % world_size``, so the union of the ranks' batches is the same for
    any number of ranks with the same global batch. The remainder that does not fill a group of ``group`` batches on
    every rank is dropped; it differs between epochs.

    Args:
        repeats: copies of a sample in a row, augmented differently, one per rank; the epoch keeps its length (repeated
            augmentation, arXiv 1901.09335).

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
        order = np.repeat(self._order(np.random.default_rng([self.seed, self.epoch])), self.repeats)[: self.num_samples]
        positions = np.arange(self.rank, self.num_batches * self.batch_size * self.world_size, self.world_size)
        for batch in range(self.first_batch, self.end):
            own = positions[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [SampleKey(int(order[position]), self.epoch, int(position)) for position in own]

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """The samples of an epoch, as many as the data set has: int64 ``[num_samples]``."""
        return rng.permutation(self.num_samples)


@dataclass(eq=False)
class BalancedTrainSampler(ShardedTrainSampler):
    """An epoch has equally many samples of every class that has any, up to one, and as many as the data set in all.

    A small class repeats all its samples equally often, up to once; a large class gives a random part of its samples.

    Args:
        labels: the class of each sample, int64 ``[num_samples]``.
    """

    labels: np.ndarray = field(kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        _, first = np.unique(np.sort(self.labels), return_index=True)
        self._classes = np.split(np.argsort(self.labels, kind="stable"), first[1:])

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        share, rest = divmod(self.num_samples, len(self._classes))
        parts = []
        for place, number in enumerate(rng.permutation(len(self._classes))):
            members, wanted = self._classes[number], share + (place < rest)
            copies = np.tile(members, (-(-wanted // len(members)), 1))
            parts.append(rng.permuted(copies, axis=1).ravel()[:wanted])
        return rng.permutation(np.concatenate(parts))


@dataclass(eq=False)
class IterationSampler(TrainSampler):
    """A run counted in steps: one epoch that concatenates permutations of the data set.

    The data set may be smaller than a batch; nothing is dropped between two permutations. The samples of a step do not
    depend on the number of steps, so a longer run begins like a shorter one.

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


class ShardedEvalSampler:
    """Yields every sample once over all ranks, without padding: this rank's are ``rank, rank + world_size, ...``."""

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1):
        self.indices = range(rank, num_samples, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [SampleKey(index, 0, index) for index in self.indices[start : start + self.batch_size]]
