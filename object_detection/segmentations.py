"""A look at one mask of an annotation file: COCO's polygons or run-length encoding."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pycocotools import mask as mask_utils

from common.data.polygons import mask_to_polygons
from object_detection.annotations import is_number

__all__ = ["Inspection", "area_of", "inspect_segmentation", "rle_to_polygons"]

# pycocotools goes along each edge in steps of a fifth of a pixel, and counts them in 32 bits.
_FARTHEST = 1e6  # pixels
# Numbers of 5-bit digits, of which all but the last have the bit 32, on top of 48 (maskApi.c of pycocotools).
_ENCODED = re.compile(r"(?:[P-o]{0,6}[0-O])*")


class Inspection(NamedTuple):
    """What is wrong with a mask.

    Attributes:
        problems: kind (a key of ``PROBLEMS``) and what was found, for each.
        usable: the mask without what is wrong, None if nothing is left.
    """

    problems: list[tuple[str, str]]
    usable: Any


def inspect_segmentation(value: Any, crowd: bool, height: int, width: int) -> Inspection | None:
    """Find what is wrong with the ``segmentation`` of an annotation.

    Args:
        value: polygons ``[[x, y, ...], ...]``, or ``{"size": [height, width], "counts": list of int or str}``.
        crowd: whether the annotation stands for a crowd.
        height, width: of the image.

    Returns:
        None if it can be used as it is.
    """
    if isinstance(value, dict):
        return _inspect_rle(value, crowd, height, width)
    # Tools that annotate boxes alone write [] or [[]].
    if value is None or (isinstance(value, list) and all(polygon == [] for polygon in value)):
        return Inspection([("MASK_MISSING", "no segmentation")], None)
    if not isinstance(value, list) or not all(isinstance(polygon, list) for polygon in value):
        return Inspection([("POLYGON_INVALID", f"the segmentation {_short(value)}")], None)
    if all(map(_is_polygon, value)):
        return None
    problems = [_explain_polygon(polygon) for polygon in value if not _is_polygon(polygon)]
    return Inspection(problems, [polygon for polygon in value if _is_polygon(polygon)] or None)


def rle_to_polygons(rle: Mapping[str, Any]) -> list[list[int]]:
    """Outline a run-length encoded mask that :func:`inspect_segmentation` found right; holes are filled."""
    return mask_to_polygons(mask_utils.decode(_compressed(rle)))


def area_of(value: Any, height: int, width: int) -> float:
    """Pixels of a mask that :func:`inspect_segmentation` found right."""
    if isinstance(value, dict):
        return float(mask_utils.area(_compressed(value)))
    return float(mask_utils.area(mask_utils.merge(mask_utils.frPyObjects(value, height, width))))


def _compressed(rle: Mapping[str, Any]) -> dict[str, Any]:
    return mask_utils.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else dict(rle)


def _is_polygon(value: list) -> bool:
    # sum, min and max run in C: COCO has 40 million coordinates.
    try:
        return (
            len(value) >= 6
            and len(value) % 2 == 0
            and sum(value) == sum(value)  # no NaN
            and min(value) > -_FARTHEST
            and max(value) < _FARTHEST
        )
    except (TypeError, OverflowError):  # no numbers, or huge ones
        return False


def _explain_polygon(value: list) -> tuple[str, str]:
    if all(map(is_number, value)):
        if len(value) % 2:
            return "POLYGON_INVALID", f"a polygon of {len(value)} numbers"
        if len(value) < 6:
            return "POLYGON_SHORT", f"the polygon {value}"
    return "POLYGON_INVALID", f"the polygon {_short(value)}"


def _inspect_rle(rle: Mapping[str, Any], crowd: bool, height: int, width: int) -> Inspection | None:
    size, runs = rle.get("size"), _runs(rle.get("counts"))
    if size != [height, width]:
        return Inspection([("RLE_INVALID", f"a mask of size {_short(size)} in an image of {[height, width]}")], None)
    if runs is None:
        return Inspection([("RLE_INVALID", f"the counts {_short(rle.get('counts'))}")], None)
    # pycocotools would leave the pixels after the last run as they happen to be in memory.
    if sum(runs) != height * width:
        return Inspection([("RLE_INVALID", f"runs of {sum(runs)} pixels in an image of {height * width}")], None)
    if crowd:
        return None
    if not any(runs[1::2]):
        return Inspection([("MASK_MISSING", "an empty mask")], None)
    return Inspection([("RLE_OF_OBJECT", "a run-length encoded mask")], rle)


def _runs(counts: Any) -> list[int] | None:
    """The lengths of the runs, or None if they are not encoded as COCO does it."""
    if isinstance(counts, list):
        runs = counts if all(type(run) is int for run in counts) else None
    elif isinstance(counts, str) and _ENCODED.fullmatch(counts):
        runs = _decode_runs(counts)
    else:
        runs = None
    return runs if runs and min(runs) >= 0 else None


def _decode_runs(counts: str) -> list[int]:
    runs: list[int] = []
    number = digits = 0
    for character in counts:
        code = ord(character) - 48
        number |= (code & 31) << 5 * digits
        digits += 1
        if code & 32:
            continue
        if code & 16:  # negative
            number -= 1 << 5 * digits
        runs.append(number + runs[-2] if len(runs) > 2 else number)  # from the fourth on, differences
        number = digits = 0
    return runs


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
