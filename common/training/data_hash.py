"""Short hashes of data and code, which show whether two machines, or two runs, train on the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..tasks import TASKS

__all__ = ["code_hash", "data_hash"]

_ROOT = Path(__file__).resolve().parents[2]
_DIGITS = 12


def data_hash(*parts: np.ndarray | Iterable[Any]) -> str:
    """A hash of arrays and sequences of plain values, such as sample names, labels and class names, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(
            np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(list(part)).encode()
        )
        digest.update(b"\0")
    return digest.hexdigest()[:_DIGITS]


def code_hash() -> str:
    """A hash of the Python files of this project's packages."""
    digest = hashlib.sha256()
    for package in ("common", *sorted(TASKS)):
        for file in sorted((_ROOT / package).rglob("*.py")):
            digest.update(str(file.relative_to(_ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:_DIGITS]
