"""Patches of PaddleSeg 2.8.0 that only its own training and evaluation loops need, which this project does not use.

Importing this module applies them; :mod:`semantic_segmentation.pale_backbone` does.
"""

from __future__ import annotations

import importlib
from typing import Any

import paddle
from paddle import Tensor
from paddleseg.utils import metrics

from common.toolkits.patches import apply, minimize, namespace
from semantic_segmentation.paddleseg_patches import SUPPORTED

# `paddleseg.core.train` is the function: the package hides the module of that name behind it.
_train = importlib.import_module("paddleseg.core.train")
_original_loss_computation = _train.loss_computation


def _loss_computation(*args: Any, **kwargs: Any) -> list[Tensor]:
    """Compute the losses, each of shape [1].

    Without it: IndexError, because ``paddleseg.core.train`` logs the element [0] of each. Paddle 2.6 and 3.
    """
    return [loss.reshape([1]) for loss in _original_loss_computation(*args, **kwargs)]


if SUPPORTED:
    apply(paddle.amp.GradScaler, "minimize", minimize)
    apply(_train, "loss_computation", _loss_computation)
    # Without it: ValueError in metrics.calculate_area, which concatenates tensors of shape []. Paddle 2.6 and 3.
    apply(metrics, "paddle", namespace(paddle, concat=paddle.stack))
