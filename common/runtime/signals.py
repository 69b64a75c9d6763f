"""SIGTERM and SIGINT as a request to save and exit."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

from .distributed import is_main_process

__all__ = ["PR_SET_PDEATHSIG", "StopRequest", "bind_to_parent"]

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def bind_to_parent(*_: object) -> None:
    """Let a reader process end with its parent, and only then.

    Terminals and schedulers send signals to readers, too. Paddle's readers wait forever for a parent that was killed.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class StopRequest:
    """Remembers the first signal; a second one ends the process at once.

    The launcher forwards signals that the terminal or the scheduler has sent to its processes already, so signals
    within a second of the first one are ignored.
    """

    _SAME = 1.0  # seconds

    def __init__(self):
        self.signal_number = 0
        self._since = 0.0

    def __enter__(self) -> StopRequest:
        self._process = os.getpid()
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if not self.signal_number:
            self.signal_number, self._since = number, now
            if is_main_process() and os.getpid() == self._process:
                name = signal.Signals(number).name
                os.write(1, f"{name}: saving after this step; a second signal exits immediately\n".encode())
        elif now - self._since > self._SAME:
            os._exit(128 + number)
