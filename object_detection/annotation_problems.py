"""The problems that an annotation of a COCO file may have, and what is done about each.

Each function with ``@_problem`` is one kind of problem: its name is the kind, its docstring what is wrong. It takes an
annotation, and returns None if the annotation is right, otherwise what it has (as text) and the annotation to use in
its place, None to leave it out. The functions run in this order, each on the annotation as those before have left it.
A new function here is all that a new kind needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pycocotools import mask as mask_utils

from common.data.polygons import mask_to_polygons
from object_detection.coco_file import is_number

__all__ = ["ANNOTATION_PROBLEMS", "ERROR", "Annotation", "Context", "Problem"]

ERROR = "an error"

# Boxes often count their last pixel twice or have rounded corners, which harms nothing.
_TOLERANCE = 1.0  # pixels that a box may reach out of its image
_MIN_SIDE = 1e-5  # pixels; PaddleDetection drops smaller boxes
# pycocotools follows each edge in steps of a fifth of a pixel, and counts them in 32 bits.
_FARTHEST = 1e6  # pixels

Annotation = dict[str, Any]


@dataclass
class Context:
    """What checks need to know besides the annotation.

    Attributes:
        training: whether the annotations are trained on. For evaluation, boxes and masks stay as they are in the file,
            so that metrics are comparable with those of others.
        masks: whether the model has masks.
        images: by id.
        category_ids: of the file.
        new_ids: unused ids for annotations.
        seen_ids: ids of the annotations so far.
    """

    training: bool
    masks: bool
    images: Mapping[int, Mapping[str, Any]]
    category_ids: set[int]
    new_ids: Iterator[int]
    seen_ids: set[int] = field(default_factory=set)

    def height_and_width(self, annotation: Annotation) -> tuple[int, int]:
        image = self.images[annotation["image_id"]]
        return int(image["height"]), int(image["width"])


@dataclass(frozen=True)
class Problem:
    """A kind of problem.

    Attributes:
        kind: its name in reports.
        what: what is wrong, in the plural.
        policy: what is done about it: ``ERROR``, or words for the report. With ``-strict`` every problem is an error.
        remedy: what the user can do about it.
        find: the function that finds it in an annotation, see above.
        of_masks: it is only searched for if the model has masks.
    """

    kind: str
    what: str
    policy: str
    remedy: str
    find: Callable[[Annotation, Context], tuple[str, Annotation | None] | None] = lambda annotation, context: None
    of_masks: bool = False


ANNOTATION_PROBLEMS: list[Problem] = []


def _problem(policy: str, remedy: str, of_masks: bool = False) -> Callable[[Callable], None]:
    """Add a function to ``ANNOTATION_PROBLEMS``."""

    def add(find: Callable) -> None:
        ANNOTATION_PROBLEMS.append(Problem(find.__name__.upper(), find.__doc__ or "", policy, remedy, find, of_masks))

    return add


# ---- ids


@_problem("left out", "add the image, or remove the annotation")
def image_unknown(annotation, context):
    """annotations belong to an image that is not in the file"""
    if annotation["image_id"] not in context.images:
        return f"the image_id {annotation['image_id']}", None


@_problem(ERROR, "add the category, or correct the id")
def category_unknown(annotation, context):
    """annotations have a category that is not in the file"""
    if annotation["category_id"] not in context.category_ids:
        return f"the category_id {annotation['category_id']}", None


@_problem("renumbered", "number them from 1")
def annotation_id(annotation, context):
    """annotations have the id 0, or that of another annotation"""
    # pycocotools takes 0 for "not matched": the object would count as missed, and its detection as wrong.
    if annotation["id"] == 0 or annotation["id"] in context.seen_ids:
        return f"the id {annotation['id']}", {**annotation, "id": next(context.new_ids)}
    context.seen_ids.add(annotation["id"])


# ---- boxes


@_problem(ERROR, "write bbox as [x, y, width, height] in pixels")
def box_invalid(annotation, context):
    """boxes are not four finite numbers"""
    box = annotation.get("bbox")
    if not (type(box) is list and len(box) == 4 and all(map(is_number, box))):
        return f"the box {_short(box)}", None


@_problem("left out of training, kept in evaluation", "correct width and height")
def box_without_area(annotation, context):
    """boxes have no area"""
    if min(annotation["bbox"][2:]) <= _MIN_SIDE:
        return f"the box {annotation['bbox']}", None if context.training else annotation


@_problem(
    "clipped in training, or left out if nothing of it is inside; kept in evaluation",
    "write bbox as [x, y, width, height] in pixels of the image",
)
def box_outside(annotation, context):
    """boxes reach more than a pixel out of their image"""
    x, y, box_width, box_height = annotation["bbox"]
    height, width = context.height_and_width(annotation)
    left, right = (min(max(value, 0), width) for value in (x, x + box_width))
    top, bottom = (min(max(value, 0), height) for value in (y, y + box_height))
    is_gone = min(right - left, bottom - top) <= _MIN_SIDE < min(box_width, box_height)
    if is_gone or max(-x, -y, x + box_width - width, y + box_height - height) > _TOLERANCE:
        clipped = None if is_gone else {**annotation, "bbox": [left, top, right - left, bottom - top]}
        return f"the box {annotation['bbox']} in {width}x{height} pixels", clipped if context.training else annotation


# ---- masks: polygons [[x, y, x, y, ...], ...], or {"size": [height, width], "counts": list of int, or str}


@_problem(ERROR, "write segmentation as [[x, y, x, y, ...], ...], or encode it with pycocotools", of_masks=True)
def mask_invalid(annotation, context):
    """masks are neither polygons nor the run-length encoding of a mask of the image's size"""
    mask = annotation.get("segmentation")
    if isinstance(mask, dict):
        found = _invalid_rle(mask, *context.height_and_width(annotation))
    elif isinstance(mask, list):
        found = next((f"the polygon {_short(polygon)}" for polygon in mask if not _is_polygon(polygon)), None)
    else:
        found = None if mask is None else f"the segmentation {_short(mask)}"
    return (found, None) if found else None


