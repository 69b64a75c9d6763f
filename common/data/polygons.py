"""Masks as polygons in COCO's form."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["mask_to_polygons"]


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Outline a mask along the edges of its pixels, one polygon for each of its (8-connected) parts.

    COCO's rasteriser puts pixel (0, 0) between the coordinates 0 and 1, while ``cv2.findContours`` goes through the
    centres of the outermost pixels: taken as they are, its contours lose half a pixel on each side. Here they are those
    of the mask enlarged twice, rounded to the pixels' corners. pycocotools decodes the polygons to the same mask, but
    for its holes, which polygons in COCO's form cannot have.

    Args:
        mask: bool or numbers [h, w]; what is not 0 is inside.

    Returns:
        Polygons ``[x0, y0, x1, y1, ...]`` in pixels, of at least 4 points; none if the mask is empty.
    """
    inside = np.asarray(mask) != 0
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    cropped = inside[top : rows[-1] + 1, left : columns[-1] + 1]
    enlarged = cropped.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for contour in contours:
        corners = (contour.reshape(-1, 2) + 1) // 2 + (left, top)
        repeated = (corners == np.roll(corners, 1, axis=0)).all(axis=1)
        polygons.append(corners[~repeated].ravel().tolist())
    return polygons
