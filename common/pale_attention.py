"""Pale-shaped self-attention (PS-Attention) on channels-last maps.

The marks tell how sure a fact of the paper (arXiv 2112.14000) is; ``docs/paper.md`` explains them:
[P] the paper's own words, [R] a public review, [U] an unofficial reading, [C] confirmed by arithmetic, [A] assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from common.depthwise_conv import DepthwiseConv2D, convolve_together
from common.linear import Linear

__all__ = [
    "PSAttention",
    "ScaledDotProductAttention",
    "SeparableProjection",
    "fuse",
    "merge_columns",
    "merge_rows",
    "partition_columns",
    "partition_rows",
]


def partition_rows(x: Tensor, pale_rows: int, heads: int = 1) -> Tensor:
    """Gather the interlaced rows of each pale.

    With N = H / pale_rows pales, pale i holds the rows i, i + N, i + 2N, ... [R, U].

    Args:
        x: ``[B, H, W, C]``, H a multiple of ``pale_rows``.
        pale_rows: rows in a pale (s_r of the paper).
        heads: parts of the channels, each with attention of its own.

    Returns:
        ``[B * N, heads, pale_rows * W, C / heads]``; the pales of one image follow each other, a pale's tokens are
        row-major.
    """
    height, width = _sides(x)
    spacing, dim = height // pale_rows, x.shape[-1] // heads
    x = x.reshape([-1, pale_rows, spacing, width, heads, dim]).transpose([0, 2, 4, 1, 3, 5])
    return x.reshape([-1, heads, pale_rows * width, dim])


def merge_rows(groups: Tensor, pale_rows: int, height: int, width: int) -> Tensor:
    """Put the rows back: the inverse of :func:`partition_rows`.

    Args:
        groups: ``[B * N, heads, pale_rows * W, D]`` with N = height / pale_rows.

    Returns:
        ``[B, height, width, heads * D]``.
    """
    heads, dim = groups.shape[1], groups.shape[-1]
    x = groups.reshape([-1, height // pale_rows, heads, pale_rows, width, dim]).transpose([0, 3, 1, 4, 2, 5])
    return x.reshape([-1, height, width, heads * dim])


def partition_columns(x: Tensor, pale_columns: int, heads: int = 1) -> Tensor:
    """Gather the interlaced columns of each pale.

    With N = W / pale_columns pales, pale i holds the columns i, i + N, i + 2N, ... [R, U].

    Args:
        x: ``[B, H, W, C]``, W a multiple of ``pale_columns``.
        pale_columns: columns in a pale (s_c of the paper).
        heads: parts of the channels, each with attention of its own.

    Returns:
        ``[B * N, heads, H * pale_columns, C / heads]``; a pale's tokens are row-major.
    """
    height, width = _sides(x)
    spacing, dim = width // pale_columns, x.shape[-1] // heads
    x = x.reshape([-1, height, pale_columns, spacing, heads, dim]).transpose([0, 3, 4, 1, 2, 5])
    return x.reshape([-1, heads, height * pale_columns, dim])


def merge_columns(groups: Tensor, pale_columns: int, height: int, width: int) -> Tensor:
    """Put the columns back: the inverse of :func:`partition_columns`.

    Args:
        groups: ``[B * N, heads, H * pale_columns, D]`` with N = width / pale_columns.

    Returns:
        ``[B, height, width, heads * D]``.
    """
    heads, dim = groups.shape[1], groups.shape[-1]
    x = groups.reshape([-1, width // pale_columns, heads, height, pale_columns, dim]).transpose([0, 3, 4, 1, 2, 5])
    return x.reshape([-1, height, width, heads * dim])


class ScaledDotProductAttention(nn.Layer):
    """softmax(q k^T / sqrt(D)) v for every head; a layer of its own so that its products can be counted.

    Args:
        fused: use ``F.scaled_dot_product_attention``, which on GPUs never stores the score matrix. ``None`` uses it
            where its kernel exists on all supported versions of Paddle: in half precision, on GPUs of compute
            capability 8.0 and up, for head widths that 8 divides. On CPUs Paddle runs the plain formula behind it.
            Both agree to 1e-5 in float32.
    """

    def __init__(self, fused: bool | None = None):
        super().__init__()
        self.fused = fused

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map three ``[G, heads, L, D]`` tensors (G groups of L tokens) to one of the same shape and dtype."""
        if _has_fused_kernel(query) if self.fused is None else self.fused:
            query, key, value = (t.transpose([0, 2, 1, 3]) for t in (query, key, value))
            return F.scaled_dot_product_attention(query, key, value, training=self.training).transpose([0, 2, 1, 3])
        scores = paddle.matmul(query * query.shape[-1] ** -0.5, key, transpose_y=True)
        return paddle.matmul(F.softmax(scores, axis=-1), value)


