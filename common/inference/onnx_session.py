"""ONNX files in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError, one_line

__all__ = ["open_onnx"]


def open_onnx(file: Path, threads: int | None = None, device: str = "cpu") -> Any:
    """Open an ONNX file.

    Args:
        threads: of a run on CPUs; None leaves it to ONNX Runtime.
        device: ``cpu``, ``gpu`` or ``gpu:N``; what a GPU cannot do is done on the CPU.

    Returns:
        An ``onnxruntime.InferenceSession``.

    Raises:
        UserError: onnxruntime is not installed, or cannot run the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("onnxruntime is not installed: pip install -r requirements-export.txt") from error
    options = onnxruntime.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(device.partition(":")[2] or 0)}))
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:
        raise UserError(f"ONNX Runtime cannot run {file}: {one_line(error)}") from error
