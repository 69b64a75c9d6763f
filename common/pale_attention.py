"""Pale-shaped self-attention (PS-Attention) on channels-last maps.

The marks tell how sure a fact of the paper (arXiv 2112.14000) is; ``docs/paper.md`` explains them:
[P] the paper's own words, [R] a public review, [U] an unofficial reading, [C] confirmed by arithmetic, [A] assumed.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from .layers.attention_shapes import Along, Grouping, attention_groupings, map_sides, merge, partition, smaller
from .layers.depthwise_conv import DepthwiseConv2D, convolve_together
from .layers.linear import Linear
from .layers.position_encoding import ConditionalPositionEncoding, RelativePositionBias

__all__ = ["PSAttention", "ScaledDotProductAttention", "SeparableProjection", "fuse"]


class ScaledDotProductAttention(nn.Layer):
    """softmax(q k^T / sqrt(D)) v for every head; a layer of its own so that its products can be counted.

    In the plain formula, the softmax is a layer, too: a hook on it sees the weights, ``[G, heads, L, L]``.

    Args:
        fused: use ``F.scaled_dot_product_attention``, which on GPUs never stores the score matrix. ``None`` uses it
            where its kernel exists on all supported versions of Paddle: in half precision, on GPUs of compute
            capability 8.0 and up, for head widths that 8 divides. On CPUs Paddle runs the plain formula behind it.
            Both agree to 1e-5 in float32. Scores with a bias take the plain formula always: that Paddle's kernels give
            the bias its gradient could not be tested without a GPU.
    """

    def __init__(self, fused: bool | None = None):
        super().__init__()
        self.fused = fused
        self.softmax = nn.Softmax()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map three ``[G, heads, L, D]`` tensors (G groups of L tokens) to one of the same shape and dtype.

        Args:
            bias: ``[heads, L, L]``, query by key, added to the scores.
        """
        if bias is None and (_has_fused_kernel(query) if self.fused is None else self.fused):
            query, key, value = (t.transpose([0, 2, 1, 3]) for t in (query, key, value))
            return F.scaled_dot_product_attention(query, key, value, training=self.training).transpose([0, 2, 1, 3])
        scores = paddle.matmul(query * query.shape[-1] ** -0.5, key, transpose_y=True)
        if bias is not None:
            scores = scores + bias.astype(scores.dtype)
        return paddle.matmul(self.softmax(scores), value)


