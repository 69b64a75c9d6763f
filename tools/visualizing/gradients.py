"""What gradients tell of a model: Grad-CAM, and the effective receptive field."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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
    """The gradients of a scalar with respect to what it was computed from; the model keeps none.

    ``paddle.grad`` does the same, but refuses layers of one's own (``PyLayer``) whose other inputs are not asked for.
    """
    for tensor in tensors:
        tensor.retain_grads()
        tensor.clear_gradient()
    value.backward()
    model.clear_gradients()
    return [tensor.grad for tensor in tensors]


@dataclass(frozen=True)
class ReceptiveField:
    """How much each pixel counts for one token.

    Attributes:
        shares: float32 ``[H, W]``; they sum up to 1.
        centre: x and y of the pixel in the middle of what the token was computed from.
    """

    shares: np.ndarray
    centre: tuple[int, int]

    def radius(self, share: float) -> int:
        """Of the smallest circle around the centre that holds so much of the sum, 0 to 1; in pixels."""
        height, width = self.shares.shape
        y, x = np.ogrid[:height, :width]
        distance = np.hypot(y - self.centre[1], x - self.centre[0]).ravel()
        order = np.argsort(distance)
        held = np.cumsum(self.shares.ravel()[order], dtype=np.float64)
        return math.ceil(distance[order][np.searchsorted(held, share * held[-1])])


def _run_and_keep_maps(backbone: PaleTransformer, run: Callable[[], object]) -> tuple[object, list[Tensor]]:
    """What ``run`` returns, and the ``[1, h, w, C]`` map of each stage."""
    maps: list[Tensor] = []
    hooks = [
        stage.register_forward_post_hook(lambda layer, inputs, output: maps.append(output)) for stage in backbone.stages
    ]
    try:
        return run(), maps
    finally:
        for hook in hooks:
            hook.remove()


def grad_cam(model: nn.Layer, score: Callable[[], Tensor], stage: int = 3) -> np.ndarray:
    """Grad-CAM (Selvaraju et al., arXiv 1610.02391) on the map of a stage, before any norm behind it.

    Args:
        model: is or has a Pale Transformer; in evaluation mode.
        score: runs the model on one image, and gives what it says of a class, a scalar.
        stage: from 0.

    Returns:
        float32 ``[h, w]``, 0 or more: channels weighted by the mean of their gradients, summed up, negative sums 0.
    """
    value, maps = _run_and_keep_maps(backbone_of(model), score)
    (gradient,) = gradients_of(value, [maps[stage]], model)
    weights = gradient.mean([1, 2], keepdim=True)
    return F.relu((weights * maps[stage]).sum(-1))[0].numpy()


def receptive_fields(model: nn.Layer, images: Iterable[Tensor]) -> list[ReceptiveField]:
    """The effective receptive field (Luo et al., arXiv 1701.04128) of the centre token of each stage.

    It is how much the sum of the token's channels changes with each pixel: the absolute gradient, summed over colours,
    averaged over images.

    Args:
        model: is or has a Pale Transformer; in evaluation mode.
        images: float32 ``[1, 3, H, W]`` each, of one size.

    Returns:
        One for each stage.
    """
    backbone = backbone_of(model)
    sums: list[np.ndarray | float] = [0.0] * len(backbone.stages)
    centres = [(0, 0)] * len(backbone.stages)
    for image in images:
        for stage, stride in enumerate(backbone.out_strides):
            pixels = image.detach()
            pixels.stop_gradient = False
            # A pass for each stage, because a layer of one's own (PyLayer) forgets what it kept after a backward pass.
            _, maps = _run_and_keep_maps(backbone, lambda pixels=pixels: backbone.forward_features(pixels))
            row, column = (side // 2 for side in maps[stage].shape[1:3])
            (gradient,) = gradients_of(maps[stage][0, row, column].sum(), [pixels], model)
            sums[stage] = sums[stage] + gradient[0].abs().sum(0).numpy()
            centres[stage] = column * stride, row * stride
    return [ReceptiveField(field / field.sum(), centre) for field, centre in zip(sums, centres, strict=True)]
