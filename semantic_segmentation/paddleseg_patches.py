"""Patches of PaddleSeg 2.8.0 that this project's launcher needs: a loss and a transform.

Importing this module applies them. :mod:`semantic_segmentation.paddleseg_trainer_patches` has those that only
PaddleSeg's own training and evaluation loops need.
"""

from __future__ import annotations

from typing import Any

import paddle.nn.functional as F
import paddleseg
from paddle import Tensor
from paddleseg.models.losses import CrossEntropyLoss, cross_entropy_loss
from paddleseg.transforms import RandomPaddingCrop

from common.toolkits.patches import apply, is_patched_version, namespace

__all__ = ["SUPPORTED"]

SUPPORTED = is_patched_version("PaddleSeg", paddleseg.__version__, "2.8.0")

_original_average_loss = CrossEntropyLoss._post_process_loss
_original_crop = RandomPaddingCrop.__call__


def _average_loss(
    self: CrossEntropyLoss, logit: Tensor, label: Tensor, semantic_weights: Tensor | None, loss: Tensor
) -> Tensor:
    """Average the losses of the pixels, with labels of float32.

    Without the patch: TypeError, because PaddleSeg multiplies float32 by int64. Paddle 3.
    """
    return _original_average_loss(self, logit, label.astype("float32"), semantic_weights, loss)


def _one_hot(label: Tensor, num_classes: int) -> Tensor:
    return F.one_hot(label.astype("int64"), num_classes)


def _crop_randomly(self: RandomPaddingCrop, data: dict[str, Any]) -> dict[str, Any]:
    """Pad to the size of the crop, and crop the image and its labels at the same place.

    Without the patch, with ``category_max_ratio`` below 1: labels in the image's place, or no crop. Every version of
    Paddle.
    """
    data = self._padding(data)
    fields = data.get("gt_fields", [])
    # PaddleSeg spoils data["img"], and crops what gt_fields names.
    data = _original_crop(self, {**data, "image": data["img"], "gt_fields": [*fields, "image"]})
    data["img"], data["gt_fields"] = data.pop("image"), fields
    return data


if SUPPORTED:
    apply(CrossEntropyLoss, "_post_process_loss", _average_loss, ("3.",))
    apply(cross_entropy_loss, "F", namespace(F, one_hot=_one_hot), ("3.",))
    apply(RandomPaddingCrop, "__call__", _crop_randomly)
