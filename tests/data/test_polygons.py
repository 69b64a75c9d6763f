"""Polygons of masks: pycocotools decodes them to the masks."""

from __future__ import annotations

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from common.data.polygons import mask_to_polygons


def decode(polygons, shape):
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, *shape))).astype(bool)


def test_polygons_follow_the_edges_of_pixels():
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:7] = True
    (polygon,) = mask_to_polygons(mask)
    assert sorted(zip(polygon[::2], polygon[1::2], strict=True)) == [(2, 1), (2, 3), (7, 1), (7, 3)]
    assert mask_to_polygons(np.zeros((4, 4), bool)) == []


def test_pycocotools_decodes_the_same_mask_without_its_holes():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = cv2.GaussianBlur(rng.random((37, 53)), (0, 0), 1.5) > 0.5
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        filled = cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, -1)
        polygons = mask_to_polygons(mask)
        assert len(polygons) == len(outlines)
        np.testing.assert_array_equal(decode(polygons, mask.shape), filled)