class SeparableProjection(nn.Layer):
    """Depthwise 3x3 convolution -> BatchNorm -> pointwise convolution, "following CvT" [R, U].

    The depthwise convolution has no bias [A: CvT]; the BatchNorm would cancel it. On channels-last maps the pointwise
    convolution is a linear layer.

    Args:
        dim: channels C of the map.
        parts: equal parts that the channels of the result are split into.
    """

    def __init__(self, dim: int, parts: int = 1):
        super().__init__()
        self.parts = parts
        self.depthwise = DepthwiseConv2D(dim, bias=False)
        self.norm = nn.BatchNorm2D(dim, data_format="NHWC")
        self.pointwise = Linear(dim, dim)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map ``[B, H, W, C]`` to ``parts`` maps ``[B, H, W, C / parts]``."""
        return self.project(self.depthwise(x))

    def project(self, x: Tensor) -> list[Tensor]:
        """What follows the depthwise convolution."""
        if self.norm is None:
            return [linear(x) for linear in self.pointwise]
        x = self.pointwise(self.norm(x))
        return [_channels(x, part, self.parts) for part in range(self.parts)]

    @paddle.no_grad()
    def fuse(self) -> None:
        """Fold the BatchNorm, as it is in evaluation, into the pointwise convolution, and make one of each part."""
        if self.norm is None:
            return
        scale = self.norm.weight / paddle.sqrt(self.norm._variance + self.norm._epsilon)
        shift = self.norm.bias - self.norm._mean * scale
        bias = self.pointwise.bias + shift @ self.pointwise.weight
        weight = self.pointwise.weight * scale.unsqueeze(1)
        dim, width = weight.shape[0], weight.shape[1] // self.parts
        empty = paddle.ParamAttr(initializer=nn.initializer.Constant(0.0))  # not at random, which takes time
        pointwise = [Linear(dim, width, weight_attr=empty).to(dtype=weight.dtype) for _ in range(self.parts)]
        for part, linear in enumerate(pointwise):
            linear.weight.set_value(_channels(weight, part, self.parts))
            linear.bias.set_value(_channels(bias, part, self.parts))
        self.norm, self.pointwise = None, nn.LayerList(pointwise)


class PSAttention(nn.Layer):
    """Attention within groups of tokens; pale-shaped in the parallel form, as the model has it, unless said otherwise.

    Query, key and value are computed on all channels, then split into equal parts, one for each grouping [U, C]. Pales
    have two: the row half attends within groups of s_r interlaced rows, the column half within groups of s_c interlaced
    columns [R]. The results are concatenated and projected.

    A map whose sides are not multiples of the groups' is zero-padded before the projections and cropped after the
    attention [C]; padded tokens are not masked [A: as Swin's dense-task code]. A map smaller than a group gets groups
    of the map's size [A].

    Args:
        dim: channels C of the map.
        num_heads: heads of all parts together, so a half has ``num_heads / 2`` heads of width ``dim / num_heads``
            [A: CSWin's convention].
        groupings: how each part groups the tokens, see :func:`common.layers.attention_shapes.attention_groupings`.
        fused: see :class:`ScaledDotProductAttention`.
        map_size: height and width of the map in training, for a relative position bias; ``None`` for no bias.

    Raises:
        ValueError: ``num_heads`` is no multiple of the parts or does not divide ``dim``, or groupings have unlike sizes
            along one axis.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        groupings: Sequence[Grouping] = attention_groupings(),
        fused: bool | None = None,
        map_size: tuple[int, int] | None = None,
    ):
        super().__init__()
        parts = len(groupings)
        if num_heads < parts or num_heads % parts:
            rule = "rows and columns share the heads, so it must be even and >= 2" if parts == 2 else "it must be >= 1"
            raise ValueError(f"num_heads is {num_heads}; {rule}")
        if dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide dim {dim}; choose a divisor of {dim}")
        self.dim, self.num_heads, self.groupings = dim, num_heads, tuple(groupings)
        self.multiples = tuple(_common_size(along) for along in zip(*groupings, strict=True))
        self.query = SeparableProjection(dim, parts)
        self.key = SeparableProjection(dim, parts)
        self.value = SeparableProjection(dim, parts)
        self.attention = ScaledDotProductAttention(fused)
        self.projection = Linear(dim, dim)
        self.position_biases = None
        if map_size:
            height, width = (side + pad for side, pad in zip(map_size, self.padding(*map_size), strict=True))
            sides = [grouping.at_most(*map_size).sides(height, width) for grouping in groupings]
            self.position_biases = nn.LayerList([RelativePositionBias(num_heads // parts, *pair) for pair in sides])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, C]`` to the same shape, for any H and W from 1 up."""
        height, width = map_sides(x)
        groupings = [grouping.at_most(height, width) for grouping in self.groupings]
        pad_bottom, pad_right = self.padding(height, width)
        x = _append_zeros(_append_zeros(x, pad_bottom, 1), pad_right, 2)
        padded_height, padded_width = height + pad_bottom, width + pad_right

        projections = (self.query, self.key, self.value)
        convolved = convolve_together(x, [projection.depthwise for projection in projections])
        qkv = [projection.project(y) for projection, y in zip(projections, convolved, strict=True)]
        parts = len(groupings)
        attended = []
        for part, grouping in enumerate(groupings):
            of_part = (partition(maps[part], grouping, self.num_heads // parts) for maps in qkv)
            bias = None
            if self.position_biases is not None:
                bias = self.position_biases[part](*grouping.sides(padded_height, padded_width))
            attended.append(merge(self.attention(*of_part, bias), grouping, padded_height, padded_width))

        x = paddle.concat(attended, axis=-1) if parts > 1 else attended[0]
        if _may_be_positive(pad_bottom) or _may_be_positive(pad_right):
            x = x[:, :height, :width]
        return self.projection(x)

    def padding(self, height: int | Tensor, width: int | Tensor) -> list[int | Tensor]:
        """Rows and columns of zeros that a map of these sides gets at its end."""
        return [
            0 if multiple == 1 else -side % smaller(multiple, side)
            for side, multiple in zip((height, width), self.multiples, strict=True)
        ]

    @paddle.no_grad()
    def fuse(self) -> None:
        """Make the layer cheaper for inference, equal to rounding; it can no longer be trained or load a checkpoint.

        Each BatchNorm goes into its pointwise convolution. The bias of the values goes through the attention, whose
        weights sum to one, into the projection; the bias of the keys, which adds the same to all scores of a query,
        goes.
        """
        for projection in (self.query, self.key, self.value):
            projection.fuse()
        if self.value.pointwise[0].bias is not None:
            bias = paddle.concat([linear.bias for linear in self.value.pointwise])
            self.projection.bias.set_value(self.projection.bias + bias @ self.projection.weight)
            for linear in (*self.key.pointwise, *self.value.pointwise):
                linear.bias = None

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, groupings={self.groupings}"


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


def _channels(x: Tensor, part: int, parts: int) -> Tensor:
    """One of so many equal parts of the channels of ``[..., C]``."""
    width = x.shape[-1] // parts
    return x if parts == 1 else x[..., part * width : (part + 1) * width]


def fuse(model: nn.Layer) -> None:
    """Put a model that holds PS-Attention into evaluation, and make its layers cheaper, each by its own ``fuse``."""
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, (PSAttention, ConditionalPositionEncoding)):
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


def _common_size(groups: Sequence[Along]) -> int:
    """What a side of the map must be a multiple of, for all parts."""
    sizes = {along.size for along in groups if along.size is not None}
    if len(sizes) > 1:
        raise ValueError(f"the groupings have unlike sizes along one axis, {sorted(sizes)}; give them one")
    return sizes.pop() if sizes else 1
