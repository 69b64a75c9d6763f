"""The processor or GPU and the version of the code, to note with results."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from .. import __version__

__all__ = ["code_version", "cpu_model", "describe_device", "installed_versions"]

_ROOT = Path(__file__).resolve().parents[2]


def cpu_model() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def describe_device(device: str) -> str:
    """The GPU or processor, the machine's cores, and Paddle's version, such as ``AMD EPYC, 2 cores, Paddle 3.3.1``.

    Args:
        device: ``cpu``, ``gpu`` or ``gpu:N``.
    """
    import paddle

    name = cpu_model() if device == "cpu" else paddle.device.cuda.get_device_name()
    return f"{name}, {os.cpu_count()} cores, Paddle {paddle.__version__}"


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_version() -> str:
    """The project's version and, in a checkout, its commit: ``0.2.0+48f1370``, or ``0.2.0+48f1370-dirty``.

    Files in ``docs/`` and ``results/`` do not make it dirty, because measurements change them.
    """
    if not (_ROOT / ".git").exists():  # installed; a repository further up is another project's
        return __version__
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", ":!results")
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__}+{commit}" + "-dirty" * bool(changed)


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True)
    return result.stdout.strip()
