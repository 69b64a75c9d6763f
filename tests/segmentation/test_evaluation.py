"""Metrics from confusion matrices, against PaddleSeg's and by hand, and the evaluation."""

from __future__ import annotations

import contextlib

import numpy as np
import paddle
import pytest
from paddle import nn
from paddleseg.utils import metrics

from common.data.confusion import class_figures
from common.errors import UserError
from common.training.loader import Loader
from common.training.sampler import ShardedEvalSampler
from semantic_segmentation.datasets import collate_eval
from semantic_segmentation.evaluation import (
    confusion_matrix,
    evaluate,
    mean_figures,
    per_class_table,
)
from semantic_segmentation.inference import InferenceSettings, predict_labels

# Labels down, predictions across; class 2 is in the labels only, class 3 in the predictions only, class 4 in neither.
BY_HAND = np.array([[6, 1, 0, 1, 0], [2, 8, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])


def test_confusion_matrix_counts_each_pair_and_leaves_out_the_ignored_value():
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 4, (2, 30, 40))
    label[rng.random(label.shape) < 0.2] = 255
    matrix = confusion_matrix(label.astype(np.uint8), prediction.astype(np.uint16), 4, ignore_index=255)
    assert matrix.dtype == np.int64
    assert matrix.sum() == (label != 255).sum() < label.size
    for i, j in np.ndindex(4, 4):
        assert matrix[i, j] == ((label == i) & (prediction == j)).sum()


def test_a_label_that_does_not_fit_is_named():
    label = np.zeros((4, 4), np.int64)
    label[2, 2], label[0, 0] = 7, 255
    with pytest.raises(UserError, match="a pixel of class 7, but there are 3 classes, and 255"):
        confusion_matrix(label, np.zeros((4, 4), np.uint8), 3, ignore_index=255)
    with pytest.raises(UserError, match=r"has size \(4, 5\), but its image has size \(5, 4\)"):
        confusion_matrix(np.zeros((4, 5), int), np.zeros((5, 4), int), 3, ignore_index=255)


def test_figures_by_hand_without_absent_classes():
    figures = mean_figures(BY_HAND)
    assert figures["aAcc"] == pytest.approx(100 * 14 / 20)
    assert figures["mIoU"] == pytest.approx(100 * (6 / 11 + 8 / 12 + 0 + 0) / 4)
    assert figures["mAcc"] == pytest.approx(100 * (6 / 8 + 8 / 10 + 0) / 3)  # class 3 is not in the labels
    assert figures["mDice"] == pytest.approx(100 * (12 / 17 + 16 / 20 + 0 + 0) / 4)
    with pytest.raises(UserError, match="no pixel of the validation labels has a class"):
        mean_figures(np.zeros((3, 3), np.int64))


def test_with_absent_classes_as_zero_the_figures_are_paddlesegs():
    rng = np.random.default_rng(0)
    classes = 9
    label, prediction = rng.integers(0, classes - 1, (2, 50, 60))  # the last class is absent
    label[rng.random(label.shape) < 0.1] = 255
    prediction[rng.random(label.shape) < 0.5] = 2
    counted = label != 255
    areas = [
        paddle.to_tensor(np.array([area(i).sum() for i in range(classes)]))
        for area in (
            lambda i: (label == i) & (prediction == i),
            lambda i: (prediction == i) & counted,
            lambda i: label == i,
        )
    ]
    class_iou, mean_iou = metrics.mean_iou(*areas)
    accuracy, _, recall = metrics.class_measurement(*areas)
    matrix = confusion_matrix(label, prediction, classes, ignore_index=255)
    figures = mean_figures(matrix, absent_classes="zero")
    np.testing.assert_allclose(np.nan_to_num(class_figures(matrix)["IoU"]), 100 * class_iou, rtol=1e-12)
    assert figures["mIoU"] == pytest.approx(100 * mean_iou, rel=1e-12)
    assert figures["mDice"] == pytest.approx(100 * metrics.dice(*areas)[1], rel=1e-12)
    assert figures["aAcc"] == pytest.approx(100 * accuracy, rel=1e-12)
    assert figures["mAcc"] == pytest.approx(100 * recall.mean(), rel=1e-12)
    assert mean_figures(matrix)["mIoU"] == pytest.approx(100 * mean_iou * classes / (classes - 1), rel=1e-12)


