"""Batches arrive in order from any number of processes; errors, kills and exits neither hang nor leave anything."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.training.loader import Loader

ROOT = Path(__file__).parents[2]


class Numbers:
    """Sample n is an array of n times n, in a type that depends on n, and something that is no array."""

    def __getitem__(self, key):
        return {"array": np.full((key, key), key, ("float32", "uint8", "int64")[key % 3]), "other": [key] * 50_000}


def first(samples):
    return {"label": np.array([1, 2, 3], "int16"), **samples[0]}


def fail(error):
    def function(*_):
        raise error

    return function


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_arrive_in_order_with_their_types_and_own_memory(workers):
    keys = [3, 1, 200, 2, 5, 4, 0, 7, 100, 6]
    batches = list(Loader(Numbers(), [[key] for key in keys], workers, first))
    assert len(batches) == len(keys)
    for key, batch in zip(keys, batches, strict=True):
        expected = Numbers()[key]
        assert batch["other"] == expected["other"]
        assert batch["label"].numpy().tolist() == [1, 2, 3]
        np.testing.assert_array_equal(batch["array"].numpy(), expected["array"])
        assert batch["array"].numpy().dtype == expected["array"].dtype


class Failing(Numbers):
    def __getitem__(self, key):
        return fail(UserError("sample 2 is bad"))() if key == 2 else super().__getitem__(key)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_in_place_of_its_batch(workers):
    batches = iter(Loader(Failing(), [[0], [1], [2], [3]], workers, first))
    assert [len(next(batches)["array"]) for _ in range(2)] == [0, 1]
    with pytest.raises(UserError, match=r"^sample 2 is bad$"):
        next(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_whatever_is_raised_ends_the_iteration(workers):
    with pytest.raises(UserError, match=r"not enough memory for a batch of 1 samples .* lower the batch size"):
        list(Loader(Numbers(), [[1]], workers, fail(MemoryError())))
    sampler = map(fail(ValueError("negative")), [0])
    with pytest.raises((ValueError, RuntimeError), match="negative"):
        list(Loader(Numbers(), sampler, workers, first))


class Killed(Numbers):
    def __init__(self, number):
        self.number = number

    def __getitem__(self, key):
        return os.kill(os.getpid(), self.number) if key == 4 else super().__getitem__(key)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGRTMIN + 6, r"signal \d+")])
def test_a_killed_reader_is_one_line_with_the_remedies(number, name):
    batches = iter(Loader(Killed(number), [[key] for key in range(10)], 2, first))
    for _ in range(4):
        next(batches)
    with pytest.raises(UserError, match=rf"ended by {name}, .*memory.*DATA\.NUM_WORKERS"):
        next(batches)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("end", ["pass", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_nothing_is_left_of_a_process_that_ends_amid_an_epoch(end):
    program = f"""
        import multiprocessing, os, sys
        sys.path.insert(0, {str(ROOT)!r})
        from tests.training.test_loader import Loader, Numbers, first
        batches = iter(Loader(Numbers(), [[500]] * 100, 2, first))
        next(batches)
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
        {end}
    """
    before = set(Path("/dev/shm").iterdir())
    command = [sys.executable, "-c", textwrap.dedent(program)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    readers = [Path("/proc") / pid for pid in re.findall(r"\d+", result.stdout)]
    assert len(readers) == 2, result.stderr
    assert not set(Path("/dev/shm").iterdir()) - before
    deadline = time.monotonic() + 10
    while any(reader.exists() for reader in readers):
        assert time.monotonic() < deadline, "a reader lives on"
        time.sleep(0.05)
