"""One failing rank ends all ranks."""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
import time
from collections.abc import Iterable

import paddle.distributed as dist
from paddle.base import core

from .distributed import is_main_process, rank, world_size

__all__ = ["FailureWatch", "init_process_group", "is_lost_connection"]


def init_process_group() -> FailureWatch | None:
    """Join the other ranks and watch them; ``None`` in a single process."""
    if world_size() == 1:
        return None
    with contextlib.redirect_stderr(io.StringIO()):  # Paddle prints the flags that the launcher itself has set
        dist.init_parallel_env()
    return FailureWatch()


def is_lost_connection(error: Exception) -> bool:
    """Whether an error of a collective operation means that another rank is gone."""
    return bool(re.search(r"gloo.*(?:TIMEOUT|Connection|closed|reset|pair)", str(error), re.DOTALL))


class FailureWatch:
    """Ends every rank with the same exit code when one of them fails, so that none waits forever.

    The launcher shows only rank 0, and stops the other ranks without a message. So a failing rank leaves its message in
    the key-value store of the job. A thread of each rank reads it twice a second, also while the main thread is blocked
    in a collective operation; rank 0 prints the message, and all exit. The thread also counts a heartbeat, from which
    rank 0 notices that a rank was killed or its machine is gone. The others notice rank 0 when the store, which it
    runs, does not answer.
    """

    _INTERVAL = 0.5  # seconds between two reads
    _SILENCE = 20.0  # seconds without a heartbeat or an answer after which a rank is lost
    _REMEDY = "it was killed or its machine is gone; run the same command with -resume auto to continue"

    def __init__(self):
        # A client of its own: Paddle's is not thread-safe, and NCCL uses it for its first communication.
        host, _, port = _store_address().rpartition(":")
        self._store = core.TCPStore(host, int(port), False, 0)
        self._closed = threading.Event()
        self._lock, self._reporting = threading.Lock(), threading.Lock()
        self._answered = time.monotonic()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._watch, self._watch_store)]
        for thread in self._threads:
            thread.start()

    def take_over(self) -> None:
        """Let this rank report its own failure, not one of another rank that the watch may have read."""
        self._reporting.acquire()

    def announce(self, message: str, exit_code: int) -> None:
        """Tell all ranks to exit with ``exit_code``, and wait until they have had time to read it."""
        if self._lock.acquire(timeout=4 * self._INTERVAL):  # the watch may be stuck in a dead connection
            with contextlib.suppress(Exception):  # the store may be gone with rank 0
                self._store.set("failure", f"{exit_code} rank {rank()}: {message}")
                self._store.add("failures", 1)
            self._lock.release()
        self._closed.set()
        time.sleep((3 if is_main_process() else 10) * self._INTERVAL)

    def explain_loss(self) -> str:
        """The ranks without a heartbeat, as a message. Rank 0 finds them; the others leave it the time to."""
        if not is_main_process():
            time.sleep(self._SILENCE)
            return "another rank does not respond"
        others = range(1, world_size())
        before = self._heartbeats(others)
        time.sleep(3 * self._INTERVAL)
        silent = [str(other) for other, count in self._heartbeats(others).items() if count == before[other]]
        if not silent:
            return "the connection to another rank broke; run the same command with -resume auto to continue"
        return f"rank {', '.join(silent)} does not respond: {self._REMEDY}"

    def close(self) -> None:
        """Stop watching; call it when the work is done, before the store goes away."""
        self._closed.set()
        for thread in self._threads:
            thread.join()

    def _watch(self) -> None:
        others = range(1, world_size()) if is_main_process() else range(0)
        counts, since = dict.fromkeys(others, 0), dict.fromkeys(others, time.monotonic())
        while not self._closed.wait(self._INTERVAL):
            try:
                with self._lock:
                    self._store.add(f"heartbeat {rank()}", 1)
                    failure = self._store.get("failure") if self._store.add("failures", 0) else b""
                latest = self._heartbeats(others)
            except Exception:  # rank 0 runs the store, and would have announced its own failure
                self._leave(1, f"rank 0 does not respond: {self._REMEDY}", everywhere=True)
            now = self._answered = time.monotonic()
            if failure and not self._closed.is_set():
                exit_code, _, message = failure.decode().partition(" ")
                self._leave(int(exit_code), message)
            since |= {other: now for other in others if latest[other] != counts[other]}
            counts = latest
            silent = [other for other in others if now - since[other] > self._SILENCE]
            if silent:
                self.announce(f"rank {silent[0]} does not respond", 1)
                self._leave(1, f"rank {', '.join(map(str, silent))} does not respond: {self._REMEDY}")

    def _heartbeats(self, others: Iterable[int]) -> dict[int, int]:
        with self._lock:
            return {other: self._store.add(f"heartbeat {other}", 0) for other in others}

    def _watch_store(self) -> None:
        """Leave when a request to the store neither succeeds nor fails."""
        while not self._closed.wait(self._INTERVAL):
            if time.monotonic() - self._answered > self._SILENCE:
                self._leave(1, f"rank 0 does not respond: {self._REMEDY}", everywhere=True)

    def _leave(self, exit_code: int, message: str, everywhere: bool = False) -> None:
        # Whoever took over reports a failure of this rank itself and leaves, unless it is stuck.
        self._reporting.acquire(timeout=20 * self._INTERVAL)
        if everywhere or is_main_process():
            print(f"error: {message}", flush=True)
        if not is_main_process():
            time.sleep(6 * self._INTERVAL)  # the launcher reports the exit code of the first rank that leaves: rank 0
        os._exit(exit_code)


def _store_address() -> str:
    """The address of the key-value store that rank 0 runs, found as ``paddle.distributed.init_parallel_env`` does."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return os.environ.get("PADDLE_MASTER") or os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0]
