"""Where the pixels of a transformed image come from, and the map cells of its tokens."""

import cv2
import numpy as np
import paddle
import pytest
from paddle.vision.ops import roi_align
from PIL import Image

from image_classification import transforms
from image_classification.label_map_alignment import Geometry, sampling_weights
from image_classification.transforms import RAND_AUGMENT_OPS, TrainTransform
from tests.helpers.classification_config import make_config

GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def coordinates(width=120, height=80):
    """An image whose red is twice the column and whose green is three times the row; blue is 200 inside of it."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([2 * x, 3 * y, np.full_like(x, 200)], -1).astype(np.uint8))


@pytest.mark.parametrize("options", [{"CROP_SCALE": [0.3, 1], "ROTATION": 25.0}, {"RAND_AUGMENT": "rand-m6-n3-inc1"}])
def test_a_trace_leads_to_where_the_pixels_came_from(options, monkeypatch):
    monkeypatch.setattr(transforms, "RAND_AUGMENT_OPS", {name: RAND_AUGMENT_OPS[name] for name in GEOMETRIC})
    config = make_config(IMAGE_SIZE=64, MEAN=[0.0] * 3, STD=[1.0] * 3, INTERPOLATION="bilinear", **options)
    transform, image, seen = TrainTransform(config), coordinates(), 0
    for seed in range(10):
        geometry = Geometry()
        red, green, blue = 255 * transform(image, np.random.default_rng(seed), geometry)
        columns = rows = (np.arange(64) + 0.5) / 64
        x, y, visible = geometry.trace(columns, rows[:, None])
        assert (visible == (blue > 100)).mean() > 0.97
        # The cubic kernel mixes, and overshoots, where the image ends.
        inside = cv2.erode((blue > 190).astype(np.uint8), np.ones((5, 5)), borderValue=1) == 1
        assert (visible | ~inside).mean() > 0.999
        for differences in (120 * x - 0.5 - red / 2, 80 * y - 0.5 - green / 3):
            middle, most = np.percentile(np.abs(differences[inside]), [50, 99])
            assert middle < 0.4  # the levels are rounded
            assert most < 1
        seen += inside.sum()
    assert seen > 5000


def test_without_a_step_nothing_moves():
    places = np.random.default_rng(0).random((2, 5))
    x, y, visible = Geometry().trace(*places)
    np.testing.assert_array_equal([x, y], places)
    assert visible.all()
    np.testing.assert_array_equal(sampling_weights(Geometry(), (4, 3), (4, 3)), np.eye(12))


def test_a_crop_of_whole_cells_takes_exactly_these():
    geometry = Geometry()
    geometry.crop((30, 20, 90, 60), (120, 80))  # of 8x12 cells of 10x10 pixels
    geometry.flip()
    cells = np.arange(96, dtype=np.float32).reshape(8, 12)
    tokens = sampling_weights(geometry, (8, 12), (4, 6)) @ cells.ravel()
    # Two points each way in a token, a quarter of a cell on either side of its center: the mean is the cell's own.
    np.testing.assert_allclose(tokens.reshape(4, 6), cells[2:6, 3:9][:, ::-1], atol=1e-5)


@pytest.mark.parametrize(("rows", "columns", "points"), [(14, 14, 2), (3, 5, 1), (21, 17, 3)])
def test_tokens_of_a_crop_are_those_of_roi_align(rows, columns, points):
    cells = np.random.default_rng(0).random((1, 3, rows, columns)).astype(np.float32)
    geometry = Geometry()
    geometry.crop((13, 7, 101, 66), (120, 80))
    weights = sampling_weights(geometry, (rows, columns), (7, 7))
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    tokens = cells[0].reshape(3, -1) @ weights.T
    box = np.array([[13 / 120 * columns, 7 / 80 * rows, 101 / 120 * columns, 66 / 80 * rows]], np.float32)
    aligned = roi_align(
        paddle.to_tensor(cells), paddle.to_tensor(box), paddle.to_tensor([1], dtype="int32"), 7, sampling_ratio=points
    )
    np.testing.assert_allclose(tokens.reshape(3, 7, 7), aligned[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("cut_off", [False, True])
def test_what_does_not_show_the_image_has_no_cells(cut_off):
    geometry = Geometry()
    if cut_off:
        geometry.crop((0, 0, 64, 32), (640, 320))  # what lies beyond it is in the image, but not to be seen
    geometry.warp(((1, 0, 48), (0, 1, 0)), (64, 32))  # to the left by three quarters of the width
    weights = sampling_weights(geometry, (2, 4), (2, 4))
    np.testing.assert_array_equal(weights.sum(1).reshape(2, 4), [[1, 0, 0, 0]] * 2)
    if not cut_off:
        np.testing.assert_array_equal(weights[0], [0, 0, 0, 1, 0, 0, 0, 0])
