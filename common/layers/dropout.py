"""Dropout within blocks, which no recipe of this project uses; the unofficial reading [U] and timm's models have it."""

from __future__ import annotations

import functools
from typing import Any

import paddle.nn.functional as F
from paddle import Tensor, nn

from .attention import ScaledDotProductAttention

__all__ = ["add_dropout"]


def add_dropout(model: nn.Layer, attention_rate: float, projection_rate: float) -> None:
    """Let a newly built ``PaleTransformer`` drop values in training.

    Args:
        model: the model, with its final attention layers.
        attention_rate: of the weights of the attention.
        projection_rate: of the outputs of the attention and of the MLP of each block, before stochastic depth.
    """
    for layer in model.sublayers():
        if isinstance(layer, ScaledDotProductAttention):
            layer.dropout_rate = attention_rate
    if projection_rate:
        for block in (block for stage in model.stages for block in stage.blocks):
            for branch in (block.attention, block.mlp):
                branch.register_forward_post_hook(functools.partial(_drop, projection_rate))


def _drop(rate: float, layer: nn.Layer, inputs: Any, output: Tensor) -> Tensor:
    return F.dropout(output, rate, training=layer.training)
