"""Settings that make Paddle fast on CPUs; ``docs/performance.md`` says what each brings."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = ["keep_freed_memory", "use_fast_gemm"]

_PROCESSOR = Path("/proc/cpuinfo")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def use_fast_gemm() -> None:
    """Let Intel's library for matrix products, which Paddle brings, use AVX2 on AMD's processors too.

    That of 2019 asks for the vendor, not for the instructions, and takes an old path otherwise. To be called before
    paddle is imported; a value that the user gave to ``MKL_DEBUG_CPU_TYPE`` stays.
    """
    try:
        processor = _PROCESSOR.read_text()
    except OSError:  # not Linux
        return
    if "AuthenticAMD" in processor and "avx2" in processor.split():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


def keep_freed_memory() -> None:
    """Let the process keep the memory that it frees, for its next tensors.

    glibc gives large blocks back to the system, which clears each page anew when the next tensor touches it: for
    tensors of tens of megabytes that takes longer than to compute them. ``MALLOC_TRIM_THRESHOLD_`` or
    ``MALLOC_MMAP_MAX_`` in the environment, and other C libraries, leave everything as it is.
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_"} & set(os.environ):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
