"""Position encodings: the convolutional one of the model, and those that the paper compares with it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from .attention_shapes import map_sides
from .depthwise_conv import DepthwiseConv2D

__all__ = [
    "AbsolutePositionEmbedding",
    "ConditionalPositionEncoding",
    "PositionTable",
    "RelativePositionBias",
    "resample",
]


class ConditionalPositionEncoding(DepthwiseConv2D):
    """CPE: adds to each token a depthwise 3x3 convolution of its neighbourhood [U, C]."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.has_residual = True

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, C]`` to the same shape."""
        encoding = DepthwiseConv2D.forward(self, x)  # Paddle 2.6 cannot trace super()
        return x + encoding if self.has_residual else encoding

    @paddle.no_grad()
    def fuse(self) -> None:
        """Add the token itself by the kernel's centre, equal to rounding."""
        if self.has_residual:
            centre = paddle.zeros_like(self.weight)
            centre[:, :, 1, 1] = 1.0
            self.weight.set_value(self.weight + centre)
            self.has_residual = False


class PositionTable(nn.Layer):
    """A learned map of values, ``table`` ``[channels, rows, columns]``, drawn from a normal of 0.02 [A: Swin]."""

    def __init__(self, channels: int, rows: int, columns: int):
        super().__init__()
        initializer = nn.initializer.TruncatedNormal(std=0.02)
        self.table = self.create_parameter([channels, rows, columns], default_initializer=initializer)

    def sized(self, rows: int | Tensor, columns: int | Tensor) -> Tensor:
        """The table for another map.

        Raises:
            ValueError: a traced graph leaves the size open.
        """
        if not (isinstance(rows, int) and isinstance(columns, int)):
            raise ValueError("a learned position encoding needs images of one size; give a program a fixed image size")
        return resample(self.table, rows, columns)


class AbsolutePositionEmbedding(PositionTable):
    """A learned vector for each token of the map of the first patch embedding, added to it [A: Swin].

    Args:
        channels: of the map.
        rows, columns: sides of the map in training; for others the vectors are interpolated.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, C]`` to the same shape."""
        return x + self.sized(*map_sides(x)).transpose([1, 2, 0])


class RelativePositionBias(PositionTable):
    """A learned number for each head and offset between two tokens of a group, added to their score [A: Swin].

    Args:
        heads: of the attention.
        rows, columns: tokens of a group in training, along the two axes; for others the numbers are interpolated.
    """

    def __init__(self, heads: int, rows: int, columns: int):
        super().__init__(heads, 2 * rows - 1, 2 * columns - 1)

    def forward(self, rows: int, columns: int) -> Tensor:
        """Return ``[heads, L, L]``, query by key, for groups of L = rows * columns tokens in row-major order."""
        table = self.sized(2 * rows - 1, 2 * columns - 1)
        tokens = rows * columns
        index = paddle.to_tensor(_offsets(rows, columns))
        return table.reshape([table.shape[0], -1]).gather(index, axis=1).reshape([-1, tokens, tokens])


def resample(table: Tensor, rows: int, columns: int) -> Tensor:
    """Interpolate ``[channels, rows, columns]`` bicubically to other sides, as Swin and BEiT do for other images."""
    if table.shape[1:] == [rows, columns]:
        return table
    return F.interpolate(table.unsqueeze(0), [rows, columns], mode="bicubic", align_corners=False)[0]


@lru_cache(maxsize=8)
def _offsets(rows: int, columns: int) -> np.ndarray:
    """Where the offset of each two tokens stands in a flat table of ``(2 rows - 1) * (2 columns - 1)``; int32."""
    row, column = np.indices((rows, columns)).reshape(2, -1)
    row_offset = row[:, None] - row + rows - 1
    column_offset = column[:, None] - column + columns - 1
    return (row_offset * (2 * columns - 1) + column_offset).astype(np.int32).ravel()
