"""Parameters and multiply-adds of a model, counted from what is executed.

python -m common.flops            # the table of all variants at 224x224
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import paddle
from paddle import nn

from .pale_attention import ScaledDotProductAttention
from .runtime.signals import signals_wait

__all__ = ["count_flops", "count_layer_flops", "flops_by_layer", "params"]


def params(model: nn.Layer, frozen: bool = False) -> int:
    """Number of trainable values, and of frozen ones if asked; BatchNorm's running statistics do not count."""
    return sum(
        math.prod(parameter.shape)
        for name, parameter in model.named_parameters()
        if not parameter.stop_gradient or (frozen and not name.endswith(("._mean", "._variance")))
    )


class _Traced(nn.Layer):
    """A layer to trace instead of the model, because tracing replaces ``forward``."""

    def __init__(self, model: nn.Layer):
        super().__init__()
        self.model = model

    def forward(self, x: paddle.Tensor) -> Any:
        return _run(self.model, x)


@paddle.jit.not_to_static
def _run(model: nn.Layer, x: paddle.Tensor) -> Any:
    """Call the model without transforming its code, which takes most of a trace and which fixed sizes do not need."""
    return model(x)


def count_flops(model: nn.Layer, height: int, width: int, in_channels: int = 3, norms: bool = False) -> int:
    """Multiply-adds of a forward pass on one ``in_channels x height x width`` image; see :func:`flops_by_layer`."""
    return count_layer_flops(model, [1, in_channels, height, width], norms)


def count_layer_flops(model: nn.Layer, shape: Sequence[int], norms: bool = False) -> int:
    """Multiply-adds of one forward pass on one tensor: the sum of :func:`flops_by_layer`."""
    return sum(flops_by_layer(model, shape, norms).values())


def flops_by_layer(model: nn.Layer, shape: Sequence[int], norms: bool = False) -> dict[str, int]:
    """Multiply-adds of one forward pass on one tensor, of each sublayer that has some, by its name.

    Convolutions, linear layers and the two products of every attention count, as often as they run. Activations,
    softmax and additions do not. The pass is traced, not computed: only shapes are needed.

    Args:
        shape: of the tensor, which is float32.
        norms: add 5 for each value that a LayerNorm normalizes and 2 for each of a BatchNorm, as fvcore does. The
            paper's figures seem to be counted so [C: its 15.6G, 1135G and 1311G need them].
    """
    totals: dict[str, int] = defaultdict(int)

    def count(name: str, layer: nn.Layer, inputs: tuple, output: paddle.Tensor) -> None:
        if isinstance(layer, ScaledDotProductAttention):
            query, key = inputs[:2]
            totals[name] += 2 * math.prod(query.shape) * key.shape[2]
        elif isinstance(layer, nn.Linear):
            totals[name] += math.prod(output.shape) * layer.weight.shape[0]
        elif isinstance(layer, nn.Conv2D):
            totals[name] += math.prod(output.shape) * math.prod(layer.weight.shape[1:])
        elif isinstance(layer, nn.Conv2DTranspose):
            totals[name] += math.prod(inputs[0].shape) * math.prod(layer.weight.shape[1:])
        else:
            totals[name] += math.prod(output.shape) * (5 if isinstance(layer, nn.LayerNorm) else 2)

    counted: tuple[type[nn.Layer], ...] = (nn.Conv2D, nn.Conv2DTranspose, nn.Linear, ScaledDotProductAttention)
    if norms:
        counted += (nn.LayerNorm, nn.BatchNorm2D)
    hooks = [
        layer.register_forward_post_hook(partial(count, name))
        for name, layer in model.named_sublayers(include_self=True)
        if isinstance(layer, counted)
    ]

    spec = [paddle.static.InputSpec(list(shape), "float32")]
    traced = _Traced(model)
    training = model.training
    model.eval()
    try:
        with signals_wait():
            _ = paddle.jit.to_static(traced, spec, full_graph=True).forward.concrete_program
    finally:
        if training:
            model.train()
        for hook in hooks:
            hook.remove()
    return dict(totals)


def main() -> None:
    from .pale_transformer import create_model, list_models

    print("| model | params | multiply-adds at 224x224 |\n|-------|-------:|------:|")
    for name in list_models():
        model = create_model(name)
        print(f"| `{name}` | {params(model) / 1e6:.2f}M | {count_flops(model, 224, 224) / 1e9:.2f}G |", flush=True)


if __name__ == "__main__":
    main()
