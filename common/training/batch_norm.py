"""BatchNorm's running statistics, which differ between ranks: each rank gathers them from its own batches."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import nn

from ..runtime.distributed import gather_objects, world_size

__all__ = ["average_statistics", "gather_statistics", "get_statistics", "set_statistics"]


def average_statistics(model: nn.Layer) -> None:
    """Give every rank the mean of all ranks' running means and variances."""
    if world_size() == 1:
        return
    for tensor in _statistics(model):
        total = tensor.astype("float64")  # exact, so that equal statistics, such as frozen ones, stay bitwise equal
        dist.all_reduce(total)
        tensor.set_value((total / world_size()).astype(tensor.dtype))


def get_statistics(model: nn.Layer) -> np.ndarray:
    """This rank's statistics: float32 ``[values]``."""
    values = [tensor.astype("float32").numpy().ravel() for tensor in _statistics(model)]
    return np.concatenate([np.zeros(0, np.float32), *values])  # a model may have no BatchNorm


def gather_statistics(model: nn.Layer) -> np.ndarray:
    """Every rank's statistics: float32 ``[world_size, values]``."""
    return np.stack(gather_objects(get_statistics(model)))


def set_statistics(model: nn.Layer, values: np.ndarray) -> None:
    """Set what :func:`get_statistics` returned."""
    start = 0
    for tensor in _statistics(model):
        tensor.set_value(values[start : start + tensor.size].reshape(tensor.shape).astype("float32"))
        start += tensor.size


def _statistics(model: nn.Layer) -> list[paddle.Tensor]:
    # Paddle keeps the statistics as parameters with stop_gradient, not as buffers, and an EMA's parameters all have
    # stop_gradient; so their names tell.
    return [
        tensor
        for name, tensor in model.state_dict().items()
        if name.endswith(("._mean", "._variance")) and tensor.is_floating_point()
    ]
