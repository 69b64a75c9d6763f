"""Masks as polygons: what pycocotools makes of them is the mask."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from common.data.polygons import mask_to_polygons


def decode(polygons, shape):
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, *shape))).astype(bool)


def area(polygon):
    x, y = np.reshape(polygon, (-1, 2)).T
    return abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def without_holes(mask):
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, -1).astype(bool)


def test_polygons_follow_the_edges_of_pixels():
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:7] = True
    (polygon,) = mask_to_polygons(mask)
    assert sorted(zip(polygon[::2], polygon[1::2], strict=True)) == [(2, 1), (2, 3), (7, 1), (7, 3)]


@pytest.mark.parametrize("sigma", [0.7, 1.5, 4])
def test_pycocotools_decodes_the_same_mask(sigma):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = without_holes(cv2.GaussianBlur(rng.random((37, 53)), (0, 0), sigma) > 0.5)
        polygons = mask_to_polygons(mask)
        np.testing.assert_array_equal(decode(polygons, mask.shape), mask)
        assert sum(map(area, polygons)) == pytest.approx(mask.sum(), rel=0.1)
        for points in (np.reshape(polygon, (-1, 2)) for polygon in polygons):
            assert (points != np.roll(points, 1, axis=0)).any(axis=1).all()


def test_each_part_has_its_polygon():
    mask = np.zeros((9, 9), np.int32)
    mask[0, 0] = mask[4:6, 4:6] = mask[8, 8] = 7
    polygons = mask_to_polygons(mask)
    assert sorted(map(area, polygons)) == [1, 1, 4]
    np.testing.assert_array_equal(decode(polygons, mask.shape), mask > 0)


def test_holes_are_filled():
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    assert decode(mask_to_polygons(mask), mask.shape).all()


def test_an_empty_mask_has_no_polygons():
    assert mask_to_polygons(np.zeros((4, 4), bool)) == []
