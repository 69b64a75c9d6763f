"""Maps whose sides groups of tokens divide."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import Tensor

__all__ = ["pad_to_groups"]


def pad_to_groups(
    x: Tensor, group: Sequence[int], size: Sequence[int]
) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
    """Append rows and columns of zeros to ``[B, H, W, C]`` until groups of tokens divide the map.

    Args:
        x: the map.
        group: rows and columns of a group.
        size: height and width of the map.

    Returns:
        The padded map; the rows and columns of a group on it, which are those of the map where the map is smaller; and
        its height and width. They are scalar tensors where a traced program leaves the size of images open.
    """
    x, rows, height = _pad(x, group[0], size[0], axis=1)
    x, columns, width = _pad(x, group[1], size[1], axis=2)
    return x, (rows, columns), (height, width)


def _pad(x: Tensor, size: int, side: int, axis: int) -> tuple[Tensor, int, int]:
    if size == 1:
        return x, 1, side
    size = min(size, side) if isinstance(side, int) else paddle.minimum(paddle.full([], size, side.dtype), side)
    missing = -side % size
    if isinstance(missing, int) and missing == 0:
        return x, size, side
    # F.pad does the same, but paddle2onnx pads with undefined values, or along wrong axes, when it converts that.
    some = x[:, :missing] if axis == 1 else x[:, :, :missing]
    return paddle.concat([x, paddle.zeros_like(some)], axis=axis), size, side + missing
