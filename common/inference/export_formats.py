"""The formats of exported models: how each is written, and run.

A model is first saved as a program of Paddle (``inference.json`` and ``inference.pdiparams``), which is converted to
ONNX, and from there to the format of OpenVINO.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ..errors import UserError, one_line
from ..fuse import fuse
from ..runtime.signals import signals_wait, stop_with_parent

__all__ = [
    "FORMATS",
    "ExportFormat",
    "Run",
    "computes_in_bfloat16",
    "convert_to_onnx",
    "export_onnx",
    "load_program",
    "open_onnx",
    "open_openvino",
    "save_program",
]

Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]  # inputs by name to the outputs in their order

OPSET = 17  # the first with LayerNormalization
_PROGRAM = "inference"  # as Paddle's own tools name these files
_GRAPHS = (f"{_PROGRAM}.json", f"{_PROGRAM}.pdmodel")  # since Paddle 3, and before


@dataclass(frozen=True)
class ExportFormat:
    """A format of exported models.

    Attributes:
        names: of the file that is run; the first that exists counts.
        other_names: of files that belong to it.
        convert: makes the file in a folder of ``(graph, weights, folder, names of the outputs)``, and returns it.
        open: opens the file on a device (``cpu``, ``gpu`` or ``gpu:N``), to compute in float32.
    """

    names: tuple[str, ...]
    other_names: tuple[str, ...]
    convert: Callable[[Path, Path, Path, Sequence[str]], Path]
    open: Callable[[Path, str], Run]


# ---- Paddle


def save_program(model: nn.Layer, folder: str | Path, inputs: Mapping[str, Sequence[int | None]]) -> tuple[Path, Path]:
    """Save a copy of a model, fused (:func:`common.fuse.fuse`), as a program in evaluation mode.

    Args:
        model: takes tensors, and returns a tensor or a list of them.
        folder: is created, and gets ``inference.json`` (``inference.pdmodel`` before Paddle 3) and
            ``inference.pdiparams``.
        inputs: name and shape of each float32 input in the model's order; None leaves a dimension open.

    Returns:
        The files of the graph and of the weights.

    Raises:
        OSError: a file cannot be written.
    """
    model = copy.deepcopy(model)
    fuse(model)
    prefix = Path(folder) / _PROGRAM
    specs = [paddle.static.InputSpec(list(shape), "float32", name) for name, shape in inputs.items()]
    with signals_wait():
        paddle.jit.save(model, str(prefix), input_spec=specs)
    graphs = (prefix.with_name(name) for name in _GRAPHS)
    return next(graph for graph in graphs if graph.exists()), prefix.with_suffix(".pdiparams")


def load_program(
    graph: Path, weights: Path, device: str = "cpu", precision: str = "Float32", threads: int | None = None
) -> Run:
    """Load the files of :func:`save_program` into Paddle Inference.

    Args:
        device: ``cpu``, ``gpu`` or ``gpu:N``.
        precision: on GPUs, the name of one of ``paddle.inference.PrecisionType``.
        threads: on CPUs; None leaves it to Paddle.

    Raises:
        UserError: Paddle Inference cannot load it.
    """
    from paddle import inference

    try:
        config = inference.Config(str(graph), str(weights))
        config.disable_glog_info()
        if device == "cpu":
            config.disable_mkldnn()  # Paddle 3.3 cannot compile this model for it
            if threads:
                config.set_cpu_math_library_num_threads(threads)
        else:
            config.enable_use_gpu(256, _device_number(device), getattr(inference.PrecisionType, precision))
        predictor = inference.create_predictor(config)
    except Exception as error:
        raise UserError(f"Paddle Inference cannot load {graph}: {one_line(error)}") from error

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        for name, array in inputs.items():
            predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(array))
        predictor.run()
        return [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]

    return run


def _keep_program(graph: Path, weights: Path, folder: Path, outputs: Sequence[str]) -> Path:
    return graph


def _device_number(device: str) -> int:
    return int(device.partition(":")[2] or 0)


# ---- ONNX


def export_onnx(
    model: nn.Layer, path: str | Path, inputs: Mapping[str, Sequence[int | None]], outputs: Sequence[str]
) -> None:
    """Export a model to an ONNX file; see :func:`save_program` and :func:`convert_to_onnx`."""
    with tempfile.TemporaryDirectory() as folder:
        convert_to_onnx(*save_program(model, folder, inputs), path, outputs)


def convert_to_onnx(graph: Path, weights: Path, path: str | Path, outputs: Sequence[str]) -> None:
    """Convert the files of :func:`save_program` to an ONNX file, with these names of the outputs.

    Raises:
        UserError: paddle2onnx is not installed, or cannot convert the model.
        OSError: the file cannot be written.
    """
    for package in ("paddle2onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed: pip install -r requirements-export.txt (Python 3.10 to 3.12)")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "model.onnx"
        # In another process, because paddle2onnx aborts its process over an unknown operator. In the folder of its
        # output, because -m imports modules of the present folder, which may be anybody's.
        command = [sys.executable, "-m", "paddle2onnx.command", "--model_dir", str(graph.parent.resolve())]
        command += ["--model_filename", graph.name, "--params_filename", weights.name]
        command += ["--save_file", str(converted), "--opset_version", str(OPSET)]
        if graph.suffix == ".json":
            # Only paddle2onnx 2 has optimizers. They need packages that it does not require, and give no speed.
            command += ["--optimize_tool", "None"]
        result = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            preexec_fn=stop_with_parent,  # this program may be killed
        )
        if not converted.exists() or not converted.stat().st_size:
            lines = re.findall(r"^.*(?:error|unsupported|fail).*$", result.stdout, re.IGNORECASE | re.MULTILINE)
            raise UserError(f"paddle2onnx cannot convert this model: {(lines or ['no reason given'])[0].strip()}")
        _write_simplified(converted, path, outputs)


def _write_simplified(source: Path, target: Path, outputs: Sequence[str]) -> None:
    """Copy an ONNX file with other names of the outputs, and simplified.

    paddle2onnx writes thousands of identities, and the sizes of a map once for each tensor that they shape. The basic
    optimizations of ONNX Runtime remove them and use ONNX's own operators only, so other runtimes read the file, too.
    """
    import onnx  # installed with paddle2onnx
    import onnxruntime

    model = onnx.load(source)
    for output, name in zip(model.graph.output, outputs, strict=True):
        # Through a node of its own, because subgraphs may read the output, too.
        model.graph.node.append(onnx.helper.make_node("Identity", [output.name], [name]))
        output.name = name
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3  # without warnings
    simplified = source.with_name("simplified.onnx")
    options.optimized_model_filepath = str(simplified)
    for _ in range(2):  # the first finds equal constants, the second what is computed from them
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        model = onnx.load(simplified)
    used = {node.domain for node in model.graph.node}
    opsets = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    onnx.save(model, target)


def open_onnx(file: Path, threads: int | None = None, device: str = "cpu") -> Any:
    """Open an ONNX file in ONNX Runtime.

    Args:
        threads: on CPUs; None leaves it to ONNX Runtime.
        device: ``cpu``, ``gpu`` or ``gpu:N``; operators without a GPU kernel run on the CPU.

    Returns:
        An ``onnxruntime.InferenceSession``.

    Raises:
        UserError: ONNX Runtime is not installed, or cannot run the file.
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
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": _device_number(device)}))
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:
        raise UserError(f"ONNX Runtime cannot run {file}: {one_line(error)}") from error


