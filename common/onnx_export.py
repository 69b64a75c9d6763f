"""Write a model as an ONNX file, with paddle2onnx."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import paddle
from paddle import nn

from common.errors import UserError
from common.pale_attention import fuse

__all__ = ["export_onnx"]

OPSET = 17  # the first with a LayerNormalization


def export_onnx(model: nn.Layer, path: str | Path, image_size: int | None = None) -> None:
    """Export what a model computes in evaluation.

    The file takes ``images`` float32 ``[batch, 3, height, width]``, with any batch. The model itself stays as it is.

    Args:
        model: maps such images to one tensor.
        path: of the ONNX file; its folder is made.
        image_size: fixes height and width in pixels, which lets runtimes prepare more; None leaves both open.

    Raises:
        UserError: paddle2onnx is not installed or cannot convert the model, or the file cannot be written.
    """
    if importlib.util.find_spec("paddle2onnx") is None:
        raise UserError("paddle2onnx is not installed: pip install -r requirements-export.txt (Python 3.10 to 3.12)")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(model)
    fuse(model)
    with tempfile.TemporaryDirectory() as folder:
        spec = paddle.static.InputSpec([None, 3, image_size, image_size], "float32", "images")
        paddle.jit.save(model, f"{folder}/model", input_spec=[spec])
        converted = _convert(Path(folder))
        _write_without_unused_constants(converted, path)


def _convert(folder: Path) -> Path:
    """Convert the ``model`` in a folder to an ONNX file beside it.

    In a process of its own, because paddle2onnx aborts its process over an operator that it does not know.
    """
    program = next(file for file in folder.iterdir() if file.suffix in (".json", ".pdmodel"))
    converted = folder / "model.onnx"
    command = [sys.executable, "-m", "paddle2onnx.command", "--model_dir", str(folder)]
    command += ["--model_filename", program.name, "--params_filename", "model.pdiparams"]
    command += ["--save_file", str(converted), "--opset_version", str(OPSET)]
    if program.suffix == ".json":
        # Only paddle2onnx 2 has optimizers. They need packages that it does not require, and make nothing faster.
        command += ["--optimize_tool", "None"]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if not converted.exists():
        lines = [line for line in result.stdout.splitlines() if "ERROR" in line] or [f"code {result.returncode}"]
        raise UserError(f"paddle2onnx cannot convert this model: {lines[0].strip()}")
    return converted


def _write_without_unused_constants(source: Path, target: Path) -> None:
    """Copy an ONNX file but for the constants that paddle2onnx left over; runtimes warn of each."""
    import onnx

    model = onnx.load(source)
    used = {*_inputs(model.graph), *(output.name for output in model.graph.output)}
    kept = [node for node in model.graph.node if node.op_type != "Constant" or node.output[0] in used]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.save(model, target)


def _inputs(graph) -> Iterator[str]:
    """Names of the values that the nodes of a graph, and of the graphs inside them, take."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _inputs(attribute.g)
