"""The figures of a classifier's evaluation."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from image_classification.evaluation import evaluate


class Given(paddle.nn.Layer):
    """A model whose images are its logits."""

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return images


def batch(logits: list[list[float]], labels: list[int]) -> dict:
    return {"images": paddle.to_tensor(logits), "labels": paddle.to_tensor(labels), "errors": ""}


def test_top1_and_top5_of_six_classes():
    ranking = [[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 4
    figures = evaluate(Given(), [batch(ranking[:2], [0, 4]), batch(ranking[:2], [5, 5])])
    assert list(figures) == ["top1", "top5", "loss", "images"]
    assert (figures["top1"], figures["top5"], figures["images"]) == (25, 50, 4)


@pytest.mark.parametrize("classes", [2, 5])
def test_there_is_no_top5_where_it_can_only_be_100(classes):
    figures = evaluate(Given(), [batch(np.eye(classes, dtype="float32").tolist(), [0] * classes)])
    assert list(figures) == ["top1", "loss", "images"]
    assert figures["top1"] == pytest.approx(100 / classes)