def _convert_to_onnx(graph: Path, weights: Path, folder: Path, outputs: Sequence[str]) -> Path:
    file = folder / "model.onnx"
    convert_to_onnx(graph, weights, file, outputs)
    return file


def _run_onnx(file: Path, device: str) -> Run:
    session = open_onnx(file, device=device)
    return lambda inputs: session.run(None, dict(inputs))


# ---- OpenVINO


def _convert_to_openvino(graph: Path, weights: Path, folder: Path, outputs: Sequence[str]) -> Path:
    file = folder / "model.xml"
    core = _openvino_core()
    import openvino

    with tempfile.TemporaryDirectory() as temporary:
        onnx_file = folder / "model.onnx"  # from the conversion to ONNX, if that is wanted, too
        if not onnx_file.exists():
            onnx_file = _convert_to_onnx(graph, weights, Path(temporary), outputs)
        try:
            model = _transpose_three_axes(core.read_model(onnx_file))
        except Exception as error:
            raise UserError(f"OpenVINO cannot convert this model: {one_line(error)}") from error
        openvino.save_model(model, file, compress_to_fp16=False)
    return file


def open_openvino(file: Path, precision: str | None = None, threads: int | None = None) -> Run:
    """Open a file, ``model.xml`` or an ONNX file, in OpenVINO on the CPU.

    Args:
        precision: ``f32`` or ``bf16``; None for what OpenVINO prefers on this processor.
        threads: None leaves it to OpenVINO.

    Raises:
        UserError: OpenVINO is not installed, or cannot read the file, or the processor does not compute in bfloat16.
    """
    core = _openvino_core()
    if precision == "bf16" and not computes_in_bfloat16():
        raise UserError("-precision bf16: this processor does not compute in bfloat16; give f32")
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        model = _transpose_three_axes(core.read_model(file))
    except Exception as error:
        raise UserError(f"OpenVINO cannot run {file}: {one_line(error)}") from error
    first: dict[str, list[int]] = {}
    requests: dict[bool, Any] = {}

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        # A model of fixed shapes is faster, but compiling it takes longer than many images: the shapes of the first
        # inputs are fixed, and inputs of other shapes go through the open model.
        shapes = {name: list(array.shape) for name, array in inputs.items()}
        first.update({} if first else shapes)
        fixed = shapes == first
        if fixed not in requests:
            chosen = model.clone()
            if fixed:
                chosen.reshape(shapes)
            requests[fixed] = core.compile_model(chosen, "CPU", settings).create_infer_request()
        return list(requests[fixed].infer(dict(inputs)).values())

    return run


