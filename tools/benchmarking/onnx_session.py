"""A model in ONNX Runtime, on the CPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError

__all__ = ["OnnxRunner"]


class OnnxRunner:
    """Runs an ONNX file on fixed inputs.

    Args:
        file: the model; it is not needed afterwards.
        inputs: in the model's order.
        threads: of a run.
        flops: see :class:`tools.benchmarking.subjects.Runner`.
        images: see there.

    Raises:
        UserError: onnxruntime is not installed.
    """

    def __init__(self, file: Path, inputs: Sequence[np.ndarray], threads: int, flops: int | None, images: int | None):
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("onnxruntime is not installed: pip install -r requirements-export.txt") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = (node.name for node in self._session.get_inputs())
        self._feed = dict(zip(names, inputs, strict=True))
        self.flops, self.images = flops, images

    def run(self) -> float:
        began = time.perf_counter()
        self._session.run(None, self._feed)
        return time.perf_counter() - began
