"""Parameters and multiply-adds of a model, counted from what is executed.

python -m common.flops            # the table of all variants at 224x224
"""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn

from common.pale_attention import ScaledDotProductAttention

__all__ = ["count_flops", "params"]


def params(model: nn.Layer) -> int:
    """Number of trainable values (BatchNorm's running statistics do not count)."""
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


def main() -> None:
    from common.pale_transformer import create_model, list_models

    print("| model | params | multiply-adds at 224x224 |\n|-------|-------:|------:|")
    for name in list_models():
        model = create_model(name)
        print(f"| `{name}` | {params(model) / 1e6:.2f}M | {count_flops(model, 224, 224) / 1e9:.2f}G |", flush=True)


if __name__ == "__main__":
    main()
