"""Faster forms of two operations for eager mode on CPUs. They are equal to Paddle's up to rounding.

``docs/performance.md`` explains them.
"""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from .eager import runs_eagerly

__all__ = ["depthwise_conv2d", "linear", "serve"]


@paddle.jit.not_to_static
def serve(x: Tensor) -> bool:
    """Whether operations on ``x`` run eagerly and on a CPU, and not on a GPU or in a program that is being traced."""
    return runs_eagerly() and x.place.is_cpu_place()


def depthwise_conv2d(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve ``[B, H, W, C]`` with M kernels for each channel and "same" padding to ``[B, H, W, M * C]``.

    Paddle's kernel copies every row of every plane K * K times before it multiplies, and has a fixed cost per row and
    per plane, of which there are B * C. So the images of a batch are laid side by side, with zero columns between
    them: C planes with long rows. The M kernels share the copies.

    Args:
        x: the map.
        kernels: ``[M * C, 1, K, K]``, all channels of the first output, then those of the second.
        bias: ``[M * C]``, or None.
    """
    return _DepthwiseConvolution.apply(x, kernels, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear`` with the bias inside the matrix product.

    Paddle adds the bias in a pass of its own, and sums its gradient by a reduction that takes longer than the product.
    """
    rows = _BiasedProduct.apply(x.reshape([-1, x.shape[-1]]), weight, bias)
    return rows.reshape([*x.shape[:-1], rows.shape[-1]])


class _DepthwiseConvolution(PyLayer):
    """The gradient of the map is a convolution with the mirrored kernels, that of the kernels a product with the
    shifted copies of the planes, and that of the bias one with a row of ones."""

    @staticmethod
    def forward(context: Any, x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
        context.needed = [t is not None and not t.stop_gradient for t in (x, kernels, bias)]
        context.inputs = 2 if bias is None else 3
        channels, size = x.shape[-1], kernels.shape[-1]
        kernels = kernels.reshape([-1, channels, size, size]).transpose([1, 0, 2, 3]).contiguous()  # [C, M, K, K]
        planes = _to_planes(x, channels, size // 2)
        context.save_for_backward(planes.contiguous(), kernels)  # recomputation forgets the strides of what is saved
        planes = F.conv2d(planes, kernels.reshape([-1, 1, size, size]), padding=size // 2, groups=channels)
        x = _to_map(planes, x.shape, channels)
        return x if bias is None else x + bias

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        planes, kernels = context.saved_tensor()
        channels, count, size, _ = kernels.shape
        for_map, for_kernels, for_bias = context.needed
        of_map = of_kernels = of_bias = None
        if for_bias:
            rows = gradient.reshape([-1, gradient.shape[-1]])
            of_bias = paddle.matmul(paddle.ones([1, len(rows)], rows.dtype), rows)[0]
        shape = gradient.shape
        gradient = _to_planes(gradient, channels, size // 2)
        if for_map:
            of_map = F.conv2d(gradient, kernels.flip([2, 3]), padding=size // 2, groups=channels)
            of_map = _to_map(of_map, shape, channels)
        if for_kernels:
            shifted = F.unfold(planes.transpose([1, 0, 2, 3]), size, paddings=size // 2)
            gradient = gradient.reshape([channels, count, -1])  # one product for each output is faster than one for all
            products = [paddle.matmul(gradient[:, m : m + 1], shifted, transpose_y=True) for m in range(count)]
            of_kernels = paddle.concat(products, axis=1).reshape(kernels.shape).transpose([1, 0, 2, 3])
            of_kernels = of_kernels.reshape([-1, 1, size, size])
        return (of_map, of_kernels, of_bias)[: context.inputs]


class _BiasedProduct(PyLayer):
    """``rows @ weight + bias``, whose bias gradient is a product with a row of ones."""

    @staticmethod
    def forward(context: Any, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        context.needed = [not tensor.stop_gradient for tensor in (rows, weight, bias)]
        context.save_for_backward(rows.contiguous(), weight)  # recomputation forgets the strides of what is saved
        return paddle.addmm(bias, rows, weight)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = context.saved_tensor()
        for_rows, for_weight, for_bias = context.needed
        return (
            paddle.matmul(gradient, weight, transpose_y=True) if for_rows else None,
            paddle.matmul(rows, gradient, transpose_x=True) if for_weight else None,
            paddle.matmul(paddle.ones([1, len(gradient)], gradient.dtype), gradient)[0] if for_bias else None,
        )


# Paddle transposes three axes several times as fast as it permutes four.


def _to_planes(x: Tensor, channels: int, border: int) -> Tensor:
    """``[B, H, W, M * C]`` -> ``[1, C * M, H, B * (W + border)]``, with zeros in the borders."""
    batch, height, width, outputs = x.shape
    rows = x.reshape([batch, height, width * outputs])
    rows = paddle.concat([rows, paddle.zeros([batch, height, border * outputs], x.dtype)], axis=2)
    x = rows.transpose([1, 0, 2]).reshape([-1, outputs // channels, channels]).transpose([2, 1, 0])
    return x.reshape([1, outputs, height, -1])


def _to_map(planes: Tensor, shape: list[int], channels: int) -> Tensor:
    """The inverse of :func:`_to_planes`, for a map of the batch, the height and the width of ``shape``."""
    batch, height, width, _ = shape
    outputs = planes.shape[1]
    rows = planes.reshape([channels, outputs // channels, -1]).transpose([2, 1, 0]).reshape([height, batch, -1])
    return rows.transpose([1, 0, 2])[:, :, : width * outputs].reshape([batch, height, width, outputs])