@_problem(ERROR, "draw it, or use a configuration without masks", of_masks=True)
def mask_missing(annotation, context):
    """objects have no mask"""
    mask = annotation.get("segmentation")
    if not mask or (isinstance(mask, list) and not any(mask)):  # annotation tools write [] or [[]]
        return "no segmentation", None
    if isinstance(mask, dict) and not annotation.get("iscrowd") and not mask_utils.area(_compressed(mask)):
        return "an empty mask", None


@_problem("dropped, with the objects that have no other", "remove or redraw it", of_masks=True)
def polygon_short(annotation, context):
    """polygons have fewer than three points"""
    mask = annotation["segmentation"]
    short = [polygon for polygon in mask if len(polygon) < 6] if isinstance(mask, list) else []
    if short:
        polygons = [polygon for polygon in mask if len(polygon) >= 6]
        return f"the polygon {short[0]}", {**annotation, "segmentation": polygons} if polygons else None


@_problem("converted to polygons in training, which fills holes", "outline it by polygons", of_masks=True)
def rle_of_object(annotation, context):
    """objects that are not crowds have a run-length encoded mask"""
    # PaddleDetection's transforms accept them, but the targets of its mask head are drawn from polygons only.
    mask = annotation["segmentation"]
    if context.training and isinstance(mask, dict) and not annotation.get("iscrowd"):
        polygons = mask_to_polygons(mask_utils.decode(_compressed(mask)))
        return "a run-length encoded mask", {**annotation, "segmentation": polygons}


# ---- fields that PaddleDetection and pycocotools read without asking


@_problem("filled in: not a crowd, the area of the mask or the box", "write both into each annotation")
def field_missing(annotation, context):
    """annotations lack iscrowd or an area"""
    area, crowd = annotation.get("area"), annotation.get("iscrowd")
    # PaddleDetection does not train on objects of area 0. In evaluation the area only decides among which sizes an
    # object counts.
    has_area = is_number(area) and (area > 0 or not context.training)
    if not has_area or crowd is None:
        found = ["no iscrowd"] * (crowd is None) + [f"the area {area}"] * (not has_area)
        filled = {"area": area if has_area else _area(annotation, context), "iscrowd": int(crowd or 0)}
        return " and ".join(found), {**annotation, **filled}


# ---- details


def _area(annotation: Annotation, context: Context) -> float:
    if not context.masks:
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    mask = annotation["segmentation"]
    if isinstance(mask, list):
        return float(
            mask_utils.area(mask_utils.merge(mask_utils.frPyObjects(mask, *context.height_and_width(annotation))))
        )
    return float(mask_utils.area(_compressed(mask)))


def _is_polygon(value: Any) -> bool:
    """Whether it is a list of pairs of finite numbers."""
    # sum, min and max run in C: COCO has 40 million coordinates.
    try:
        return (
            isinstance(value, list)
            and len(value) % 2 == 0
            and sum(value) == sum(value)  # no NaN
            and min(value, default=0) > -_FARTHEST
            and max(value, default=0) < _FARTHEST
        )
    except (TypeError, OverflowError):  # no numbers, or huge ones
        return False


def _compressed(rle: Mapping[str, Any]) -> dict[str, Any]:
    return mask_utils.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else dict(rle)


def _invalid_rle(rle: Mapping[str, Any], height: int, width: int) -> str | None:
    """What is wrong with a run-length encoded mask; pycocotools checks neither the text nor the number of pixels."""
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        return f"a mask of size {_short(size)} in an image of {[height, width]}"
    runs = _decode_runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        return f"the counts {_short(counts)}"
    return None if sum(runs) == height * width else f"runs of {sum(runs)} pixels in an image of {height * width}"


def _decode_runs(counts: str) -> list[int] | None:
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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
