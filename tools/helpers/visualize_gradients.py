"""Grad-CAM, and the effective receptive field."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import paddle.nn.functional as F
from paddle import Tensor, nn

from common.errors import UserError
from common.pale_transformer import PaleTransformer

__all__ = ["ReceptiveField", "backbone_of", "grad_cam", "gradients_of", "receptive_fields"]


def backbone_of(model: nn.Layer) -> PaleTransformer:
    """The Pale Transformer that a model is or has.

    Raises:
        UserError: it has another backbone.
    """
    backbone = getattr(model, "backbone", model)
    if not isinstance(backbone, PaleTransformer):
        raise UserError(f"the model's backbone is {type(backbone).__name__}, not a Pale Transformer")
    return backbone


def gradients_of(value: Tensor, tensors: Sequence[Tensor], model: nn.Layer) -> list[Tensor]:
    """The gradients of a scalar with respect to intermediate tensors; those of the parameters are cleared.

    ``paddle.grad`` does the same, but fails with a ``PyLayer`` that has other inputs, too.
    """
    for tensor in tensors:
        tensor.retain_grads()
        tensor.clear_gradient()
    value.backward()
    model.clear_gradients()
    return [tensor.grad for tensor in tensors]


def _stage_maps(backbone: PaleTransformer, run: Callable[[], object]) -> tuple[object, list[Tensor]]:
    """The result of ``run``, and the map ``[1, h, w, C]`` of each stage during it."""
    maps: list[Tensor] = []
    with ExitStack() as hooks:
        for stage in backbone.stages:
            hook = stage.register_forward_post_hook(lambda layer, inputs, output: maps.append(output))
            hooks.callback(hook.remove)
        return run(), maps


def grad_cam(model: nn.Layer, score: Callable[[], Tensor], stage: int = 3) -> np.ndarray:
    """Grad-CAM (Selvaraju et al., arXiv 1610.02391) on the map of a stage, before the norm behind it.

    Args:
        model: is or has a Pale Transformer; in evaluation mode.
        score: runs the model on one image and returns a scalar.
        stage: from 0.

    Returns:
        float32 ``[h, w]``, 0 or more.
    """
    value, maps = _stage_maps(backbone_of(model), score)
    (gradient,) = gradients_of(value, [maps[stage]], model)
    weights = gradient.mean([1, 2], keepdim=True)
    return F.relu((weights * maps[stage]).sum(-1))[0].numpy()


@dataclass(frozen=True)
class ReceptiveField:
    """The influence of each pixel on one token.

    Attributes:
        shares: float32 ``[H, W]``; the sum is 1.
        center: x and y of the pixel at the center of the token's patch.
    """

    shares: np.ndarray
    center: tuple[int, int]

    def radius(self, share: float) -> int:
        """Radius, in pixels, of the smallest circle around the center that contains this share of the sum."""
        height, width = self.shares.shape
        y, x = np.ogrid[:height, :width]
        distance = np.hypot(y - self.center[1], x - self.center[0]).ravel()
        order = np.argsort(distance)
        inside = np.cumsum(self.shares.ravel()[order], dtype=np.float64)
        return math.ceil(distance[order][np.searchsorted(inside, share * inside[-1])])


def receptive_fields(model: nn.Layer, images: Iterable[Tensor]) -> list[ReceptiveField]:
    """The effective receptive field (Luo et al., arXiv 1701.04128) of the center token of each stage.

    It is the absolute gradient of the sum of the token's channels, summed over colors and averaged over images.

    Args:
        model: is or has a Pale Transformer; in evaluation mode.
        images: float32 ``[1, 3, H, W]`` each, of one size.
    """
    backbone = backbone_of(model)
    sums: list[np.ndarray | float] = [0.0] * len(backbone.stages)
    centers = [(0, 0)] * len(backbone.stages)
    for image in images:
        for stage, stride in enumerate(backbone.out_strides):
            pixels = image.detach()
            pixels.stop_gradient = False
            # One pass for each stage: a PyLayer loses what it saved in the backward pass.
            _, maps = _stage_maps(backbone, lambda pixels=pixels: backbone.forward_features(pixels))
            row, column = (side // 2 for side in maps[stage].shape[1:3])
            (gradient,) = gradients_of(maps[stage][0, row, column].sum(), [pixels], model)
            sums[stage] = sums[stage] + gradient[0].abs().sum(0).numpy()
            centers[stage] = column * stride, row * stride
    return [ReceptiveField(field / field.sum(), center) for field, center in zip(sums, centers, strict=True)]
