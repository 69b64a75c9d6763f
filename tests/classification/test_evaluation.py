"""The figures of a classifier's evaluation, and its tables."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from image_classification.evaluation import evaluate, per_class_tables
from image_classification.loaders import IGNORED_LABEL


class Given(paddle.nn.Layer):
    """A model whose images are its logits."""

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return images


def batch(logits: list[list[float]], labels: list[int]) -> dict:
    return {"images": paddle.to_tensor(logits), "labels": paddle.to_tensor(labels), "errors": ""}


def test_top1_and_top5_of_six_classes():
    ranking = [[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 4
    figures, matrix = evaluate(Given(), [batch(ranking[:2], [0, 4]), batch(ranking[:2], [5, 5])])
    assert list(figures) == ["top1", "top5", "loss", "ece", "images"]
    assert matrix is None
    assert (figures["top1"], figures["top5"], figures["images"]) == (25, 50, 4)


def test_only_the_given_classes_compete():
    logits = [[9.0, 3.0, 8.0, 2.0, 7.0, 1.0], [9.0, 1.0, 8.0, 2.0, 7.0, 3.0]]
    seen = []
    figures, _ = evaluate(
        Given(), [batch(logits, [1, 3])], on_batch=lambda *given: seen.append(given[2]), classes=np.array([1, 3, 5])
    )
    assert list(figures) == ["top1", "loss", "ece", "images"]  # three classes have no top-5
    assert figures["top1"] == 50
    first = np.log(np.exp([3, 2, 1]).sum()) - 3, np.log(np.exp([1, 2, 3]).sum()) - 2
    assert figures["loss"] == pytest.approx(np.mean(first), rel=1e-6)
    assert np.isneginf(seen[0].numpy()[:, ::2]).all()
    figures, _ = evaluate(Given(), [batch(logits, [1, 3])], classes=np.arange(6))
    assert (figures["top1"], figures["top5"]) == (0, 100)


def test_any_valid_label_is_right_and_an_image_without_one_does_not_count():
    ranking = [[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 5
    given = batch(ranking, [1, 1, 0, 5, -1])
    given["valid_labels"] = paddle.to_tensor([[3, 0], [4, 1], [-1, -1], [5, -1], [-1, -1]])
    figures, _ = evaluate(Given(), [given])
    assert list(figures) == ["top1", "top5", "ece", "images"]
    assert figures["images"] == 3
    assert figures["top1"] == pytest.approx(100 / 3)
    assert figures["top5"] == pytest.approx(200 / 3)


@pytest.mark.parametrize("classes", [2, 5])
def test_there_is_no_top5_where_it_can_only_be_100(classes):
    figures, _ = evaluate(Given(), [batch(np.eye(classes, dtype="float32").tolist(), [0] * classes)])
    assert list(figures) == ["top1", "loss", "ece", "images"]
    assert figures["top1"] == pytest.approx(100 / classes)


def test_confusions_are_counted_over_all_batches_and_unreadable_images_left_out():
    red, green, blue = np.eye(3, dtype="float32").tolist()
    batches = [batch([red, green, red], [0, 0, 1]), batch([blue, green], [IGNORED_LABEL, 0])]
    figures, matrix = evaluate(Given(), batches, confusion=True)
    assert matrix.tolist() == [[1, 2, 0], [1, 0, 0], [0, 0, 0]]
    assert figures["images"] == 4
    confidence = 100 * np.e / (np.e + 2)  # of every image, of which one of four is right
    assert figures["ece"] == pytest.approx(confidence - 25, abs=1e-4)
    assert per_class_tables(["red", "green", "blue"], matrix, "val").splitlines() == [
        "val, each class, in percent",
        "class   images   recall  precision       F1",
        "red          3    33.33      50.00    40.00",
        "green        1     0.00       0.00     0.00",
        "blue         0        -          -        -",
        "val, largest confusions, share in percent of the true class",
        "true -> predicted   images    share",
        "red -> green             2    66.67",
        "green -> red             1   100.00",
    ]