def computes_in_bfloat16() -> bool:
    """Whether OpenVINO says that this processor does."""
    return "BF16" in _openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _transpose_three_axes(model: Any) -> Any:
    """Transpose the outputs of convolutions, ``[B, C, H, W]`` to ``[B, H, W, C]``, as ``[B, C, H * W]``.

    OpenVINO computes LayerNorm and residual connections in the layout of the convolution otherwise, and reorders each
    result for the next linear layer.
    """
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() == "Transpose" and node.input_value(0).get_node().get_type_name() != "Parameter":
            x, axes = node.input_value(0), node.input_value(1).get_node()
            if axes.get_type_name() == "Constant" and axes.get_data().tolist() == [0, 2, 3, 1]:
                shape = ops.gather(ops.shape_of(x), axes, 0)
                tokens = ops.transpose(ops.reshape(x, np.array([0, 0, -1]), special_zero=True), [0, 2, 1])
                node.output(0).replace(ops.reshape(tokens, shape, special_zero=False).output(0))
    model.validate_nodes_and_infer_types()
    return model


@functools.cache
def _openvino_core() -> Any:
    """OpenVINO, which stays loaded.

    Its plug-in for CPUs replaces the stack on which the main thread handles signals. If it is unloaded in another
    thread, where Python may collect garbage, the stack is gone, and a signal such as Ctrl-C is a segmentation fault.
    """
    # Without this package, openvino sends no events to Google Analytics.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise UserError("openvino is not installed: pip install -r requirements-export.txt") from error
    return openvino.Core()


# In the order in which a folder is searched for a model to run.
FORMATS = {
    "paddle": ExportFormat(
        names=_GRAPHS,
        other_names=(f"{_PROGRAM}.pdiparams", f"{_PROGRAM}.pdiparams.info"),
        convert=_keep_program,
        open=lambda file, device: load_program(file, file.with_suffix(".pdiparams"), device),
    ),
    "onnx": ExportFormat(names=("model.onnx",), other_names=(), convert=_convert_to_onnx, open=_run_onnx),
    "openvino": ExportFormat(
        names=("model.xml",),
        other_names=("model.bin",),
        convert=_convert_to_openvino,
        open=lambda file, device: open_openvino(file, "f32"),
    ),
}
