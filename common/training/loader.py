"""Batches, read ahead by other processes, and the seeds of the toolkits' transforms."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import mmap
import multiprocessing
import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import paddle

from ..errors import UserError, one_line
from ..runtime.signals import bind_to_parent

__all__ = ["Loader", "seed_generators"]

_AHEAD = 2  # batches that a reader has ready
_ALIGNMENT = 64  # bytes
_JOIN_SECONDS = 5.0


class _Place(NamedTuple):
    """Where an array is in shared memory."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


class _Samples(Sized, Protocol):
    def __getitem__(self, key: Any, /) -> Any: ...


class _Batches(Sized, Iterable[Sequence[Any]], Protocol): ...


@dataclass
class Loader:
    """Iterates over the batches of a data set, in the order of the sampler whatever the number of workers.

    Each reading process makes every ``workers``-th batch. Whatever it raises is raised here, in place of its batch. The
    memory that it shares with this process has no name, so that nothing is left of it when both are killed, and the
    size of ``/dev/shm`` does not limit it.

    Args:
        dataset: maps a key to a sample; an error that the user can correct is a ``UserError``.
        sampler: yields the keys of each batch.
        workers: reading processes, which end with this one; 0 reads in this process.
        collate: makes a batch, a dict, of a list of samples. Its arrays become tensors on the current device.
    """

    dataset: _Samples
    sampler: _Batches
    workers: int
    collate: Callable[[list], dict[str, Any]]

    def __len__(self) -> int:
        return len(self.sampler)

    def read(self, keys: Sequence[Any]) -> dict[str, Any]:
        """Read and collate samples, in this process.

        Returns:
            The batch, with arrays.

        Raises:
            UserError: a sample cannot be read, or they make no batch.
        """
        try:
            return self.collate([self.dataset[key] for key in keys])
        except MemoryError as error:
            raise UserError(
                f"there is not enough memory for a batch of {len(keys)} samples ({one_line(error)}); lower the batch "
                "size, the image size or DATA.NUM_WORKERS"
            ) from error

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches.

        Raises:
            UserError: as :meth:`read`, or a reading process was killed.
        """
        place = paddle.empty([1]).place
        if not self.workers:
            for keys in self.sampler:
                yield _as_tensors(self.read(keys), place)
            return
        readers = [_Reader(self, number) for number in range(self.workers)]
        # A thread makes the tensors of the next batch. It starts after the readers, which forked no lock of it.
        converter = ThreadPoolExecutor(1, initializer=paddle.set_device, initargs=(paddle.get_device(),))
        try:
            turns = itertools.cycle(readers)
            following = converter.submit(next(turns).receive, place)
            while (batch := following.result()) is not None:
                following = converter.submit(next(turns).receive, place)
                yield batch
        finally:
            for reader in readers:
                reader.end()
            converter.shutdown()


class _Reader:
    """A process that makes the batches ``number``, ``number + workers``, ... of a loader."""

    def __init__(self, loader: Loader, number: int):
        context = multiprocessing.get_context("fork")
        self._connection, connection = context.Pipe()
        self._memory = [_SharedMemory() for _ in range(_AHEAD)]
        self._turns = itertools.cycle(self._memory)
        self._process = context.Process(target=self._serve, args=(loader, number, connection), daemon=True)
        self._process.start()
        connection.close()  # the process has the only end now, so that receiving fails when it is killed
        atexit.register(self.end)  # before multiprocessing, which would wait for a process that ignores SIGTERM

    def end(self) -> None:
        """Kill the process; it has nothing to lose."""
        atexit.unregister(self.end)
        self._process.kill()
        self._process.join()

    def receive(self, place: Any) -> dict[str, Any] | None:
        """Wait for the next batch, with tensors; None after the last one.

        Raises:
            UserError: the process was killed.
            Exception: whatever the process raised.
        """
        try:
            message = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join(_JOIN_SECONDS)
            raise UserError(
                f"a process that reads the data was ended by {_cause(self._process.exitcode)}, most likely because "
                "memory ran out; lower DATA.NUM_WORKERS (0 reads in the training process) or the batch size, or give "
                "the job or container more memory"
            ) from error
        if message is None:
            return None
        if isinstance(message, Exception):
            raise message
        batch = _as_tensors(next(self._turns).load(message), place)
        with contextlib.suppress(BrokenPipeError):  # after its last batch the process ends
            self._connection.send_bytes(b"free")
        return batch

    def _serve(self, loader: Loader, number: int, connection: Connection) -> None:
        bind_to_parent()
        cv2.setNumThreads(0)  # the readers already share the cores; 1 instead of 0 can hang in a forked process
        free = _AHEAD
        try:
            for keys in itertools.islice(loader.sampler, number, None, loader.workers):
                batch = loader.read(keys)
                if not free:
                    connection.recv_bytes()
                    free += 1
                free -= 1
                connection.send(next(self._turns).store(batch))
            connection.send(None)
        except UserError as error:
            connection.send(error)
        except Exception as error:  # it may not be possible to pickle it
            connection.send(RuntimeError(f"{type(error).__name__} in a reading process: {one_line(error)}"))


class _SharedMemory:
    """Memory without a name that forked processes share. It holds the arrays of one batch, and grows as needed."""

    def __init__(self):
        # The second, a deleted file, is for systems other than Linux.
        has_memfd = hasattr(os, "memfd_create")
        self._file = os.fdopen(os.memfd_create("batch"), "r+b") if has_memfd else tempfile.TemporaryFile()  # noqa: SIM115
        self._map: mmap.mmap | None = None

    def store(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Copy the arrays of a batch into the memory, and return the batch with their places instead."""
        places, size = {}, _ALIGNMENT
        for name, value in batch.items():
            if isinstance(value, np.ndarray):
                places[name] = _Place(value.dtype.str, value.shape, size)
                size += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
        if os.fstat(self._file.fileno()).st_size < size:
            self._file.truncate(size)
        for name, view in self.load(places).items():
            view[...] = batch[name]
        return {**batch, **places}

    def load(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return a stored batch; its arrays are views of the memory, which change with the next :meth:`store`."""
        size = os.fstat(self._file.fileno()).st_size
        if self._map is None or len(self._map) < size:
            self._map = mmap.mmap(self._file.fileno(), size)
        return {
            name: np.ndarray(value.shape, value.dtype, self._map, value.offset) if isinstance(value, _Place) else value
            for name, value in stored.items()
        }


def _as_tensors(batch: Mapping[str, Any], place: Any) -> dict[str, Any]:
    """Copy the arrays of a batch to tensors; unlike ``paddle.to_tensor``, other threads go on meanwhile."""
    return {name: _as_tensor(value, place) if isinstance(value, np.ndarray) else value for name, value in batch.items()}


def _as_tensor(array: np.ndarray, place: Any) -> paddle.Tensor:
    options = {"place": paddle.CPUPlace(), "persistable": False, "name": None, "stop_gradient": True}
    view = paddle.Tensor(value=np.ascontiguousarray(array), zero_copy=True, **options)
    return view._copy_to(place, True)


def _cause(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:  # most real-time signals have no name
        return f"signal {-exit_code}"


def seed_generators(*seeds: int) -> None:
    """Seed Python's and NumPy's global generators, which the toolkits' transforms use."""
    words = np.random.SeedSequence(seeds).generate_state(8)
    random.seed(words[:4].tobytes())
    np.random.seed(words[4:])
