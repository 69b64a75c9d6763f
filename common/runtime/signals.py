"""SIGTERM, SIGINT and SIGHUP as a request to save and exit, and processes that end with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.machinery
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

__all__ = [
    "StopRequest",
    "bind_to_parent",
    "clean_up_on_signals",
    "received_signal",
    "signals_wait",
    "stop_with_launcher",
    "stop_with_parent",
]

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SAME = 5.0  # seconds in which further signals are taken for the first one
_received: list[float] = []  # the last signal of _interrupt, and when


def _send_at_death_of_parent(number: int) -> None:
    pr_set_pdeathsig = 1  # of <sys/prctl.h>
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


def stop_with_launcher() -> None:
    """Send SIGTERM to this rank when Paddle's launcher dies: a new launch would train beside it otherwise."""
    if sys.platform == "linux" and "PADDLE_RANK_IN_NODE" in os.environ:  # only the launcher sets it
        _send_at_death_of_parent(signal.SIGTERM)
        # It runs the same interpreter. If it has died already, this process has another parent, such as init.
        if not _is_same_file("/proc/self/exe", f"/proc/{os.getppid()}/exe"):
            os.kill(os.getpid(), signal.SIGTERM)


def _is_same_file(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)  # noqa: PTH121
    except OSError:  # not one of this user's processes
        return False


def stop_with_parent() -> None:
    """Send SIGTERM to this process, or to the program that it becomes, when its parent dies."""
    _send_at_death_of_parent(signal.SIGTERM)


def bind_to_parent() -> None:
    """Let a reader process end with its parent, and only then.

    Terminals and schedulers send signals to readers, too. Readers would wait forever for a parent that was killed.
    """
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _send_at_death_of_parent(signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it died before the request
        os.kill(os.getpid(), signal.SIGKILL)


def clean_up_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this program as Ctrl-C does, so that it removes unfinished files.

    They raise ``KeyboardInterrupt``, also after a later import of Paddle; :func:`received_signal` tells which one it
    was. For five seconds, others are ignored, so that they do not interrupt the removal.
    """
    for number in _STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, _interrupt)
    sys.meta_path.insert(0, _PaddleFinder)


def received_signal() -> int:
    """The number of the signal that interrupted this program after :func:`clean_up_on_signals`, or 0."""
    return int(_received[0]) if _received else 0


def _interrupt(number: int, frame: object) -> None:
    now = time.monotonic()
    if not _received or now - _received[1] > _SAME:
        _received[:] = number, now
        raise KeyboardInterrupt


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Let signals wait for the end of the block, in which C++ code calls Python: an exception there can be a crash."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets them
        yield
        return
    arrived: list[int] = []
    numbers = [number for number in _STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, lambda number, frame: arrived.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


class _PaddleFinder:
    """Lets signals wait for the end of Paddle's import, and keeps their handlers.

    The import sets one of SIGTERM that ends the process at once, and turns a ``KeyboardInterrupt`` into an
    ``ImportError``.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name) if name == "paddle" else None
        if spec and spec.loader:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                handlers = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
                signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
                try:
                    load(module)
                finally:
                    for number, handler in handlers.items():
                        signal.signal(number, handler)
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)  # delivers what has arrived

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


class StopRequest:
    """Remembers the first signal; a second one ends the process at once.

    The launcher forwards signals that the terminal or the scheduler has sent to its processes already, and sends
    SIGTERM up to three times, so signals within five seconds of the first one are ignored. SIGHUP stays ignored if the
    program was started with nohup.
    """

    def __init__(self):
        from .distributed import is_main_process  # imports Paddle

        self._prints = is_main_process()
        self.signal_number = 0
        self._since = 0.0

    def __enter__(self) -> StopRequest:
        self._process = os.getpid()
        numbers = [number for number in _STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if not self.signal_number:
            self.signal_number, self._since = number, now
            if self._prints and os.getpid() == self._process:
                name = signal.Signals(number).name
                with contextlib.suppress(OSError):  # the terminal is gone
                    os.write(
                        1, f"{name}: saving after this step; another signal after 5 s exits immediately\n".encode()
                    )
        elif now - self._since > _SAME:
            os._exit(128 + number)
