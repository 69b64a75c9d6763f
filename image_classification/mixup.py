"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of a batch, with label smoothing."""

from __future__ import annotations

import math

import numpy as np
import paddle
import paddle.nn.functional as F
from yacs.config import CfgNode

__all__ = ["cutmix_box", "mixup_or_cutmix", "smooth", "smooth_one_hot"]


def smooth(targets: paddle.Tensor, label_smoothing: float) -> paddle.Tensor:
    """Replace the share s = ``label_smoothing`` of the target probabilities ``[..., K]`` by s / K for each class."""
    return targets * (1 - label_smoothing) + label_smoothing / targets.shape[-1]


def smooth_one_hot(labels: paddle.Tensor, num_classes: int, label_smoothing: float = 0.0) -> paddle.Tensor:
    """Turn labels, int64 [batch], into smoothed target probabilities, float32 [batch, num_classes]."""
    return smooth(F.one_hot(labels, num_classes), label_smoothing)


def cutmix_box(
    height: int, width: int, lam: float, rng: np.random.Generator
) -> tuple[tuple[int, int, int, int], float]:
    """Draw a box of about the share ``1 - lam`` of an image, with a uniform center, clipped to the image.

    Returns:
        (top, bottom, left, right) in pixels, and the exact share of the image outside of the box.
    """
    cut = math.sqrt(1 - lam)
    half_h, half_w = int(height * cut) / 2, int(width * cut) / 2
    y, x = rng.integers(height), rng.integers(width)
    top, bottom = max(0, math.ceil(y - half_h)), min(height, math.ceil(y + half_h))
    left, right = max(0, math.ceil(x - half_w)), min(width, math.ceil(x + half_w))
    return (top, bottom, left, right), 1 - (bottom - top) * (right - left) / (height * width)


def mixup_or_cutmix(
    images: paddle.Tensor,
    labels: paddle.Tensor,
    num_classes: int,
    rng: np.random.Generator,
    aug: CfgNode,
    class_weights: paddle.Tensor | None = None,
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Mix every image of a batch with the one before it, by Mixup or by CutMix, with one lambda for the batch.

    The arguments are not modified. If nothing is mixed, ``images`` itself is returned.

    Args:
        images: float32 [batch, 3, height, width].
        labels: int64 [batch].
        num_classes: K.
        rng: generator of all random numbers.
        aug: ``MIXUP`` and ``CUTMIX`` (lambda ~ Beta(alpha, alpha); 0 disables the method), ``MIX_PROB`` (probability
            that the batch is mixed), ``MIX_SWITCH_PROB`` (of CutMix if both are enabled), ``LABEL_SMOOTHING``.
        class_weights: float32 [num_classes]; the smoothed target of an image is multiplied by the weight of its class
            before it is mixed, so that smoothing does not favor classes of a large weight.

    Returns:
        images, float32 [batch, 3, height, width]; targets, float32 [batch, num_classes], whose rows sum to 1 without
        weights.
    """
    targets = smooth_one_hot(labels, num_classes, aug.LABEL_SMOOTHING)
    if class_weights is not None:
        targets = targets * class_weights[labels].unsqueeze(-1)
    if (aug.MIXUP == 0 and aug.CUTMIX == 0) or rng.random() >= aug.MIX_PROB:
        return images, targets

    use_cutmix = aug.MIXUP == 0 or (aug.CUTMIX > 0 and rng.random() < aug.MIX_SWITCH_PROB)
    alpha = aug.CUTMIX if use_cutmix else aug.MIXUP
    lam = float(rng.beta(alpha, alpha))
    if use_cutmix:
        (top, bottom, left, right), lam = cutmix_box(*images.shape[2:], lam, rng)
        if lam < 1:
            patch = images[:, :, top:bottom, left:right].roll(1, axis=0)
            images = images.clone()
            images[:, :, top:bottom, left:right] = patch
    else:
        images = images * lam + images.roll(1, axis=0) * (1 - lam)
    return images, targets * lam + targets.roll(1, axis=0) * (1 - lam)
