"""Confusion matrices: int64 [classes, classes], rows are the true classes, columns the predicted ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Confusions", "class_figures", "count_pairs", "list_confusions"]


def count_pairs(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count how often each true class is predicted as each class.

    Args:
        label, prediction: int64 of one shape, 0 to ``num_classes`` - 1.

    Returns:
        The confusion matrix. Matrices of several parts of the data add up.
    """
    pairs = np.bincount((label * num_classes + prediction).ravel(), minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def class_figures(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Compute metrics of each class in percent: float64 [classes].

    ``recall`` is the share of a true class that is predicted as such, ``precision`` the share of a predicted class that
    is right, ``F1`` (also called Dice) their harmonic mean, ``IoU`` the intersection of both over their union, and
    ``share`` the part of the class in all labels. NaN is 0/0: ``recall`` of a class that is not in the labels,
    ``precision`` of one that is never predicted, ``F1`` and ``IoU`` of one that is neither.

    Args:
        matrix: from :func:`count_pairs`.
    """
    correct, labeled, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return {
            "recall": 100.0 * correct / labeled,
            "precision": 100.0 * correct / predicted,
            "F1": 200.0 * correct / (labeled + predicted),
            "IoU": 100.0 * correct / (labeled + predicted - correct),
            "share": 100.0 * labeled / labeled.sum(),
        }


@dataclass(frozen=True)
class Confusions:
    """Pairs of classes in the order of a list.

    Attributes:
        label, prediction: the classes, int64 [n].
        count: how often ``label`` is predicted as ``prediction``, int64 [n].
        share: of all of the true class in percent, float64 [n].
    """

    label: np.ndarray
    prediction: np.ndarray
    count: np.ndarray
    share: np.ndarray


def list_confusions(matrix: np.ndarray, correct: bool) -> Confusions:
    """List the pairs of classes that occur: the most frequent confusions first.

    Args:
        matrix: from :func:`count_pairs`.
        correct: append the correct predictions, so that the list has the whole matrix.
    """
    label, prediction = np.nonzero(matrix)
    count = matrix[label, prediction]
    order = np.lexsort((prediction, label, -count, label == prediction))
    if not correct:
        order = order[: np.count_nonzero(label != prediction)]
    label, prediction, count = label[order], prediction[order], count[order]
    return Confusions(label, prediction, count, 100.0 * count / matrix.sum(axis=1)[label])
