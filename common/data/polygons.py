"""Polygons of masks, in COCO format."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["mask_to_polygons"]


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Outline a mask along the edges of its pixels, with one polygon per 8-connected component.

    COCO places pixel (0, 0) between the coordinates 0 and 1, but ``cv2.findContours`` follows the centers of the
    outermost pixels, which loses half a pixel on each side. Therefore the contours of the mask at twice its size are
    taken, and rounded to the pixels' corners. pycocotools decodes the polygons to the same mask with its holes filled:
    COCO polygons cannot have holes.

    Args:
        mask: bool or numbers [h, w]; nonzero pixels are inside.

    Returns:
        Polygons ``[x0, y0, x1, y1, ...]`` in pixels, with at least 4 points each; none if the mask is empty.
    """
    inside = np.asarray(mask) != 0
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    cropped = inside[top : rows[-1] + 1, left : columns[-1] + 1]
    pixels = cropped.astype(np.uint8, order="C")
    enlarged = cv2.resize(pixels, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for contour in contours:
        corners = (contour.reshape(-1, 2) + 1) // 2 + (left, top)
        repeated = (corners == np.roll(corners, 1, axis=0)).all(axis=1)
        polygons.append(corners[~repeated].ravel().tolist())
    return polygons
