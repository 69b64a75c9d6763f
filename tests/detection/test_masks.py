"""Masks pasted inside their boxes are those of PaddleDetection, in little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import paddle
import pytest

from object_detection import pale_backbone  # noqa: F401 (before ppdet, which it patches)

# isort: split
from ppdet.modeling.post_process import BBoxPostProcess, MaskPostProcess
from pycocotools import mask as rle_masks

from object_detection.masks import RleMasks

ODD_BOXES = [
    (0, 0, 90, 70),  # the whole image
    (-20.3, -10.7, 30.2, 200.9),  # over the edges
    (10.5, 10.5, 11.5, 11.5),  # centers of pixels
    (10.6, 10.6, 11.4, 11.4),  # no center of a pixel
    (20, 20, 20, 20),
    (90, 70, 120, 90),  # outside
    (89.2, 69.2, 90, 70),
    (0, 0, 0, 0),
]


def tensors(boxes, size, side=28, seed=0):
    """Random masks on one image, some of whose values are 0 or 1 as of a model that is certain."""
    rng = np.random.default_rng(seed)
    masks = np.clip(rng.normal(0.5, 0.5, (len(boxes), side, side)), 0, 1).astype(np.float32)
    rows = np.concatenate([np.zeros((len(boxes), 2)), boxes], axis=1).astype(np.float32)
    arrays = masks, rows, np.array([len(boxes)], np.int32), np.array([size] * len(boxes), np.float32)
    return [paddle.to_tensor(array) for array in arrays]


def test_masks_are_those_of_paddledetection():
    rng = np.random.default_rng(1)
    corners = rng.uniform(-5, 95, (40, 2, 2))
    boxes = np.concatenate([np.sort(corners, axis=1).reshape(-1, 4), np.array(ODD_BOXES)])
    arguments = tensors(boxes, (70, 90))
    found = RleMasks(0.7)(*arguments)
    expected = MaskPostProcess(0.7)(*arguments).numpy()
    assert expected.any(axis=(1, 2)).sum() > 30
    for number, rle in enumerate(found):
        np.testing.assert_array_equal(rle_masks.decode(rle), expected[number], f"box {boxes[number]}")


def test_a_box_that_ends_before_it_begins_has_an_empty_mask():
    (rle,) = RleMasks()(*tensors([(30, 40, 20, 20)], (70, 90)))
    assert not rle_masks.decode(rle).any()


@pytest.mark.parametrize("count", [0, 20])
def test_masks_fit_what_paddledetection_makes_of_the_boxes(count):
    """Of no object it makes one that stands for none, whose mask is -1."""
    corners = np.random.default_rng(0).uniform(0, 64, (count, 2, 2))
    masks, rows, number, _ = tensors(np.sort(corners, axis=1).reshape(-1, 4), (64, 64))
    masks = masks if count else paddle.full([1, 1, 1], -1.0)
    boxes = BBoxPostProcess(decode=None, nms=None)
    im_shape, scale = paddle.to_tensor([[64.0, 64.0]]), paddle.to_tensor([[0.64, 0.8]])
    _, rows, number = boxes.get_pred(rows.reshape([count, 6]), number, im_shape, scale)
    arguments = masks, rows, number, boxes.get_origin_shape()
    found = RleMasks()(*arguments)
    expected = MaskPostProcess()(*arguments).numpy()
    assert [rle["size"] for rle in found] == [[100, 80]] * max(count, 1)
    np.testing.assert_array_equal([rle_masks.decode(rle) for rle in found], expected)


def test_masks_of_large_images_take_the_memory_of_one():
    boxes = [(10 * n, 10 * n, 10 * n + 100, 10 * n + 100) for n in range(50)]
    arguments = tensors(boxes, (2000, 3000))
    tracemalloc.start()
    found = RleMasks()(*arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 50
    assert peak < 2.5 * 2000 * 3000
