"""Peak memory of what runs between two looks at it."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path

__all__ = ["PeakMemory"]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class PeakMemory:
    """Watches from its creation: this process's resident set on CPUs, Paddle's allocations on GPUs.

    Args:
        device: ``cpu``, ``gpu`` or ``gpu:N``.
    """

    def __init__(self, device: str):
        self._on_cpu = device == "cpu"
        gc.collect()
        if self._on_cpu and sys.platform == "linux":
            # What was freed must leave the resident set, or the work would hide in it.
            ctypes.CDLL(None).malloc_trim(0)
            _CLEAR_REFS.write_text("5")  # resets VmHWM, the high-water mark
        self._before = self._now("VmRSS", "memory_allocated")

    def read(self) -> dict[str, int] | None:
        """Bytes before the work and at its peak, ``{"before": ..., "peak": ...}``, or None where nobody counts them."""
        peak = self._now("VmHWM", "max_memory_allocated")
        return None if self._before is None or peak is None else {"before": self._before, "peak": peak}

    def _now(self, field: str, function: str) -> int | None:
        if not self._on_cpu:
            import paddle

            return getattr(paddle.device.cuda, function)()
        try:
            status = _STATUS.read_text(encoding="utf-8")
        except OSError:
            return None
        return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)[1])
