"""Maps whose sides groups of tokens divide."""

from __future__ import annotations

import paddle
from paddle import Tensor

__all__ = ["pad_to_groups"]


def pad_to_groups(x: Tensor, rows: int, columns: int) -> tuple[Tensor, int, int]:
    """Append rows and columns of zeros to ``[B, H, W, C]`` until groups of ``rows`` and ``columns`` divide the map.

    Returns:
        The padded map, and the rows and columns of a group on it: those of the map where the map is smaller. They are
        scalar tensors where a traced program leaves the size of images open.
    """
    x, rows = _pad(x, rows, axis=1)
    x, columns = _pad(x, columns, axis=2)
    return x, rows, columns


def _pad(x: Tensor, size: int, axis: int) -> tuple[Tensor, int]:
    if size == 1:
        return x, 1
    side = x.shape[axis]
    size = min(size, side) if isinstance(side, int) else paddle.minimum(paddle.full([], size, side.dtype), side)
    missing = -side % size
    if isinstance(missing, int) and missing == 0:
        return x, size
    # F.pad does the same, but paddle2onnx pads with undefined values, or along wrong axes, when it converts that.
    some = x[:, :missing] if axis == 1 else x[:, :, :missing]
    return paddle.concat([x, paddle.zeros_like(some)], axis=axis), size