def test_table_is_aligned_also_with_chinese_names():
    text = per_class_table(["wall", "traffic light", "天空", "né", "x"], BY_HAND, "val")
    assert text.splitlines() == [
        "val, each class, in percent",
        "class              IoU      Acc  precision     Dice   pixels",
        "wall             54.55    75.00      66.67    70.59    40.00",
        "traffic light    66.67    80.00      80.00    80.00    50.00",
        "天空              0.00     0.00          -     0.00    10.00",
        "né                0.00        -       0.00     0.00     0.00",
        "x                    -        -          -        -     0.00",
    ]


# ---- evaluation

CLASSES = 4


class FakeModel(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, CLASSES, 3, padding=1)
        weight = np.random.default_rng(0).standard_normal(self.conv.weight.shape)
        self.conv.weight.set_value(weight.astype("float32"))

    def forward(self, images):
        assert not self.training
        return [self.conv(images)]


class FakeDataset(paddle.io.Dataset):
    """Images of different sizes, some of which were resized for the model."""

    def __init__(self, broken=()):
        self.broken = broken

    def __len__(self):
        return 7

    def __getitem__(self, key):
        if key.index in self.broken:
            raise UserError(f"image image{key.index}.png cannot be read")
        rng = np.random.default_rng(key.index)
        height, width = 33 + 2 * key.index, 60 - 3 * key.index
        label = rng.integers(0, CLASSES, (height, width))
        label[:5] = 255
        trans_info = [("resize", (height, width))] if key.index % 2 else []
        size = (40, 50) if trans_info else (height, width)
        return {
            "img": rng.standard_normal((3, *size)).astype("float32"),
            "label": label,
            "trans_info": trans_info,
            "path": f"image{key.index}.png",
        }


def build(rank=0, world_size=1, broken=(), workers=0):
    dataset = FakeDataset(broken)
    return Loader(dataset, ShardedEvalSampler(len(dataset), 1, rank, world_size), workers, collate_eval)


def run(loader, settings=None, model=None, **others):
    return evaluate(model or FakeModel(), loader, CLASSES, 255, settings or InferenceSettings(), **others)


def test_evaluation_counts_every_labeled_pixel_of_every_image():
    seen = []
    figures, matrix = run(build(), on_image=lambda *arguments: seen.append(arguments))
    expected = np.zeros((CLASSES, CLASSES), np.int64)
    model = FakeModel()
    model.eval()
    for batch in build():
        labels = predict_labels(model, batch["img"], InferenceSettings(), batch["trans_info"])
        label = batch["label"].numpy()[0]
        np.add.at(expected, (label[5:], labels[5:]), 1)
    np.testing.assert_array_equal(matrix, expected)
    assert matrix.dtype == np.int64
    assert figures == mean_figures(matrix) | {"images": 7}
    assert [index for index, *_ in seen] == list(range(7))
    for index, batch, label, prediction in seen:
        assert label.shape == prediction.shape == (33 + 2 * index, 60 - 3 * index)
        assert batch["img"].shape == [1, 3, *((40, 50) if index % 2 else label.shape)]


def test_the_result_does_not_depend_on_how_the_images_are_shared():
    settings = InferenceSettings(is_slide=True, crop_size=(32, 32), stride=(20, 21))
    _, whole = run(build(workers=1), settings)
    shares = [run(build(rank, 3), settings)[1] for rank in range(3)]
    np.testing.assert_array_equal(sum(shares), whole)


def test_absent_classes_reach_the_figures():
    batch = {**next(iter(build())), "label": paddle.zeros([1, 33, 60], "uint8")}
    figures, matrix = run([batch], absent_classes="zero")
    assert figures["mAcc"] == pytest.approx(run([batch])[0]["mAcc"] / CLASSES)
    assert figures["aAcc"] == pytest.approx(100 * matrix[0, 0] / (33 * 60))


def test_an_unreadable_image_ends_the_evaluation():
    with pytest.raises(UserError, match=r"image image3\.png cannot be read"):
        run(build(broken=(3,)))


def test_a_label_that_does_not_fit_is_named_with_its_image():
    batch = {**next(iter(build())), "label": paddle.full([1, 33, 60], 9, "int64")}
    with pytest.raises(UserError, match=r"^image0\.png: the label has a pixel of class 9"):
        run([batch])


def test_the_model_stays_in_training_mode():
    model = FakeModel()
    model.train()
    run(build(), model=model)
    assert model.training


def test_mixed_precision_reaches_the_model(monkeypatch):
    requested = []

    def auto_cast(enable, dtype):
        requested.append((enable, dtype))
        return contextlib.nullcontext()

    monkeypatch.setattr(paddle.amp, "auto_cast", auto_cast)
    run(build(), amp="bfloat16")
    assert set(requested) == {(True, "bfloat16")}
