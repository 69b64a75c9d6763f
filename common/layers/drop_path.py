"""Stochastic depth."""

from __future__ import annotations

import paddle
from paddle import Tensor, nn

__all__ = ["DropPath"]


class DropPath(nn.Layer):
    """Drops a residual branch for whole samples in training (stochastic depth, arXiv 1603.09382).

    Args:
        rate: probability of a drop, in [0, 1).
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        kept = paddle.bernoulli(paddle.full([x.shape[0]] + [1] * (x.ndim - 1), 1.0 - self.rate))
        return x * (kept / (1.0 - self.rate)).astype(x.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"
