"""Parameters and multiply-adds of a model, counted from what is executed."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn

from common.pale_attention import ScaledDotProductAttention

__all__ = ["count_flops", "params"]


def params(model: nn.Layer) -> int:
    """Number of trainable values (BatchNorm's running statistics are buffers and do not count)."""
    return sum(int(np.prod(parameter.shape)) for parameter in model.parameters() if not parameter.stop_gradient)


def count_flops(model: nn.Layer, height: int, width: int, in_channels: int = 3) -> int:
    """Multiply-adds of one forward pass on one ``in_channels x height x width`` image.

    Convolutions, linear layers and the two products of every attention count, as often as they run. Normalisation,
    activations, softmax and additions do not, as in the paper's own figures (a "FLOP" there is one multiply-add).
    """
    total = 0

    def count(layer: nn.Layer, inputs: tuple, output: paddle.Tensor) -> None:
        nonlocal total
        if isinstance(layer, ScaledDotProductAttention):
            query, key = inputs[:2]
            total += 2 * query.size * key.shape[1]
        elif isinstance(layer, nn.Linear):
            total += output.size * layer.weight.shape[0]
        else:
            total += output.size * int(np.prod(layer.weight.shape[1:]))

    counted = (nn.Conv2D, nn.Linear, ScaledDotProductAttention)
    hooks = [
        layer.register_forward_post_hook(count)
        for layer in model.sublayers(include_self=True)
        if isinstance(layer, counted)
    ]
    training = model.training
    model.eval()
    try:
        with paddle.no_grad():
            model(paddle.zeros([1, in_channels, height, width]))
    finally:
        if training:
            model.train()
        for hook in hooks:
            hook.remove()
    return int(total)
