"""Settings that make Paddle fast on CPUs; ``docs/performance.md`` explains them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = ["keep_freed_memory", "use_fast_gemm"]

_PROCESSOR = Path("/proc/cpuinfo")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def use_fast_gemm() -> None:
    """Let MKL, Paddle's library for matrix products, use AVX2 on AMD processors as well.

    The MKL of 2019 checks the vendor instead of the instruction set. Call it before importing paddle; the user's own
    ``MKL_DEBUG_CPU_TYPE`` has priority.
    """
    try:
        processor = _PROCESSOR.read_text()
    except OSError:  # not Linux
        return
    if "AuthenticAMD" in processor and "avx2" in processor.split():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


def keep_freed_memory() -> None:
    """Let the process keep freed memory for its next tensors.

    glibc returns large blocks to the system, which clears every page again on the next use: for tensors of tens of
    megabytes that takes longer than the computation. The user's own ``MALLOC_TRIM_THRESHOLD_`` or
    ``MALLOC_MMAP_MAX_`` has priority; other C libraries are left alone.
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_"} & set(os.environ):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
