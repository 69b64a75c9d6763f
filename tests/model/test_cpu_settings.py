"""What importing the model sets for CPUs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import paddle
import pytest

from common.runtime import cpu_settings
from common.runtime.cpu_settings import set_cpu_settings
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


IMPORTED = """
import resource, sys
import numpy as np
import paddle
import common.pale_transformer


def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(64 << 20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults = [fill() for _ in range(3)][-1]
print(faults < 100, not paddle.get_flags("FLAGS_use_stride_kernel")["FLAGS_use_stride_kernel"])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "True True"),
        ({"MALLOC_MMAP_MAX_": "65536"}, "False True"),
        ({"FLAGS_use_stride_kernel": "1"}, "True False"),
        ({"PALE_CPU_SETTINGS": "0"}, "False False"),
    ],
)
def test_the_import_keeps_freed_memory_and_switches_views_off_unless_the_user_says_otherwise(given, expected):
    """The third array of 64 MB touches no new page."""
    settings = ("MALLOC_", "FLAGS_use_stride_kernel", "PALE_CPU_SETTINGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(settings)} | given
    environment["NUMPY_MADVISE_HUGEPAGE"] = "0"  # a page is one of 4 KiB
    output = subprocess.run(
        [sys.executable, "-c", IMPORTED], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == expected


def test_the_defaults_can_be_restored():
    set_cpu_settings(False)
    assert paddle.get_flags("FLAGS_use_stride_kernel") == {"FLAGS_use_stride_kernel": True}
    set_cpu_settings()
    assert paddle.get_flags("FLAGS_use_stride_kernel") == {"FLAGS_use_stride_kernel": False}
