"""Depthwise convolution, BatchNorm and linear layer on channels-last maps, ``[B, H, W, C]``, as in the whole model."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from . import cpu_kernels

__all__ = ["BatchNorm", "DepthwiseConv2D", "Linear"]


class DepthwiseConv2D(nn.Conv2D):
    """Depthwise convolution with stride 1 and "same" padding, from ``[B, H, W, C]`` to ``[B, H, W, M * C]``.

    Args:
        channels: channels C of the input.
        kernel_size: odd side K of the kernels.
        multiplier: outputs M of each input channel. All channels of the first output come first, then those of the
            second: the result is the concatenation of M depthwise convolutions, and so is ``weight``,
            ``[M * C, 1, K, K]``.
        bias: whether there is a bias.

    Raises:
        ValueError: ``kernel_size`` is even.
    """

    def __init__(self, channels: int, kernel_size: int = 3, multiplier: int = 1, bias: bool = True):
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; 'same' padding needs an odd one")
        padding, bias_attr = kernel_size // 2, None if bias else False
        super().__init__(
            channels, multiplier * channels, kernel_size, padding=padding, groups=channels, bias_attr=bias_attr
        )
        self.multiplier = multiplier

    def forward(self, x: Tensor) -> Tensor:
        if cpu_kernels.serve(x):
            return cpu_kernels.depthwise_conv2d(x, self.weight, self.bias)
        x = paddle.concat(self.outputs(x), axis=-1) if self.multiplier > 1 else self.outputs(x)[0]
        return x if self.bias is None else x + self.bias

    def outputs(self, x: Tensor) -> list[Tensor]:
        """The M outputs, ``[B, H, W, C]`` each, without the bias."""
        if cpu_kernels.serve(x):
            return cpu_kernels.depthwise_conv2d(x, self.weight, None).split(self.multiplier, axis=-1)
        x = x.transpose([0, 3, 1, 2])  # Paddle's kernels for channels-first maps are faster
        kernels = self.weight.split(self.multiplier)
        outputs = (F.conv2d(x, kernel, padding=self._padding, groups=self._groups) for kernel in kernels)
        return [output.transpose([0, 2, 3, 1]) for output in outputs]


class BatchNorm(nn.BatchNorm2D):
    """``nn.BatchNorm2D`` of ``[B, H, W, C]``.

    In a traced program in evaluation mode it is a product and a sum, because paddle2onnx takes Paddle's channels-last
    operator for a channels-first one.
    """

    def __init__(self, channels: int):
        super().__init__(channels, data_format="NHWC")

    def forward(self, x: Tensor) -> Tensor:
        if self.training or paddle.in_dynamic_mode():
            return nn.BatchNorm2D.forward(self, x)  # Paddle 2.6 cannot trace super()
        scale = self.weight / paddle.sqrt(self._variance + self._epsilon)
        return x * scale + (self.bias - self._mean * scale)


class Linear(nn.Linear):
    """``nn.Linear`` from ``[..., C_in]`` to ``[..., C_out]``."""

    def forward(self, x: Tensor) -> Tensor:
        if cpu_kernels.serve(x) and self.bias is not None:
            return cpu_kernels.linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)
