"""A model in ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.onnx_session import open_onnx

__all__ = ["load_onnx"]


def load_onnx(file: Path, inputs: Sequence[np.ndarray], threads: int) -> Callable[[], Any]:
    """Return a function that runs an ONNX file on fixed inputs.

    Args:
        file: the model; it is not needed afterwards.
        inputs: in the model's order.
        threads: of a run.

    Raises:
        UserError: onnxruntime is not installed.
    """
    session = open_onnx(file, threads)
    names = (node.name for node in session.get_inputs())
    return partial(session.run, None, dict(zip(names, inputs, strict=True)))
