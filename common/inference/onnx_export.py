"""Write a model as an ONNX file, with paddle2onnx."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from paddle import nn

from ..errors import UserError
from .inference_program import save_program

__all__ = ["convert_program", "export_onnx"]

OPSET = 17  # the first with a LayerNormalization


def export_onnx(
    model: nn.Layer, path: str | Path, inputs: Mapping[str, Sequence[int | None]], outputs: Sequence[str]
) -> None:
    """Export what a model computes in evaluation. The model itself stays as it is.

    Args:
        model, inputs: see :func:`common.inference.inference_program.save_program`.
        path: of the ONNX file; its folder is made.
        outputs: names that the file gives the model's outputs.

    Raises:
        UserError: as for :func:`convert_program`.
        OSError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        convert_program(*save_program(model, folder, inputs), path, outputs)


def convert_program(graph: Path, weights: Path, path: str | Path, outputs: Sequence[str]) -> None:
    """Convert a program of :func:`common.inference.inference_program.save_program`.

    Args:
        graph, weights: its files.
        path, outputs: see :func:`export_onnx`.

    Raises:
        UserError: paddle2onnx is not installed, or cannot convert the model.
        OSError: the file cannot be written.
    """
    if importlib.util.find_spec("paddle2onnx") is None:
        raise UserError("paddle2onnx is not installed: pip install -r requirements-export.txt (Python 3.10 to 3.12)")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        _write_tidied(_convert(graph, weights, Path(folder) / "model.onnx"), path, outputs)


def _convert(graph: Path, weights: Path, converted: Path) -> Path:
    """Convert a saved program to an ONNX file as paddle2onnx makes it.

    In a process of its own, because paddle2onnx aborts its process over an operator that it does not know.
    """
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


def _write_tidied(source: Path, target: Path, outputs: Sequence[str]) -> None:
    """Copy an ONNX file, its outputs renamed, and its constants as initializers, where other tools look for weights.

    Constants that paddle2onnx left over go, since runtimes warn of each.
    """
    import onnx  # of paddle2onnx

    model = onnx.load(source)
    used = {*_inputs(model.graph), *(output.name for output in model.graph.output)}
    kept = []
    for node in model.graph.node:
        if node.op_type != "Constant":
            kept.append(node)
        elif node.output[0] in used:
            node.attribute[0].t.name = node.output[0]
            model.graph.initializer.append(node.attribute[0].t)
    for output, name in zip(model.graph.output, outputs, strict=True):
        # By a node of its own: what gives the output may be read elsewhere, in graphs inside of this one, too.
        kept.append(onnx.helper.make_node("Identity", [output.name], [name]))
        output.name = name
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
