"""Weights of the classes in the loss, for data whose classes have very different numbers of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F

__all__ = ["class_weights", "describe_weights", "weighted_cross_entropy"]

_BETA = 0.999  # Cui et al. compare 0.9 to 0.9999; the weights differ by at most a factor of 1 / (1 - beta) = 1000


def class_weights(labels: np.ndarray, num_classes: int, kind: str) -> np.ndarray:
    """Compute the weights of the classes from the numbers of their images.

    The mean weight of an image is 1, so that the loss keeps its scale. (Cui et al. make the mean over the classes 1,
    which differs by a factor.) A class without images has weight 0: no image can use it.

    Args:
        labels: of the training images, int64 ``[n]``.
        num_classes: number of classes.
        kind: ``balanced``, in proportion to 1 / images; or ``effective``, to 1 / effective number of samples,
            (1 - beta) / (1 - beta^images) with beta 0.999 (Cui et al., arXiv 1901.05555, equation 2).

    Returns:
        float32 ``[num_classes]``.
    """
    counts = np.bincount(labels, minlength=num_classes)
    effective = counts if kind == "balanced" else (1 - _BETA**counts) / (1 - _BETA)
    weights = np.divide(1.0, effective, out=np.zeros(num_classes), where=counts > 0)
    return (weights * len(labels) / (weights * counts).sum()).astype(np.float32)


def describe_weights(weights: np.ndarray, class_names: Sequence[str], kind: str) -> str:
    """One line: the smallest and the largest weight of the classes that have images, and what has no weight."""
    present = np.flatnonzero(weights)
    low, high = present[weights[present].argmin()], present[weights[present].argmax()]
    beta = f", beta {_BETA}" if kind == "effective" else ""
    return (
        f"class weights ({kind}{beta}): {weights[low]:.3g} ({class_names[low]}) to {weights[high]:.3g} "
        f"({class_names[high]}), 1 on average over the images; validation has no weights"
    )


def weighted_cross_entropy(logits: paddle.Tensor, targets: paddle.Tensor) -> paddle.Tensor:
    """Mean over the batch of the cross-entropy with targets that include the weights of their images.

    The sum is divided by the number of images, not by the sum of their weights, so that accumulated batches and ranks
    add up to the loss of the whole batch. ``F.cross_entropy`` has wrong gradients for targets that do not sum to 1.

    Args:
        logits: float32 ``[batch, K]``.
        targets: float32 ``[batch, K]``, not negative.
    """
    return -(targets * F.log_softmax(logits, -1)).sum(-1).mean()
