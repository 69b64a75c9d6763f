"""Learned position encodings, which the paper compares with the convolutional one."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

__all__ = ["AbsolutePositionEmbedding", "RelativePositionBias", "resample"]


class PositionTable(nn.Layer):
    """A learned ``table``, ``[channels, rows, columns]``, initialized from a normal of deviation 0.02 [A: Swin]."""

    def __init__(self, channels: int, rows: int, columns: int):
        super().__init__()
        initializer = nn.initializer.TruncatedNormal(std=0.02)
        self.table = self.create_parameter([channels, rows, columns], default_initializer=initializer)

    def sized(self, rows: int | Tensor, columns: int | Tensor) -> Tensor:
        """The table, interpolated for a map of another size.

        Raises:
            ValueError: a traced program leaves the size open.
        """
        if not (isinstance(rows, int) and isinstance(columns, int)):
            raise ValueError("a learned position encoding needs a fixed image size in a traced program")
        return resample(self.table, rows, columns)


class AbsolutePositionEmbedding(PositionTable):
    """Adds a learned vector to each token of the first map [A: Swin].

    Args:
        channels: channels of the map.
        rows, columns: sides of the map in training; the vectors are interpolated for other maps.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, C]`` to the same shape."""
        return x + self.sized(*x.shape[1:3]).transpose([1, 2, 0])


class RelativePositionBias(PositionTable):
    """A learned number for each head and offset between two tokens of a group, added to their score [A: Swin].

    Args:
        heads: number of heads.
        rows, columns: sides of a group in training; the numbers are interpolated for other groups.
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
