"""Patches of PaddleSeg 2.8.0 and of a clone of its repository, which importing this module applies."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
import paddleseg
from paddle import Tensor
from paddleseg.models.losses import CrossEntropyLoss, cross_entropy_loss
from paddleseg.transforms import RandomPaddingCrop, functional, transforms
from paddleseg.utils import metrics

from .patches import apply, is_patched_version, minimize, namespace

__all__: list[str] = []

# `paddleseg.core.train` is the function: the package hides the module of that name behind it.
_train = importlib.import_module("paddleseg.core.train")
_original_average_loss = CrossEntropyLoss._post_process_loss
_original_crop = RandomPaddingCrop.__call__
_original_loss_computation = _train.loss_computation


def _average_loss(
    self: CrossEntropyLoss, logit: Tensor, label: Tensor, semantic_weights: Tensor | None, loss: Tensor
) -> Tensor:
    """Average the losses of the pixels, with labels of float32.

    Without it: TypeError, because PaddleSeg multiplies float32 by int64. Paddle 3.
    """
    return _original_average_loss(self, logit, label.astype("float32"), semantic_weights, loss)


def _one_hot(label: Tensor, num_classes: int) -> Tensor:
    return F.one_hot(label.astype("int64"), num_classes)


def _crop_randomly(self: RandomPaddingCrop, data: dict[str, Any]) -> dict[str, Any]:
    """Pad to the size of the crop, and crop the image and its labels at the same place.

    Without it, with ``category_max_ratio`` below 1: labels in the image's place, or no crop. Paddle 2.6 and 3.
    """
    data = self._padding(data)
    fields = data.get("gt_fields", [])
    # PaddleSeg spoils data["img"], and crops what gt_fields names.
    data = _original_crop(self, {**data, "image": data["img"], "gt_fields": [*fields, "image"]})
    data["img"], data["gt_fields"] = data.pop("image"), fields
    return data


def _in_fours(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Apply a function of OpenCV to at most four channels at once.

    Without it: cv2.error for five channels, in ``Padding``, ``RandomPaddingCrop``, ``RandomRotation`` and, with
    ``interp: AREA``, ``Resize``. Paddle 2.6 and 3.
    """

    @functools.wraps(function)
    def call(image: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        if image.ndim == 2 or image.shape[2] <= 4:
            return function(image, *args, **kwargs)
        values = {key: value[:4] if key in ("value", "borderValue") else value for key, value in kwargs.items()}
        groups = (np.ascontiguousarray(image[:, :, first : first + 4]) for first in range(0, image.shape[2], 4))
        return np.dstack([function(group, *args, **values) for group in groups])

    return call


def _loss_computation(*args: Any, **kwargs: Any) -> list[Tensor]:
    """Compute the losses, each of shape [1].

    Without it: IndexError, because ``paddleseg.core.train`` logs the element [0] of each. Paddle 2.6 and 3.
    """
    return [loss.reshape([1]) for loss in _original_loss_computation(*args, **kwargs)]


_RELEASE, _CLONE = "2.8.0", "0.0.0.dev0"

if is_patched_version("PaddleSeg", paddleseg.__version__, (_RELEASE, _CLONE)):
    apply(paddle.amp.GradScaler, "minimize", minimize)
if paddleseg.__version__ == _RELEASE:
    apply(CrossEntropyLoss, "_post_process_loss", _average_loss, ("3.",))
    apply(cross_entropy_loss, "F", namespace(F, one_hot=_one_hot), ("3.",))
    apply(RandomPaddingCrop, "__call__", _crop_randomly)
    borders = {name: _in_fours(getattr(cv2, name)) for name in ("copyMakeBorder", "warpAffine")}
    apply(transforms, "cv2", namespace(cv2, **borders))
    apply(functional, "cv2", namespace(cv2, resize=_in_fours(cv2.resize)))
    # The others are for PaddleSeg's own training and evaluation.
    apply(_train, "loss_computation", _loss_computation)
    # Without it: ValueError in metrics.calculate_area, which concatenates tensors of shape []. Paddle 2.6 and 3.
    apply(metrics, "paddle", namespace(paddle, concat=paddle.stack))
