"""Conditional position encoding."""

from __future__ import annotations

from paddle import Tensor

from .channels_last import DepthwiseConv2D

__all__ = ["ConditionalPositionEncoding"]


class ConditionalPositionEncoding(DepthwiseConv2D):
    """CPE: adds to each token a depthwise 3x3 convolution of its neighborhood [U, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, C]`` to the same shape."""
        return x + DepthwiseConv2D.forward(self, x)  # Paddle 2.6 cannot trace super()
