"""Patches of PaddleSeg 2.8.0 that this project's launcher needs: a loss and a transform.

Importing this module applies them. :mod:`semantic_segmentation.paddleseg_trainer_patches` has those that only
PaddleSeg's own training and evaluation loops need.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddleseg
from paddle import Tensor
from paddleseg.models.losses import CrossEntropyLoss
from paddleseg.transforms import RandomPaddingCrop
from paddleseg.transforms.functional import crop

from common.toolkits.patches import apply, is_patched_version

__all__ = ["SUPPORTED"]

SUPPORTED = is_patched_version("PaddleSeg", paddleseg.__version__, "2.8.0")


def _average_loss(
    self: CrossEntropyLoss, logit: Tensor, label: Tensor, semantic_weights: Tensor | None, loss: Tensor
) -> Tensor:
    """Average the losses of the pixels as PaddleSeg does.

    The sum is divided by the sum of the class weights of the pixels that count: those not ignored or, without
    ``avg_non_ignore``, all. With ``top_k_percent_pixels`` only the hardest pixels take part. Without the patch:
    TypeError, because PaddleSeg multiplies float32 by int64. Paddle 3.

    Args:
        logit: ``[B, H, W, classes]``, not used.
        label: ``[B, H, W]``, int64.
        semantic_weights: factor of each pixel's loss, ``[B, H, W]``.
        loss: ``[B, H, W]``, class weights included.
    """
    counted = label != self.ignore_index if self.avg_non_ignore else paddle.ones_like(label, dtype="bool")
    mask = counted.astype("float32")
    loss = loss.reshape(mask.shape) * mask
    if semantic_weights is not None:
        loss = loss * semantic_weights
    weights = paddle.ones_like(mask)
    if self.weight is not None:
        weights = self.weight.gather((label * counted.astype(label.dtype)).flatten()).reshape(mask.shape)
    if self.top_k_percent_pixels == 1.0:
        return loss.mean() / ((mask * weights).mean() + self.EPS)
    hardest, indices = loss.flatten().topk(int(self.top_k_percent_pixels * loss.size))
    return hardest.mean() / (weights.flatten().gather(indices).mean() + self.EPS)


def _crop_randomly(self: RandomPaddingCrop, data: dict[str, Any]) -> dict[str, Any]:
    """Pad to the size of the crop, and crop the image and its labels at the same place.

    While one class has ``category_max_ratio`` or more of the pixels, another place is tried, up to ``loop_times``
    times. Without the patch, with ``category_max_ratio`` below 1: labels in the image's place, or no crop. Every
    version of Paddle.
    """
    if data["img"].shape[:2] == self.crop_size:
        return data
    data = self._padding(data)
    size = data["img"].shape[:2]
    box = self._get_crop_coordinates(size)
    if self.category_max_ratio < 1.0:
        for _ in range(self.loop_times):
            labels, counts = np.unique(crop(data["label"], box), return_counts=True)
            counts = counts[labels != self.ignore_index]
            if len(counts) > 1 and counts.max() / counts.sum() < self.category_max_ratio:
                break
            box = self._get_crop_coordinates(size)
    for key in ("img", *data.get("gt_fields", [])):
        data[key] = crop(data[key], box)
    return data


if SUPPORTED:
    apply(CrossEntropyLoss, "_post_process_loss", _average_loss, ("3.",))
    apply(RandomPaddingCrop, "__call__", _crop_randomly)
