"""Expected calibration error: does a classifier that is 80 % sure hit in 80 % of the cases?

From Guo et al., On Calibration of Modern Neural Networks, 2017, https://arxiv.org/abs/1706.04599, section 2.
"""

from __future__ import annotations

import numpy as np

__all__ = ["BINS", "bin_confidences", "calibration_error"]

BINS = 15  # of equal width, as in the paper's experiments


def bin_confidences(confidences: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Sum predictions by their confidence; bin m of M is from m / M (exclusive) to (m + 1) / M (inclusive).

    Args:
        confidences: the largest probability of each prediction, float [n].
        correct: whether it is the true class, bool [n].

    Returns:
        For each bin the number of predictions, the sum of their confidences and the number of correct ones, float64
        [3, bins]. Sums of several parts of the data add up.
    """
    confidences = confidences.astype(np.float64)
    bins = np.clip(np.ceil(np.nan_to_num(confidences) * BINS).astype(np.int64) - 1, 0, BINS - 1)
    weights = (None, confidences, correct)
    return np.stack([np.bincount(bins, weight, minlength=BINS) for weight in weights]).astype(np.float64)


def calibration_error(sums: np.ndarray) -> float:
    """The mean distance of accuracy and confidence over the bins, weighted by their predictions, in percent.

    Args:
        sums: from :func:`bin_confidences`, of at least one prediction.
    """
    count, confidence, correct = sums
    return float(100.0 * np.abs(correct - confidence).sum() / count.sum())
