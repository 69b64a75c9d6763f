"""Pale-shaped self-attention (PS-Attention, arXiv 2112.14000) on channels-last maps.

The marks tell how sure a fact of the paper is; ``docs/paper.md`` explains them: [P] the paper's own words, [R] a public
review, [U] an unofficial reading, [C] confirmed by arithmetic, [A] assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import paddle
from paddle import Tensor, nn

from .layers.attention import ScaledDotProductAttention
from .layers.channels_last import BatchNorm, DepthwiseConv2D, Linear
from .layers.padding import pad_to_groups

__all__ = [
    "PSAttention",
    "SeparableProjection",
    "as_pair",
    "column_groups",
    "merge_column_groups",
    "merge_row_groups",
    "row_groups",
]


def row_groups(x: Tensor, rows: int, height: int, width: int, heads: int) -> Tensor:
    """Split a map into groups of interlaced rows: group i of N = H / rows has the rows i, i + N, i + 2N, ... [R, U].

    ``[B, H, W, C]`` -> ``[B * N, heads, rows * W, C / heads]``.
    """
    channels = x.shape[-1]
    x = x.reshape([-1, rows, height // rows, width, heads, channels // heads])
    x = x.transpose([0, 2, 4, 1, 3, 5])  # [B, N, heads, rows, W, C / heads]
    return x.reshape([-1, heads, rows * width, channels // heads])


def merge_row_groups(groups: Tensor, rows: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`row_groups`: ``[B * N, heads, rows * W, D]`` -> ``[B, H, W, heads * D]``."""
    _, heads, _, head_dim = groups.shape
    x = groups.reshape([-1, height // rows, heads, rows, width, head_dim])
    x = x.transpose([0, 3, 1, 4, 2, 5])  # [B, rows, N, W, heads, D]
    return x.reshape([-1, height, width, heads * head_dim])


def column_groups(x: Tensor, columns: int, height: int, width: int, heads: int) -> Tensor:
    """Split a map into groups of interlaced columns: group i of N = W / columns has the columns i, i + N, ... [R, U].

    ``[B, H, W, C]`` -> ``[B * N, heads, H * columns, C / heads]``.
    """
    channels = x.shape[-1]
    x = x.reshape([-1, height, columns, width // columns, heads, channels // heads])
    x = x.transpose([0, 3, 4, 1, 2, 5])  # [B, N, heads, H, columns, C / heads]
    return x.reshape([-1, heads, height * columns, channels // heads])


def merge_column_groups(groups: Tensor, columns: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`column_groups`: ``[B * N, heads, H * columns, D]`` -> ``[B, H, W, heads * D]``."""
    _, heads, _, head_dim = groups.shape
    x = groups.reshape([-1, width // columns, heads, height, columns, head_dim])
    x = x.transpose([0, 3, 4, 1, 2, 5])  # [B, H, columns, N, heads, D]
    return x.reshape([-1, height, width, heads * head_dim])


class SeparableProjection(nn.Layer):
    """Projects a map to query, key and value, "following CvT" [R, U].

    Each is a depthwise 3x3 convolution, BatchNorm and a pointwise convolution. The three depthwise convolutions are one
    with three outputs per channel. They have no bias [A: CvT], since BatchNorm would cancel it. On channels-last maps,
    pointwise convolutions are linear layers.

    Args:
        dim: channels C of the map.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.depthwise = DepthwiseConv2D(dim, multiplier=3, bias=False)
        self.norm = BatchNorm(3 * dim)
        self.query = Linear(dim, dim)
        self.key = Linear(dim, dim)
        self.value = Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map ``[B, H, W, C]`` to query, key and value of the same shape."""
        query, key, value = self.norm(self.depthwise(x)).split(3, axis=-1)
        return self.query(query), self.key(key), self.value(value)


class PSAttention(nn.Layer):
    """Attention within pales, in the parallel form.

    Query, key and value are computed on all channels [U, C]. Half of the channels attend within groups of ``s_r``
    interlaced rows, the other half within groups of ``s_c`` interlaced columns [R]. The results are concatenated and
    projected.

    A map whose sides are not multiples of the pale's is zero-padded before the projections and cropped after the
    attention [C]; padded tokens are not masked [A: as Swin's dense-task code]. A map smaller than the pale gets a pale
    of the map's size [A].

    Args:
        dim: channels C of the map.
        num_heads: heads of both halves together, so each half has ``num_heads / 2`` heads of width ``dim / num_heads``
            [A: CSWin's convention].
        pale_size: rows and columns in a pale, one number or the pair (s_r, s_c).
        fused: see :class:`common.layers.attention.ScaledDotProductAttention`.

    Raises:
        ValueError: ``num_heads`` is odd or does not divide ``dim``, or ``pale_size`` is not positive.
    """

    def __init__(self, dim: int, num_heads: int, pale_size: int | Sequence[int] = 7, fused: bool | None = None):
        super().__init__()
        if num_heads < 2 or num_heads % 2:
            raise ValueError(f"num_heads is {num_heads}; rows and columns share the heads, so it must be even and >= 2")
        if dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide dim {dim}; choose a divisor of {dim}")
        self.dim, self.num_heads, self.pale_size = dim, num_heads, as_pair(pale_size)
        self.qkv = SeparableProjection(dim)
        self.attention = ScaledDotProductAttention(fused)
        self.projection = Linear(dim, dim)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Map ``[B, H, W, C]`` to the same shape, for any H and W from 1 up. ``size`` is (H, W), if it is known."""
        height, width = x.shape[1:3] if size is None else size
        x, (rows, columns), padded = pad_to_groups(x, self.pale_size, (height, width))
        half, heads = self.dim // 2, self.num_heads // 2

        qkv = self.qkv(x)
        row_half = self.attention(*(row_groups(t[..., :half], rows, *padded, heads) for t in qkv))
        row_half = merge_row_groups(row_half, rows, *padded)
        column_half = self.attention(*(column_groups(t[..., half:], columns, *padded, heads) for t in qkv))
        column_half = merge_column_groups(column_half, columns, *padded)

        x = paddle.concat([row_half, column_half], axis=-1)
        x = x[:, :height, :width]
        return self.projection(x)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, pale_size={self.pale_size}"


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a pale, given as one number or as a pair.

    Raises:
        ValueError: ``size`` is neither a positive integer nor a pair of these.
    """
    sizes = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sizes) != 2 or not all(isinstance(side, Integral) and side > 0 for side in sizes):
        raise ValueError(f"pale_size is {size!r}; give one positive integer or a pair (rows, columns)")
    return int(sizes[0]), int(sizes[1])