class SeparableProjection(nn.Layer):
    """Depthwise 3x3 convolution -> BatchNorm -> pointwise convolution, "following CvT" [R, U].

    The depthwise convolution has no bias [A: CvT]; the BatchNorm would cancel it. On channels-last maps the pointwise
    convolution is a linear layer.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.depthwise = DepthwiseConv2D(dim, bias=False)
        self.norm = nn.BatchNorm2D(dim, data_format="NHWC")
        self.pointwise = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, C]`` to the same shape."""
        return self.project(self.depthwise(x))

    def project(self, x: Tensor) -> Tensor:
        """What follows the depthwise convolution."""
        return self.pointwise(self.norm(x))

    @paddle.no_grad()
    def fuse(self) -> None:
        """Fold the BatchNorm, as it is in evaluation, into the pointwise convolution."""
        if isinstance(self.norm, nn.BatchNorm2D):
            scale = self.norm.weight / paddle.sqrt(self.norm._variance + self.norm._epsilon)
            shift = self.norm.bias - self.norm._mean * scale
            self.pointwise.bias.set_value(self.pointwise.bias + shift @ self.pointwise.weight)
            self.pointwise.weight.set_value(self.pointwise.weight * scale.unsqueeze(1))
            self.norm = nn.Identity()


class PSAttention(nn.Layer):
    """Pale-shaped attention in the parallel form, which the model uses [R].

    Query, key and value are computed on all channels, then split into a row half and a column half [U, C]. The row
    half attends within groups of s_r interlaced rows, the column half within groups of s_c interlaced columns; the
    two results are concatenated and projected.

    A map whose sides are not multiples of the pale is zero-padded before the projections and cropped after the
    attention [C]; padded tokens are not masked [A: as Swin's dense-task code]. A map smaller than the pale gets a pale
    of the map's size [A].

    Args:
        dim: channels C of the map.
        num_heads: heads of both halves together, so a half has ``num_heads / 2`` heads of width ``dim / num_heads``
            [A: CSWin's convention].
        pale_size: rows and columns of a pale, one number or ``(s_r, s_c)``.
        fused: see :class:`ScaledDotProductAttention`.

    Raises:
        ValueError: ``num_heads`` is odd or does not divide ``dim``, or ``pale_size`` is not positive.
    """

    def __init__(self, dim: int, num_heads: int, pale_size: int | Sequence[int] = 7, fused: bool | None = None):
        super().__init__()
        if num_heads < 2 or num_heads % 2:
            raise ValueError(f"num_heads is {num_heads}; rows and columns share the heads, so it must be even and >= 2")
        if dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide dim {dim}; choose a divisor of {dim}")
        self.dim, self.num_heads, self.pale_size = dim, num_heads, _pale_sides(pale_size)
        self.query = SeparableProjection(dim)
        self.key = SeparableProjection(dim)
        self.value = SeparableProjection(dim)
        self.attention = ScaledDotProductAttention(fused)
        self.projection = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, C]`` to the same shape, for any H and W from 1 up."""
        height, width = _sides(x)
        pale_rows, pale_columns = _at_most(self.pale_size[0], height), _at_most(self.pale_size[1], width)
        pad_bottom, pad_right = -height % pale_rows, -width % pale_columns
        x = _append_zeros(_append_zeros(x, pad_bottom, 1), pad_right, 2)
        padded_height, padded_width = height + pad_bottom, width + pad_right

        projections = (self.query, self.key, self.value)
        convolved = convolve_together(x, [projection.depthwise for projection in projections])
        qkv = [projection.project(y) for projection, y in zip(projections, convolved, strict=True)]
        half, heads = self.dim // 2, self.num_heads // 2
        rows = self.attention(*(partition_rows(t[..., :half], pale_rows, heads) for t in qkv))
        columns = self.attention(*(partition_columns(t[..., half:], pale_columns, heads) for t in qkv))
        rows = merge_rows(rows, pale_rows, padded_height, padded_width)
        columns = merge_columns(columns, pale_columns, padded_height, padded_width)

        x = paddle.concat([rows, columns], axis=-1)
        if _may_be_positive(pad_bottom) or _may_be_positive(pad_right):
            x = x[:, :height, :width]
        return self.projection(x)

    @paddle.no_grad()
    def fuse(self) -> None:
        """Make the layer cheaper for inference, equal to rounding; it can no longer be trained or load a checkpoint.

        Each BatchNorm goes into its pointwise convolution. The bias of the values goes through the attention, whose
        weights sum to one, into the projection; the bias of the keys, which adds the same to all scores of a query,
        goes.
        """
        for projection in (self.query, self.key, self.value):
            projection.fuse()
        if self.value.pointwise.bias is not None:
            bias = self.projection.bias + self.value.pointwise.bias @ self.projection.weight
            self.projection.bias.set_value(bias)
            self.key.pointwise.bias = self.value.pointwise.bias = None

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, pale_size={self.pale_size}"


def _sides(x: Tensor) -> list[int | Tensor]:
    """Height and width of ``[B, H, W, C]``: numbers, or scalar tensors where a traced graph leaves them open."""
    return [paddle.shape(x)[axis] if x.shape[axis] < 0 else x.shape[axis] for axis in (1, 2)]


def _may_be_positive(size: int | Tensor) -> bool:
    return not isinstance(size, int) or size > 0


def _append_zeros(x: Tensor, count: int | Tensor, axis: int) -> Tensor:
    """Append rows (axis 1) or columns (axis 2) of zeros to ``[B, H, W, C]``, fewer than there are.

    ``F.pad`` does the same, but paddle2onnx pads with undefined values or along wrong axes when it converts that.
    """
    if not _may_be_positive(count):
        return x
    some = x[:, :count] if axis == 1 else x[:, :, :count]
    return paddle.concat([x, paddle.zeros_like(some)], axis=axis)


def _at_most(pale_side: int, map_side: int | Tensor) -> int | Tensor:
    """The smaller of the two."""
    if isinstance(map_side, int):
        return min(pale_side, map_side)
    return paddle.minimum(paddle.full([], pale_side, map_side.dtype), map_side)


def fuse(model: nn.Layer) -> None:
    """Put a model that holds PS-Attention into evaluation, and make each such layer cheaper by its ``fuse``."""
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, PSAttention):
            layer.fuse()
    model.eval()


def _has_fused_kernel(query: Tensor) -> bool:
    return (
        paddle.in_dynamic_mode()
        and query.place.is_gpu_place()
        and query.dtype in (paddle.float16, paddle.bfloat16)
        and query.shape[-1] % 8 == 0
        and paddle.device.cuda.get_device_capability() >= (8, 0)
    )


def _pale_sides(pale_size: int | Sequence[int]) -> tuple[int, int]:
    """Return (s_r, s_c), or raise ValueError."""
    sides = tuple(pale_size) if isinstance(pale_size, Sequence) else (pale_size, pale_size)
    if len(sides) != 2 or not all(isinstance(side, Integral) and side > 0 for side in sides):
        raise ValueError(f"pale_size is {pale_size!r}; give one positive integer or a pair (rows, columns)")
    return int(sides[0]), int(sides[1])
