"""What a measurement ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import datetime, timezone

from common.runtime.machine import cpu_model, git_state

__all__ = ["describe_machine", "installed_versions"]

# What decides how long a subject takes.
PACKAGES = (
    *("paddlepaddle", "paddlepaddle-gpu", "paddleclas", "torch", "timm"),
    *("paddle2onnx", "onnxruntime", "numpy", "pillow", "opencv-python-headless"),
)


def describe_machine() -> dict[str, str | int]:
    """Machine, versions, date and the project's state, as columns of a table."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        "git": git_state("docs", "results"),  # which measurements change, and nothing measures
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 0,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def installed_versions() -> str:
    """``name version`` of those PACKAGES that this Python has, joined by commas."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
