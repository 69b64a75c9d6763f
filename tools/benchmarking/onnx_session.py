"""A model in ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError

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
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("onnxruntime is not installed: pip install -r requirements-export.txt") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = (node.name for node in session.get_inputs())
    return partial(session.run, None, dict(zip(names, inputs, strict=True)))
