"""Save what a model computes in evaluation as a static graph, for Paddle Inference and for converters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import paddle
from paddle import nn

from common.pale_attention import fuse

__all__ = ["save_program"]


def save_program(model: nn.Layer, folder: str | Path, shape: Sequence[int | None]) -> tuple[Path, Path]:
    """Save a model, which itself stays as it is, its attention fused (:func:`common.pale_attention.fuse`).

    Args:
        model: maps one tensor, here called ``images``, to one tensor.
        folder: is made and gets ``model.json`` (``model.pdmodel`` before Paddle 3) and ``model.pdiparams``.
        shape: of the float32 input; None leaves a dimension open.

    Returns:
        The files of the graph and of the weights.

    Raises:
        OSError: a file cannot be written.
    """
    model = copy.deepcopy(model)
    fuse(model)
    prefix = Path(folder) / "model"
    paddle.jit.save(model, str(prefix), input_spec=[paddle.static.InputSpec(list(shape), "float32", "images")])
    graphs = (prefix.with_suffix(suffix) for suffix in (".json", ".pdmodel"))
    return next(graph for graph in graphs if graph.exists()), prefix.with_suffix(".pdiparams")
