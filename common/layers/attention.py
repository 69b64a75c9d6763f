"""Scaled dot-product attention within groups of tokens."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from .eager import runs_eagerly

__all__ = ["ScaledDotProductAttention"]


class ScaledDotProductAttention(nn.Layer):
    """softmax(q k^T / sqrt(D)) v for each head.

    It is a layer, and so is its softmax, so that hooks can count its products and see its weights.

    Args:
        fused: use ``F.scaled_dot_product_attention``, which on GPUs never stores the score matrix. ``None`` uses it
            where all supported versions of Paddle have its kernel: half precision, compute capability 8.0 and up, and
            head widths that are multiples of 8. On CPUs, Paddle runs the plain formula behind it. Both agree to 1e-5
            in float32.
    """

    def __init__(self, fused: bool | None = None):
        super().__init__()
        self.fused = fused
        self.softmax = nn.Softmax()
        self.dropout_rate = 0.0  # of the weights in training

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map three ``[G, heads, L, D]`` tensors (G groups of L tokens) to one of the same shape and dtype.

        Args:
            bias: added to the scores, ``[heads, L, L]``, query by key. With it, the plain formula runs always: whether
                Paddle's kernels give the bias its gradient could not be tested without a GPU.
        """
        if bias is None and (_has_fused_kernel(query) if self.fused is None else self.fused):
            query, key, value = (t.transpose([0, 2, 1, 3]) for t in (query, key, value))
            x = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout_rate, training=self.training)
            return x.transpose([0, 2, 1, 3])
        scores = paddle.matmul(query * query.shape[-1] ** -0.5, key, transpose_y=True)
        if bias is not None:
            scores = scores + bias.astype(scores.dtype)
        weights = self.softmax(scores)
        if self.dropout_rate:
            weights = F.dropout(weights, self.dropout_rate, training=self.training)
        return paddle.matmul(weights, value)


@paddle.jit.not_to_static
def _has_fused_kernel(query: Tensor) -> bool:
    return (
        runs_eagerly()
        and query.place.is_gpu_place()
        and query.dtype in (paddle.float16, paddle.bfloat16)
        and query.shape[-1] % 8 == 0
        and paddle.device.cuda.get_device_capability() >= (8, 0)
    )
