"""Ranks: how many there are, what they tell each other, and one failure that ends all."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import nn
from paddle.base import core

__all__ = [
    "FailureWatch",
    "average_statistics",
    "barrier",
    "gather_bytes",
    "gather_lines",
    "gather_rows",
    "gather_statistics",
    "get_statistics",
    "init_process_group",
    "is_lost_connection",
    "is_main_process",
    "rank",
    "set_statistics",
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


def sum_over_ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Add up each value over all ranks; float64, so counts stay exact up to 2**53."""
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


def gather_bytes(own: bytes) -> list[bytes]:
    """What each rank has to say, on every rank; of any lengths, in the order of the ranks."""
    lengths = gather_rows([len(own)])[:, 0].astype(int)
    if world_size() == 1 or not lengths.any():  # gloo does not gather nothing
        return [own] * world_size()
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(own)] = np.frombuffer(own, np.uint8)
    rows: list[paddle.Tensor] = []
    dist.all_gather(rows, paddle.to_tensor(padded))
    return [row.numpy()[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def gather_lines(lines: Iterable[str]) -> list[str]:
    """Every rank's lines, on every rank; file names that are not UTF-8 get backslashes."""
    own = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
    return b"".join(gather_bytes(own)).decode().split("\n")[:-1]


def average_statistics(model: nn.Layer) -> None:
    """Give every rank the mean of what it gathered from its own data: BatchNorm's running means and variances."""
    if world_size() == 1:
        return
    for tensor in _statistics(model):
        mean = tensor.detach().clone()
        dist.all_reduce(mean)
        tensor.set_value(mean / world_size())


def get_statistics(model: nn.Layer) -> np.ndarray:
    """This rank's BatchNorm statistics: float32 ``[values]``."""
    values = [tensor.astype("float32").numpy().ravel() for tensor in _statistics(model)]
    return np.concatenate([np.zeros(0, np.float32), *values])  # a model may have no BatchNorm


def gather_statistics(model: nn.Layer) -> np.ndarray:
    """Every rank's BatchNorm statistics: float32 ``[world_size, values]``."""
    rows: list[paddle.Tensor] = []
    dist.all_gather(rows, paddle.to_tensor(get_statistics(model)))
    return np.stack([row.numpy() for row in rows])


def set_statistics(model: nn.Layer, values: np.ndarray) -> None:
    """Give the model what :func:`get_statistics` took."""
    start = 0
    for tensor in _statistics(model):
        tensor.set_value(values[start : start + tensor.size].reshape(tensor.shape).astype("float32"))
        start += tensor.size


def _statistics(model: nn.Layer) -> list[paddle.Tensor]:
    # Paddle keeps BatchNorm's statistics as parameters that are not trained, not as buffers; an EMA trains nothing.
    return [
        tensor
        for name, tensor in model.state_dict().items()
        if name.endswith(("._mean", "._variance")) and tensor.is_floating_point()
    ]


def barrier() -> None:
    """Wait for all ranks; nothing to wait for in a single process."""
    if world_size() > 1:
        dist.barrier()


def is_lost_connection(error: Exception) -> bool:
    """Whether an error of a collective operation means that another rank is gone."""
    return bool(re.search(r"gloo.*(?:TIMEOUT|Connection|closed|reset|pair)", str(error), re.DOTALL))


def _store_address() -> str:
    """Where rank 0 keeps the job's key-value store, as ``paddle.distributed.init_parallel_env`` finds it."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return os.environ.get("PADDLE_MASTER") or os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0]


class FailureWatch:
    """Ends every rank with the same exit code when one of them fails, so that nobody waits for ever.

    The launcher shows rank 0 only, and stops the others without telling why. A failing rank therefore leaves its
    message in the job's key-value store; a thread of each rank looks there twice a second, rank 0 prints what it finds,
    and all exit. The thread works while the main one is blocked in a collective operation. It also counts up a
    heartbeat, so that rank 0 notices a rank that was killed or whose machine is gone, and the others notice rank 0.
    """

    _INTERVAL = 0.5  # seconds between two looks at the store
    _SILENCE = 20.0  # seconds without a heartbeat after which a rank is lost
    _REMEDY = "it was killed or its machine is gone; run the same command with -resume auto to go on"

    def __init__(self):
        # A client of its own: Paddle's is not made for two threads, and NCCL uses it when it first communicates.
        host, _, port = _store_address().rpartition(":")
        self._store = core.TCPStore(host, int(port), False, 0)
        self._closed = threading.Event()
        self._lock, self._reporting = threading.Lock(), threading.Lock()
        self._answered = time.monotonic()
        self._restore_terminate = self._explain_aborts()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._watch, self._guard)]
        for thread in self._threads:
            thread.start()

    def take_over(self) -> None:
        """Let this rank report its own failure: the watch, which may have heard of another rank's, keeps still."""
        self._reporting.acquire()

    def announce(self, message: str, exit_code: int) -> None:
        """Tell all ranks to exit with ``exit_code``, and wait until they could have heard it."""
        if self._lock.acquire(timeout=4 * self._INTERVAL):  # the watch may be stuck in a dead connection
            with contextlib.suppress(Exception):  # the store may be gone with rank 0
                self._store.set("failure", f"{exit_code} rank {rank()}: {message}")
                self._store.add("failures", 1)
            self._lock.release()
        self._closed.set()
        time.sleep((3 if is_main_process() else 10) * self._INTERVAL)

    def explain_loss(self) -> str:
        """Say which ranks no longer give a sign of life; rank 0 does, the others leave it the time to."""
        if not is_main_process():
            time.sleep(self._SILENCE)
            return "another rank is lost"
        others = range(1, world_size())
        before = self._beats(others)
        time.sleep(3 * self._INTERVAL)
        silent = [str(other) for other, count in self._beats(others).items() if count == before[other]]
        if not silent:
            return "the connection to another rank broke; run the same command with -resume auto to go on"
        return f"rank {', '.join(silent)} is lost: {self._REMEDY}"

    def _explain_aborts(self) -> Callable[[], None]:
        """Leave with a message where gloo throws on a broken connection and Paddle does not catch it: std::terminate.

        Returns:
            What puts the former handler back; Python must not be called when it is gone.
        """

        def terminate() -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends it as soon as another rank is gone
            message = self.explain_loss()
            self.announce(message, 1)
            self._leave(1, message)

        handler = ctypes.CFUNCTYPE(None)(terminate)
        try:
            set_terminate = ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE  # as GNU's ABI spells it
        except (OSError, AttributeError):  # another C++ library: the abort stays unexplained
            return lambda: None
        set_terminate.restype = ctypes.c_void_p
        former = ctypes.c_void_p(set_terminate(handler))

        def restore(handler: object = handler) -> None:
            """Holds the handler, to which C++ has no reference that Python would count."""
            set_terminate(former)

        return restore

    def close(self) -> None:
        """Stop watching; call it when the work is done, before the store goes away."""
        self._restore_terminate()
        self._closed.set()
        for thread in self._threads:
            thread.join()

    def _watch(self) -> None:
        others = range(1, world_size()) if is_main_process() else range(0)
        last_beats, since = dict.fromkeys(others, 0), dict.fromkeys(others, time.monotonic())
        while not self._closed.wait(self._INTERVAL):
            try:
                with self._lock:
                    self._store.add(f"heartbeat {rank()}", 1)
                    failure = self._store.get("failure") if self._store.add("failures", 0) else b""
                beats = self._beats(others)
            except Exception:  # the store lives in rank 0, and an end of its own would have been announced
                self._leave(1, f"rank 0 is lost: {self._REMEDY}", everywhere=True)
            now = self._answered = time.monotonic()
            if failure and not self._closed.is_set():
                exit_code, _, message = failure.decode().partition(" ")
                self._leave(int(exit_code), message)
            since |= {other: now for other in others if beats[other] != last_beats[other]}
            last_beats = beats
            silent = [other for other in others if now - since[other] > self._SILENCE]
            if silent:
                self.announce(f"rank {silent[0]} is lost", 1)
                self._leave(1, f"rank {', '.join(map(str, silent))} is lost: {self._REMEDY}")

    def _beats(self, others: Iterable[int]) -> dict[int, int]:
        with self._lock:
            return {other: self._store.add(f"heartbeat {other}", 0) for other in others}

    def _guard(self) -> None:
        """End this rank when the store, which lives in rank 0, does not even refuse to answer."""
        while not self._closed.wait(self._INTERVAL):
            if time.monotonic() - self._answered > self._SILENCE:
                self._leave(1, f"rank 0 is lost: {self._REMEDY}", everywhere=True)

    def _leave(self, exit_code: int, message: str = "", everywhere: bool = False) -> None:
        # Whoever took over reports a failure of this rank's own and leaves; the limit is for the case that it is stuck.
        self._reporting.acquire(timeout=20 * self._INTERVAL)
        if message and (everywhere or is_main_process()):
            print(f"error: {message}", flush=True)
        if not is_main_process():
            time.sleep(6 * self._INTERVAL)  # the launcher reports the code of whoever leaves first: rank 0
        os._exit(exit_code)
