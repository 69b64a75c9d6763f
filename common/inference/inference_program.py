"""Save what a model computes in evaluation as a static graph, for Paddle Inference and for converters; and run it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from ..errors import UserError, one_line
from ..fuse import fuse

__all__ = ["GRAPHS", "PROGRAM_FILES", "load_program", "save_program"]

_NAME = "inference"  # as Paddle's own tools call these files
GRAPHS = (f"{_NAME}.json", f"{_NAME}.pdmodel")  # since Paddle 3, and before
PROGRAM_FILES = (*GRAPHS, f"{_NAME}.pdiparams", f"{_NAME}.pdiparams.info")


def save_program(model: nn.Layer, folder: str | Path, inputs: Mapping[str, Sequence[int | None]]) -> tuple[Path, Path]:
    """Save a model, which itself stays as it is, its attention fused (:func:`common.fuse.fuse`).

    Args:
        model: takes tensors, and gives a tensor or a list of them.
        folder: is made and gets ``inference.json`` (``inference.pdmodel`` before Paddle 3) and
            ``inference.pdiparams``.
        inputs: name and shape of each float32 input in the model's order; None leaves a dimension open.

    Returns:
        The files of the graph and of the weights.

    Raises:
        OSError: a file cannot be written.
    """
    model = copy.deepcopy(model)
    fuse(model)
    prefix = Path(folder) / _NAME
    specs = [paddle.static.InputSpec(list(shape), "float32", name) for name, shape in inputs.items()]
    paddle.jit.save(model, str(prefix), input_spec=specs)
    graphs = (prefix.with_name(name) for name in GRAPHS)
    return next(graph for graph in graphs if graph.exists()), prefix.with_suffix(".pdiparams")


def load_program(
    graph: Path, weights: Path, device: str = "cpu", precision: str = "Float32", threads: int | None = None
) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
    """Load a saved program into Paddle Inference.

    Args:
        graph, weights: the files that :func:`save_program` gave.
        device: ``cpu``, ``gpu`` or ``gpu:N``.
        precision: on GPUs, the name of one of ``paddle.inference.PrecisionType``.
        threads: on CPUs; None leaves it to Paddle.

    Returns:
        A function from the inputs by name to the outputs in their order.

    Raises:
        UserError: Paddle Inference cannot load it.
    """
    from paddle import inference

    config = inference.Config(str(graph), str(weights))
    config.disable_glog_info()
    if device == "cpu":
        config.disable_mkldnn()  # Paddle 3.3 cannot compile this model for it
        if threads:
            config.set_cpu_math_library_num_threads(threads)
    else:
        kind = getattr(inference.PrecisionType, precision)
        config.enable_use_gpu(256, int(device.partition(":")[2] or 0), kind)
    try:
        predictor = inference.create_predictor(config)
    except Exception as error:
        raise UserError(f"Paddle Inference cannot load {graph}: {one_line(error)}") from error

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        for name, array in inputs.items():
            predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(array))
        predictor.run()
        return [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]

    return run
