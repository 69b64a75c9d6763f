"""Masks of COCO annotations: polygons, ``[[x, y, ...], ...]``, or runs, ``{"size": [h, w], "counts": [...]}``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils

__all__ = ["compress", "decode_runs", "invalid_mask", "measure_mask", "short"]

_FARTHEST = 2  # times the longer side of the image: pycocotools follows edges in steps of a fifth of a pixel
_LONGEST = 2**20  # pixels of the edges of a polygon, of which pycocotools takes 100 bytes each


def measure_mask(mask: Any) -> tuple[list[float] | None, float]:
    """The box around a valid mask, [x, y, width, height], or None if it is empty; and its area in pixels."""
    if isinstance(mask, dict):
        rle = compress(mask)
        area = float(mask_utils.area(rle))
        return (mask_utils.toBbox(rle).tolist() if area else None), area
    polygons = [polygon for polygon in mask if len(polygon) >= 6]
    if not polygons:
        return None, 0.0
    xs, ys = ([value for polygon in polygons for value in polygon[axis::2]] for axis in (0, 1))
    area = sum(cv2.contourArea(np.array(polygon, np.float32).reshape(-1, 2)) for polygon in polygons)
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)], area


def _length(polygon: list[float]) -> float:
    points = np.array(polygon, float).reshape(-1, 2)
    return float(np.abs(np.diff(points, axis=0)).sum())


def invalid_mask(mask: Any, height: int, width: int) -> tuple[str, str] | None:
    """What is wrong with a mask: polygons [[x, y, ...], ...], or {"size": [h, w], "counts": list of int, or str}."""
    farthest = _FARTHEST * max(height, width)
    if isinstance(mask, list):
        for polygon in mask:
            if not _is_polygon(polygon):
                return "MASK_INVALID", f"the polygon {short(polygon)}"
            if min(polygon, default=0) <= -farthest or max(polygon, default=0) >= farthest:
                return "POLYGON_OUTSIDE", f"the polygon {short(polygon)} in {width}x{height} pixels"
            may_be_long = len(polygon) > 64 or max(width, height) > 2**12  # others have at most 32 edges across it
            if may_be_long and (length := _length(polygon)) > _LONGEST:
                return "MASK_INVALID", f"the polygon {short(polygon)}, whose edges have {length:,.0f} pixels,"
        return None
    if not isinstance(mask, dict):
        return "MASK_INVALID", f"the segmentation {short(mask)}"
    # pycocotools checks neither the text nor the number of pixels.
    size, counts = mask.get("size"), mask.get("counts")
    if size != [height, width]:
        return "MASK_INVALID", f"a mask of size {short(size)} in an image of {[height, width]}"
    runs = decode_runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        return "MASK_INVALID", f"the counts {short(counts)}"
    if sum(runs) != height * width:
        return "MASK_INVALID", f"runs of {sum(runs)} pixels in an image of {height * width}"
    return None


def _is_polygon(value: Any) -> bool:
    """Whether it is a list of pairs of numbers."""
    # sum runs in C: COCO has 40 million coordinates.
    try:
        return isinstance(value, list) and len(value) % 2 == 0 and sum(value) == sum(value)  # no NaN
    except (TypeError, OverflowError):  # no numbers, or huge ones
        return False


def decode_runs(counts: str) -> list[int] | None:
    """The lengths of the runs in a compressed encoding, or None if it is invalid (maskApi.c of pycocotools)."""
    # Digits of 5 bits plus 48; all but the last of a number have the bit 32, the last of a negative one the bit 16.
    if not re.fullmatch("(?:[P-o]{0,6}[0-O])*", counts):
        return None
    runs: list[int] = []
    for text in re.findall("[P-o]*[0-O]", counts):
        digits = [ord(character) - 48 & 31 for character in text]
        number = sum(digit << 5 * place for place, digit in enumerate(digits))
        number -= (digits[-1] & 16) << (5 * len(digits) - 4)
        runs.append(number + runs[-2] if len(runs) > 2 else number)  # from the fourth on, differences
    return runs


def compress(rle: Mapping[str, Any]) -> dict[str, Any]:
    """Runs with the counts as text."""
    return mask_utils.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else dict(rle)


def short(value: Any) -> str:
    """A value of the file for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
