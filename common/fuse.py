"""Fuse operations of a trained model for inference; outputs are equal up to rounding."""

from __future__ import annotations

import paddle
from paddle import Tensor, nn

from .ablation import ShapedAttention
from .layers.channels_last import DepthwiseConv2D
from .layers.position_encoding import ConditionalPositionEncoding
from .pale_attention import PSAttention, SeparableProjection

__all__ = ["fuse"]


@paddle.no_grad()
def fuse(model: nn.Layer) -> None:
    """Make a model with PS-Attention cheaper, in place, for inference; outputs agree to 1e-5.

    It is then in evaluation mode, and can neither be trained nor load a checkpoint. BatchNorm goes into the pointwise
    convolutions, the bias of the values into the output projection, and the residual connection of the position
    encoding into its kernel.
    """
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, (PSAttention, ShapedAttention)) and isinstance(layer.qkv, SeparableProjection):
            layer.qkv = _FusedProjection(layer.qkv)
            # Attention weights sum to one, so the values' bias passes through them. That of the keys adds the same to
            # all scores of a query, which softmax ignores.
            layer.projection.bias.set_value(layer.projection.bias + layer.qkv.value.bias @ layer.projection.weight)
            layer.qkv.key.bias = layer.qkv.value.bias = None
        encoding = getattr(layer, "position_encoding", None)
        if isinstance(encoding, ConditionalPositionEncoding):
            layer.position_encoding = _with_residual_in_kernel(encoding)
    model.eval()


class _FusedProjection(nn.Layer):
    """A :class:`common.pale_attention.SeparableProjection` with the statistics of its BatchNorm folded in."""

    def __init__(self, projection: SeparableProjection):
        super().__init__()
        norm = projection.norm
        scale = norm.weight / paddle.sqrt(norm._variance + norm._epsilon)
        shift = norm.bias - norm._mean * scale
        self.depthwise = projection.depthwise
        dim = projection.query.weight.shape[0]
        for number, name in enumerate(("query", "key", "value")):
            part, linear = slice(number * dim, (number + 1) * dim), getattr(projection, name)
            linear.bias.set_value(linear.bias + shift[part] @ linear.weight)
            linear.weight.set_value(linear.weight * scale[part].unsqueeze(1))
            setattr(self, name, linear)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map ``[B, H, W, C]`` to query, key and value of the same shape."""
        query, key, value = self.depthwise.outputs(x)
        return self.query(query), self.key(key), self.value(value)


def _with_residual_in_kernel(encoding: ConditionalPositionEncoding) -> DepthwiseConv2D:
    """``x + encoding(x)`` as one convolution: the center of each kernel adds the token itself."""
    channels, _, size, _ = encoding.weight.shape
    identity = paddle.zeros_like(encoding.weight)
    identity[:, :, size // 2, size // 2] = 1.0
    convolution = DepthwiseConv2D(channels, size).to(dtype=encoding.weight.dtype)
    convolution.weight.set_value(encoding.weight + identity)
    convolution.bias.set_value(encoding.bias)
    return convolution
