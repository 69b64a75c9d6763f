"""Masks pasted inside their boxes are those of PaddleDetection, in little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import paddle
import pytest
from ppdet.modeling.post_process import MaskPostProcess
from pycocotools import mask as rle_masks

from object_detection.masks import RleMasks

ODD_BOXES = [
    (0, 0, 90, 70),  # the whole image
    (-20.3, -10.7, 30.2, 200.9),  # over the edges
    (10.5, 10.5, 11.5, 11.5),  # centres of pixels
    (10.6, 10.6, 11.4, 11.4),  # no centre of a pixel
    (20, 20, 20, 20),
    (90, 70, 120, 90),  # outside
    (89.2, 69.2, 90, 70),
    (0, 0, 0, 0),
]


def tensors(boxes, counts, sizes, side=28, seed=0):
    """Random masks, some of whose values are 0 or 1 as of a model that is certain."""
    rng = np.random.default_rng(seed)
    masks = np.clip(rng.normal(0.5, 0.5, (len(boxes), side, side)), 0, 1).astype(np.float32)
    rows = np.concatenate([np.zeros((len(boxes), 2)), boxes], axis=1).astype(np.float32)
    arrays = masks, rows, np.array(counts, np.int32), np.array(sizes, np.float32)
    return [paddle.to_tensor(array) for array in arrays]


@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize("side", [7, 14, 28])
def test_masks_are_those_of_paddledetection(side, threshold):
    rng = np.random.default_rng(1)
    corners = rng.uniform(-5, 95, (40, 2, 2))
    boxes = np.concatenate([np.sort(corners, axis=1).reshape(-1, 4), np.array(ODD_BOXES)])
    arguments = tensors(boxes, [len(boxes)], [(70, 90)], side)
    found = RleMasks(threshold)(*arguments)
    expected = MaskPostProcess(threshold)(*arguments).numpy()
    assert expected.any(axis=(1, 2)).sum() > 30
    for number, rle in enumerate(found):
        np.testing.assert_array_equal(rle_masks.decode(rle), expected[number], f"box {boxes[number]}")


def test_a_box_that_ends_before_it_begins_has_an_empty_mask():
    (rle,) = RleMasks()(*tensors([(30, 40, 20, 20)], [1], [(70, 90)]))
    assert not rle_masks.decode(rle).any()


def test_each_image_of_a_batch_has_its_size():
    boxes = np.array([(2, 3, 40, 30), (5, 5, 60, 45), (1, 1, 20, 20)])
    found = RleMasks()(*tensors(boxes, [2, 0, 1], [(50, 70), (5, 5), (30, 25)]))
    assert [rle["size"] for rle in found] == [[50, 70], [50, 70], [30, 25]]


def test_what_stands_for_no_object_is_an_empty_mask():
    arguments = [paddle.full([1, 1, 1], -1.0), *tensors([(0, 0, 1, 1)], [1], [(40, 30)])[1:]]
    (rle,) = RleMasks()(*arguments)
    assert not rle_masks.decode(rle).any()


def test_masks_of_large_images_take_the_memory_of_one():
    boxes = [(10 * n, 10 * n, 10 * n + 100, 10 * n + 100) for n in range(50)]
    arguments = tensors(boxes, [50], [(2000, 3000)])
    tracemalloc.start()
    found = RleMasks()(*arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 50
    assert peak < 2.5 * 2000 * 3000
