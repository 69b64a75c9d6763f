"""Outputs that are not finite, such as those of weights with huge values, are an error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import paddle
from paddle import nn

from .errors import UserError

__all__ = ["NOT_FINITE", "require_finite", "require_finite_outputs"]

NOT_FINITE = "the outputs of the model are not finite; check the image and the weights"


def require_finite(outputs: Any) -> None:
    """Check the tensors in a tensor, list or dictionary.

    Raises:
        UserError: one is not finite.
    """
    for output in paddle.utils.flatten(outputs):
        if isinstance(output, paddle.Tensor) and output.is_floating_point() and not bool(output.isfinite().all()):
            raise UserError(NOT_FINITE)


@contextlib.contextmanager
def require_finite_outputs(model: Any) -> Iterator[None]:
    """Check the outputs of a model and of the ``backbone`` in it: argmax and NMS would make a result of NaN.

    Args:
        model: a layer; anything else, such as an exported model, is not checked.

    Raises:
        UserError: an output is not finite.
    """
    layers = model.named_sublayers(include_self=True) if isinstance(model, nn.Layer) else ()
    hooks = [
        layer.register_forward_post_hook(lambda _, inputs, outputs: require_finite(outputs))
        for name, layer in layers
        if name.rpartition(".")[2] in ("", "backbone")
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
