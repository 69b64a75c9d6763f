"""A model in ONNX Runtime, on the CPU, as it is or in 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.inference.export_formats import open_onnx

__all__ = ["load_onnx", "quantize"]


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


def quantize(file: Path) -> Path:
    """Store the weights of products and convolutions in 8 bits, and have ONNX Runtime do these in 8 bits.

    Returns:
        A file beside the given one.

    Raises:
        UserError: what that needs is not installed.
    """
    try:
        import onnxruntime
        from onnxruntime.quantization import quantize_dynamic
    except ImportError as error:
        raise UserError(f"{error}: pip install -r requirements-export.txt") from error
    options = onnxruntime.SessionOptions()
    # Only weights that go straight into a product are quantised, not those that are transposed before.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(file.with_suffix(".folded.onnx"))
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    quantized = file.with_suffix(".int8.onnx")
    quantize_dynamic(options.optimized_model_filepath, quantized)
    return quantized
