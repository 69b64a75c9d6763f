"""Patches of PaddleSeg 2.8.0 that only its own training and evaluation loops need, which this project does not use.

Importing this module applies them; :mod:`semantic_segmentation.pale_backbone` does.
"""

from __future__ import annotations

import importlib
from typing import Any

import paddle
from paddle import Tensor
from paddleseg.utils import metrics

from common.toolkits.patches import apply, minimize
from semantic_segmentation.paddleseg_patches import SUPPORTED

# `paddleseg.core.train` is the function: the package hides the module of that name behind it.
_train = importlib.import_module("paddleseg.core.train")
_original_loss_computation = _train.loss_computation


def _loss_computation(*args: Any, **kwargs: Any) -> list[Tensor]:
    """Compute the losses, each of shape [1].

    Without it: IndexError, because ``paddleseg.core.train`` logs the element [0] of each. Paddle 2.6 and 3.
    """
    return [loss.reshape([1]) for loss in _original_loss_computation(*args, **kwargs)]


def _calculate_area(
    pred: Tensor, label: Tensor, num_classes: int, ignore_index: int = 255
) -> tuple[Tensor, Tensor, Tensor]:
    """Count the pixels of each class.

    Without it: ValueError in ``paddleseg.core.evaluate``, which concatenates tensors of shape []. Paddle 2.6 and 3.

    Args:
        pred, label: class indices, ``[B, H, W]`` or ``[B, 1, H, W]``.
        ignore_index: label of the pixels whose prediction does not count.

    Returns:
        int64 ``[num_classes]``: pixels of each class in both, in ``pred``, in ``label``.

    Raises:
        ValueError: the numbers of pixels differ.
    """
    pred, label = pred.flatten().astype("int64"), label.flatten().astype("int64")
    if pred.shape != label.shape:
        raise ValueError(f"pred has {pred.shape[0]} pixels, label {label.shape[0]}")

    def count(classes: Tensor, where: Tensor) -> Tensor:
        where = where.logical_and(classes >= 0).logical_and(classes < num_classes)
        others = paddle.full_like(classes, num_classes)
        return paddle.bincount(paddle.where(where, classes, others), minlength=num_classes + 1)[:num_classes]

    counted = label != ignore_index
    return count(label, counted.logical_and(pred == label)), count(pred, counted), count(label, label == label)


if SUPPORTED:
    apply(paddle.amp.GradScaler, "minimize", minimize)
    apply(_train, "loss_computation", _loss_computation)
    apply(metrics, "calculate_area", _calculate_area)
