"""What makes Paddle fast on CPUs; ``docs/performance.md`` explains each setting.

Importing ``common`` sets the one that Paddle reads when it is imported, and importing the model the others, if there is
no GPU. The environment variable ``PALE_CPU_SETTINGS=0`` leaves the process alone.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = ["set_cpu_settings", "set_cpu_settings_without_gpu", "use_fast_gemm"]

_PROCESSOR = Path("/proc/cpuinfo")
# Parameters of glibc's mallopt and their defaults: malloc.h, mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_TRIM_THRESHOLD, _MMAP_MAX = 128 * 1024, 65536


def use_fast_gemm() -> None:
    """Let MKL, Paddle's library for matrix products, use AVX2 on AMD processors as well.

    The MKL of 2019 checks the vendor instead of the instruction set. Call it before importing paddle; the user's own
    ``MKL_DEBUG_CPU_TYPE`` has priority.
    """
    try:
        processor = _PROCESSOR.read_text()
    except OSError:  # not Linux
        return
    if "AuthenticAMD" in processor and "avx2" in processor.split() and _allowed():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


def set_cpu_settings_without_gpu() -> None:
    """Apply :func:`set_cpu_settings`, unless Paddle sees a GPU."""
    import paddle

    if not (paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count()):
        set_cpu_settings()


def set_cpu_settings(enabled: bool = True) -> None:
    """Compute on contiguous tensors and keep freed memory, in the whole process.

    - ``FLAGS_use_stride_kernel=0``: ``transpose`` and slices are copies instead of views, because reading through
      strides is slow on CPUs. Paddle refuses to compute with views that were made before.
    - The process keeps freed memory for its next tensors. glibc returns large blocks to the system, which clears every
      page again on the next use: for tensors of tens of megabytes that takes longer than the computation.

    Values that the user chose in the environment, ``FLAGS_use_stride_kernel``, ``MALLOC_TRIM_THRESHOLD_`` or
    ``MALLOC_MMAP_MAX_``, have priority; C libraries other than glibc are left alone.

    Args:
        enabled: False restores the defaults of Paddle and glibc.
    """
    import paddle

    if not _allowed():
        return
    if "FLAGS_use_stride_kernel" not in os.environ:
        paddle.set_flags({"FLAGS_use_stride_kernel": not enabled})
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_"} & set(os.environ):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0 if enabled else _MMAP_MAX)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1 if enabled else _TRIM_THRESHOLD)


def _allowed() -> bool:
    return os.environ.get("PALE_CPU_SETTINGS") != "0"
