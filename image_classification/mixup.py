"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of a batch, with label smoothing."""

import math

import numpy as np
import paddle
import paddle.nn.functional as F


def smooth(targets: paddle.Tensor, label_smoothing: float) -> paddle.Tensor:
    """Take the share s = ``label_smoothing`` from the target probabilities ``[..., K]`` and give each class s / K."""
    return targets * (1 - label_smoothing) + label_smoothing / targets.shape[-1]


def smooth_one_hot(labels: paddle.Tensor, num_classes: int, label_smoothing: float = 0.0) -> paddle.Tensor:
    """Turn labels into target probabilities.

    Args:
        labels: int64 [batch].
        num_classes: K.
        label_smoothing: s; every class gets s / K and the labelled one 1 - s on top.

    Returns:
        float32 [batch, num_classes].
    """
    return smooth(F.one_hot(labels, num_classes), label_smoothing)


def cutmix_box(
    height: int, width: int, lam: float, rng: np.random.Generator
) -> tuple[tuple[int, int, int, int], float]:
    """Draw a box of about the share ``1 - lam`` of an image, centred anywhere and clipped to the image.

    Returns:
        (top, bottom, left, right) in pixels, and the exact share of the image that the box leaves.
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
    mixup_alpha: float,
    cutmix_alpha: float,
    prob: float = 1.0,
    switch_prob: float = 0.5,
    label_smoothing: float = 0.0,
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Mix every image of a batch with its neighbour, by Mixup or by CutMix, with one lambda for the batch.

    Neither ``images`` nor ``labels`` is modified. When nothing is mixed, ``images`` itself is returned.

    Args:
        images: float32 [batch, 3, height, width].
        labels: int64 [batch].
        num_classes: K.
        rng: generator of all draws.
        mixup_alpha: lambda ~ Beta(alpha, alpha) for Mixup; 0 for no Mixup.
        cutmix_alpha: the same for CutMix.
        prob: probability that the batch is mixed.
        switch_prob: probability of CutMix, when both are enabled.
        label_smoothing: see ``smooth_one_hot``.

    Returns:
        images, float32 [batch, 3, height, width]; targets, float32 [batch, num_classes].

    Raises:
        ValueError: an argument out of its range, or shapes that do not match.
    """
    if images.ndim != 4 or list(labels.shape) != [images.shape[0]]:
        raise ValueError(f"images {images.shape} and labels {labels.shape} are not [batch, 3, h, w] and [batch]")
    if mixup_alpha < 0 or cutmix_alpha < 0:
        raise ValueError(f"mixup_alpha {mixup_alpha!r} and cutmix_alpha {cutmix_alpha!r} must not be negative")
    for name, value in (("prob", prob), ("switch_prob", switch_prob), ("label_smoothing", label_smoothing)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} {value!r} is not between 0 and 1")

    targets = smooth_one_hot(labels, num_classes, label_smoothing)
    if (mixup_alpha == 0 and cutmix_alpha == 0) or rng.random() >= prob:
        return images, targets

    use_cutmix = mixup_alpha == 0 or (cutmix_alpha > 0 and rng.random() < switch_prob)
    alpha = cutmix_alpha if use_cutmix else mixup_alpha
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
