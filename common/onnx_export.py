"""Write a model as an ONNX file, with paddle2onnx."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from paddle import nn

from common.errors import UserError
from common.inference_program import save_program

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
        UserError: paddle2onnx is not installed or cannot convert the model, or the size is open on PaddlePaddle 2.
        OSError: the file cannot be written.
    """
    if importlib.util.find_spec("paddle2onnx") is None:
        raise UserError("paddle2onnx is not installed: pip install -r requirements-export.txt (Python 3.10 to 3.12)")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        graph, weights = save_program(model, folder, [None, 3, image_size, image_size])
        _write_without_unused_constants(_convert(graph, weights), path)


def _convert(graph: Path, weights: Path) -> Path:
    """Convert a saved program to an ONNX file beside it.

    In a process of its own, because paddle2onnx aborts its process over an operator that it does not know.
    """
    converted = graph.with_suffix(".onnx")
    command = [sys.executable, "-m", "paddle2onnx.command", "--model_dir", str(graph.parent)]
    command += ["--model_filename", graph.name, "--params_filename", weights.name]
    command += ["--save_file", str(converted), "--opset_version", str(OPSET)]
    if graph.suffix == ".json":
        # Only paddle2onnx 2 has optimizers. They need packages that it does not require, and make nothing faster.
        command += ["--optimize_tool", "None"]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if not converted.exists() or not converted.stat().st_size:
        complaints = re.findall(r"^.*(?:error|unsupported|fail).*$", result.stdout, re.IGNORECASE | re.MULTILINE)
        raise UserError(f"paddle2onnx cannot convert this model: {(complaints or ['it does not say why'])[0].strip()}")
    return converted


def _write_without_unused_constants(source: Path, target: Path) -> None:
    """Copy an ONNX file but for the constants that paddle2onnx left over; runtimes warn of each."""
    import onnx  # of paddle2onnx

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
