"""What a forward pass keeps for the backward pass: most of the memory of training."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import Tensor, nn

from common.layers.device import operations_of_gpus
from common.pale_attention import ScaledDotProductAttention

__all__ = ["count_kept_bytes"]


def count_kept_bytes(layer: nn.Layer, shape: Sequence[int]) -> int:
    """Bytes of the float32 tensors, parameters apart, that one training pass on one tensor keeps.

    The pass is run on the CPU, with the operations that GPUs run. Attention without a bias counts as the fused kernel
    that they have in half precision: its inputs and its output. A tensor that several operations keep counts once.
    """
    kept: dict[int, Tensor] = {}  # by address; holding them keeps an address from being used twice
    inside_fused = False

    def keep(tensor: Tensor) -> None:
        """Take the place of what an operation keeps: no backward pass follows, and a tensor that an operation keeps of
        its own output would never be freed."""
        if not inside_fused:
            kept[tensor.data_ptr()] = tensor

    def enter(attention: nn.Layer, inputs: tuple) -> None:
        nonlocal inside_fused
        for tensor in inputs[:3]:
            keep(tensor)
        inside_fused = len(inputs) < 4 or inputs[3] is None

    def leave(attention: nn.Layer, inputs: tuple, output: Tensor) -> None:
        nonlocal inside_fused
        inside_fused = False
        keep(output)

    hooks = []
    for sublayer in layer.sublayers(include_self=True):
        if isinstance(sublayer, ScaledDotProductAttention):
            hooks += [sublayer.register_forward_pre_hook(enter), sublayer.register_forward_post_hook(leave)]
    training = layer.training
    layer.train()
    try:
        with operations_of_gpus(), paddle.autograd.saved_tensors_hooks(keep, lambda _: None):
            layer(paddle.rand(list(shape)))
    finally:
        layer.train() if training else layer.eval()
        for hook in hooks:
            hook.remove()
    for parameter in layer.parameters():
        kept.pop(parameter.data_ptr(), None)
    return sum(tensor.size * tensor.element_size() for tensor in kept.values())
