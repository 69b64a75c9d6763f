"""The rate at which the machine multiplies matrices, by the libraries that the models run on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from common.errors import UserError
from tools.benchmarking.onnx_session import load_onnx
from tools.benchmarking.runner import Runner, TimedRunner
from tools.benchmarking.subjects import Gemm

__all__ = ["build"]


def build(subject: Gemm) -> Runner:
    """Prepare the product of two matrices ``[size, size]``.

    Raises:
        UserError: the device does not exist, or onnxruntime is not installed.
    """
    left, right = np.random.default_rng(0).standard_normal((2, subject.size, subject.size), np.float32)
    flops = 2 * subject.size**3
    if subject.library == "numpy":
        out = np.empty_like(left)
        return TimedRunner(lambda: np.matmul(left, right, out=out), flops)
    if subject.library == "paddle":
        import paddle

        from common.runtime.device import select_device

        on_cpu = select_device(subject.device) == "cpu"
        left, right = (paddle.to_tensor(matrix).astype(subject.dtype) for matrix in (left, right))

        def multiply() -> None:
            paddle.matmul(left, right)
            if not on_cpu:
                paddle.device.synchronize()

        return TimedRunner(multiply, flops)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gemm.onnx"
        _write_product(file, subject.size)
        return TimedRunner(load_onnx(file, [left, right], subject.threads), flops)


def _write_product(file: Path, size: int) -> None:
    try:
        import onnx
    except ImportError as error:
        raise UserError("onnx is not installed: pip install -r requirements-export.txt") from error
    from onnx import TensorProto, helper

    matrices = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in "abc"}
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "gemm", [matrices["a"], matrices["b"]], [matrices["c"]])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
