"""Confusion matrices, by hand."""

import numpy as np
import pytest

from common.data.confusion import class_figures, count_pairs, list_confusions

# Class 2 is in the labels only, class 3 in the predictions only, class 4 in neither.
BY_HAND = np.array([[6, 1, 0, 1, 0], [2, 8, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])


def test_pairs_are_counted_with_the_true_classes_in_rows():
    matrix = count_pairs(np.array([[0, 0], [1, 2]]), np.array([[0, 1], [1, 1]]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]


def test_figures_of_each_class():
    figures = class_figures(BY_HAND)
    nan = np.nan
    expected = {
        "recall": [6 / 8, 8 / 10, 0, nan, nan],
        "precision": [6 / 9, 8 / 10, nan, 0, nan],
        "F1": [12 / 17, 16 / 20, 0, 0, nan],
        "IoU": [6 / 11, 8 / 12, 0, 0, nan],
        "share": [8 / 20, 10 / 20, 2 / 20, 0, 0],
    }
    assert figures.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(figures[name], 100 * np.array(values), err_msg=name)


@pytest.mark.parametrize("correct", [False, True])
def test_the_most_frequent_confusions_come_first_and_correct_predictions_last(correct):
    pairs = list_confusions(BY_HAND, correct)
    rows = list(zip(pairs.label, pairs.prediction, pairs.count, pairs.share, strict=True))
    confusions = [(1, 0, 2, 20), (0, 1, 1, 12.5), (0, 3, 1, 12.5), (2, 0, 1, 50), (2, 1, 1, 50)]
    assert rows == confusions + [(1, 1, 8, 80), (0, 0, 6, 75)] * correct
