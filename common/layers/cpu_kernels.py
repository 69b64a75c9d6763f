"""Faster forms of two operations for eager mode on CPUs. They are equal to Paddle's up to rounding.

``docs/performance.md`` explains them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

__all__ = ["depthwise_conv2d", "linear", "serve"]


@paddle.jit.not_to_static
def serve(x: Tensor) -> bool:
    """Whether operations on ``x`` run eagerly and on a CPU, and not on a GPU or in a program that is being traced."""
    return paddle.in_dynamic_mode() and x.place.is_cpu_place()


def depthwise_conv2d(x: Tensor, kernels: Sequence[Tensor]) -> list[Tensor]:
    """Convolve ``[B, H, W, C]`` with each of M kernels ``[C, 1, K, K]`` and "same" padding to M maps ``[B, H, W, C]``.

    Paddle's kernel copies every row of every plane K * K times before it multiplies, and has a fixed cost per row and
    per plane, of which there are B * C. So the images of a batch are laid side by side, with zero columns between
    them: C planes with long rows. The M kernels share the copies.
    """
    batch, height, width, channels = x.shape
    border = kernels[0].shape[-1] // 2
    x = paddle.concat([x, paddle.zeros([batch, height, border, channels], x.dtype)], axis=2)
    planes = _PlaneConvolution.apply(_to_planes(x), paddle.concat(list(kernels), axis=1))
    planes = planes.reshape([channels, len(kernels), -1])
    return [_to_map(planes[:, output], x.shape)[:, :, :width] for output in range(len(kernels))]


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear`` with the bias inside the matrix product.

    Paddle adds the bias in a pass of its own, and sums its gradient by a reduction that takes longer than the product.
    """
    rows = _BiasedProduct.apply(x.reshape([-1, x.shape[-1]]), weight, bias)
    return rows.reshape([*x.shape[:-1], rows.shape[-1]])


class _PlaneConvolution(PyLayer):
    """Convolve planes ``[1, C, H, W]`` with kernels ``[C, M, K, K]``, M for each plane, to ``[1, C * M, H, W]``.

    The gradient of the planes is a convolution with the mirrored kernels, that of the kernels a product with the
    shifted copies of the planes.
    """

    @staticmethod
    def forward(context: Any, planes: Tensor, kernels: Tensor) -> Tensor:
        context.needed = [not tensor.stop_gradient for tensor in (planes, kernels)]
        context.save_for_backward(planes.contiguous(), kernels)  # recomputation forgets the strides of what is saved
        channels, size = kernels.shape[0], kernels.shape[-1]
        return F.conv2d(planes, kernels.reshape([-1, 1, size, size]), padding=size // 2, groups=channels)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        planes, kernels = context.saved_tensor()
        channels, count, size, _ = kernels.shape
        for_planes, for_kernels = context.needed
        of_planes = of_kernels = None
        if for_planes:
            of_planes = F.conv2d(gradient, kernels.flip([2, 3]), padding=size // 2, groups=channels)
        if for_kernels:
            shifted = F.unfold(planes.transpose([1, 0, 2, 3]), size, paddings=size // 2)
            of_kernels = paddle.matmul(gradient.reshape([channels, count, -1]), shifted, transpose_y=True)
            of_kernels = of_kernels.reshape(kernels.shape)
        return of_planes, of_kernels


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


# Paddle transposes a matrix, or a tensor whose last axis stays, several times as fast as it permutes four axes at once.


def _to_planes(x: Tensor) -> Tensor:
    """``[B, H, W, C]`` -> ``[1, C, H, B * W]``."""
    batch, height, width, channels = x.shape
    x = x.reshape([batch, height, width * channels]).transpose([1, 0, 2]).reshape([-1, channels])
    return x.transpose([1, 0]).reshape([1, channels, height, batch * width])


def _to_map(planes: Tensor, shape: list[int]) -> Tensor:
    """``[C, H * B * W]`` -> ``[B, H, W, C]``."""
    batch, height, width, channels = shape
    x = planes.transpose([1, 0]).reshape([height, batch, width * channels])
    return x.transpose([1, 0, 2]).reshape(shape)
