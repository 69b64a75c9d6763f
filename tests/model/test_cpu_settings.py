"""What the entry points set for CPUs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from common.runtime import cpu_settings
from tests.helpers.programs import ROOT

AMD = "processor : 0\nvendor_id : AuthenticAMD\nflags : fpu sse2 avx avx2 fma\n"


@pytest.mark.parametrize(
    ("processor", "given", "expected"),
    [
        (AMD, None, "5"),
        (AMD, "4", "4"),
        (AMD.replace("avx2", "avx"), None, None),
        (AMD.replace("AuthenticAMD", "GenuineIntel"), None, None),
        (None, None, None),
    ],
)
def test_the_instructions_of_amd_are_used_unless_the_user_says_otherwise(
    monkeypatch, tmp_path, processor, given, expected
):
    file = tmp_path / "cpuinfo"
    if processor:
        file.write_text(processor)
    monkeypatch.setattr(cpu_settings, "_PROCESSOR", file)
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
    if given:
        monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", given)
    cpu_settings.use_fast_gemm()
    assert os.environ.get("MKL_DEBUG_CPU_TYPE") == expected


FAULTS = """
import resource, sys
import numpy as np
from common.runtime.cpu_settings import keep_freed_memory

keep_freed_memory()
def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(64 << 20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([fill() for _ in range(3)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")
@pytest.mark.parametrize("given", [{}, {"MALLOC_MMAP_MAX_": "65536"}])
def test_memory_that_was_freed_is_not_cleared_again(given):
    """The third array of 64 MB touches no new page, unless the user chose."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | given
    environment["NUMPY_MADVISE_HUGEPAGE"] = "0"  # a page is one of 4 KiB
    output = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert (int(output) < 100) == (not given)
