"""Depthwise convolution on channels-last maps, made quick on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from .device import is_eager_on_cpu

__all__ = ["DepthwiseConv2D", "convolve_together"]


class DepthwiseConv2D(nn.Conv2D):
    """A depthwise convolution with an odd kernel and "same" padding, from ``[B, H, W, C]`` to the same shape.

    The bias is added to the channels-last result, because its broadcast over NCHW planes costs more than the
    convolution on CPUs.
    """

    def __init__(self, channels: int, kernel_size: int = 3, bias: bool = True):
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; 'same' padding needs an odd one")
        super().__init__(
            channels,
            channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=channels,
            bias_attr=None if bias else False,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = _convolve_stacked(x, [self.weight])[0] if is_eager_on_cpu(x) else self._convolve(x)
        return x if self.bias is None else x + self.bias

    def _convolve(self, x: Tensor) -> Tensor:
        x = F.conv2d(x.transpose([0, 3, 1, 2]), self.weight, padding=self._padding, groups=self._groups)
        return x.transpose([0, 2, 3, 1])


def convolve_together(x: Tensor, layers: Sequence[DepthwiseConv2D]) -> list[Tensor]:
    """Return ``[layer(x) for layer in layers]``; which is quicker on CPUs. The layers have no bias."""
    if is_eager_on_cpu(x):
        return _convolve_stacked(x, [layer.weight for layer in layers])
    return [layer(x) for layer in layers]


def _convolve_stacked(x: Tensor, kernels: Sequence[Tensor]) -> list[Tensor]:
    """Convolve a map ``[B, H, W, C]`` with each of several kernels ``[C, 1, K, K]``, the way that CPUs like.

    Paddle's CPU kernel copies every row of every plane K * K times before it multiplies, and pays a fixed price for
    each row and each of the B * C planes, more than the arithmetic of a small plane. So the images are put side by
    side, with as many columns of zeros between them as the kernel pads: C planes with long rows. All kernels are
    applied to one set of copies, as output channels of the same group.
    """
    batch, height, width, channels = x.shape
    border = kernels[0].shape[-1] // 2
    x = paddle.concat([x, paddle.zeros([batch, height, border, channels], x.dtype)], axis=2)
    planes = _PlaneConvolution.apply(_to_planes(x), paddle.concat(list(kernels), axis=1))
    planes = planes.reshape([channels, len(kernels), -1])
    return [_to_maps(planes[:, number], x.shape)[:, :, :width] for number in range(len(kernels))]


class _PlaneConvolution(PyLayer):
    """Convolve planes ``[1, C, H, W]`` with kernels ``[C, N, K, K]``, N for each plane, to ``[1, C * N, H, W]``.

    The gradients are Paddle's, by ways that are quicker on CPUs than its kernel: the gradient of the planes is a
    convolution with the mirrored kernels, that of the kernels one product with the shifted copies of the planes.
    """

    @staticmethod
    def forward(context, planes: Tensor, kernels: Tensor) -> Tensor:
        context.needed = [not tensor.stop_gradient for tensor in (planes, kernels)]
        context.save_for_backward(planes.contiguous(), kernels)  # recomputation forgets the strides of what is saved
        channels, size = kernels.shape[0], kernels.shape[-1]
        return F.conv2d(planes, kernels.reshape([-1, 1, size, size]), padding=size // 2, groups=channels)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
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


# Paddle transposes a matrix, or a tensor whose last axis stays, several times as fast as it permutes four axes at once.


def _to_planes(x: Tensor) -> Tensor:
    """``[B, H, W, C]`` -> ``[1, C, H, B * W]``."""
    batch, height, width, channels = x.shape
    x = x.reshape([batch, height, width * channels]).transpose([1, 0, 2]).reshape([-1, channels])
    return x.transpose([1, 0]).reshape([1, channels, height, batch * width])


def _to_maps(planes: Tensor, shape: Sequence[int]) -> Tensor:
    """``[C, H * B * W]`` -> ``[B, H, W, C]``."""
    batch, height, width, channels = shape
    x = planes.transpose([1, 0]).reshape([height, batch, width * channels])
    return x.transpose([1, 0, 2]).reshape(shape)
