"""A linear layer that is quick on CPUs."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from .device import is_eager_on_cpu

__all__ = ["Linear"]


class Linear(nn.Linear):
    """``nn.Linear``, equal to rounding, with the bias inside the matrix product on CPUs.

    Paddle adds the bias in a pass of its own and sums its gradient by a reduction that takes longer than the product.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        if self.bias is None or not is_eager_on_cpu(x):
            return F.linear(x, self.weight, self.bias)
        rows = x.reshape([-1, x.shape[-1]])
        rows = _BiasedProduct.apply(rows, self.weight, self.bias)
        return rows.reshape([*x.shape[:-1], rows.shape[-1]])


class _BiasedProduct(PyLayer):
    """rows W + b, whose bias gradient is a product with a vector of ones."""

    @staticmethod
    def forward(context, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        context.needed = [not tensor.stop_gradient for tensor in (rows, weight, bias)]
        context.save_for_backward(rows.contiguous(), weight)  # recomputation forgets the strides of what is saved
        return paddle.addmm(bias, rows, weight)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = context.saved_tensor()
        for_rows, for_weight, for_bias = context.needed
        return (
            paddle.matmul(gradient, weight, transpose_y=True) if for_rows else None,
            paddle.matmul(rows, gradient, transpose_x=True) if for_weight else None,
            paddle.matmul(paddle.ones([1, len(gradient)], gradient.dtype), gradient)[0] if for_bias else None,
        )
