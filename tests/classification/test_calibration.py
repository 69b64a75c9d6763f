"""The expected calibration error, by hand."""

import numpy as np
import pytest

from image_classification.calibration import BINS, bin_confidences, calibration_error

# Two predictions in the bin (0.6, 0.6667], one in the last.
CONFIDENCES, CORRECT = np.array([0.61, 0.65, 1.0]), np.array([True, False, True])


def test_the_error_is_the_weighted_distance_of_accuracy_and_confidence():
    sums = bin_confidences(CONFIDENCES, CORRECT)
    assert sums.shape == (3, BINS)
    np.testing.assert_allclose(sums[:, 9], [2, 1.26, 1])
    assert sums[:, 14].tolist() == [1, 1, 1]
    assert calibration_error(sums) == pytest.approx(100 * (2 / 3 * abs(1 / 2 - 0.63) + 1 / 3 * 0))


def test_parts_add_up_and_a_bound_belongs_to_the_lower_bin():
    parts = [bin_confidences(CONFIDENCES[part], CORRECT[part]) for part in (slice(2), slice(2, 3), slice(0))]
    np.testing.assert_allclose(sum(parts), bin_confidences(CONFIDENCES, CORRECT))
    assert bin_confidences(np.array([0.2, 0.0]), np.array([True, True]))[0].nonzero()[0].tolist() == [0, 2]
