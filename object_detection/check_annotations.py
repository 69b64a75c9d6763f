"""Checks every annotation and image of a COCO data set before training.

:mod:`object_detection.coco_file` has checked the structure of the file. ``PROBLEMS`` lists what is searched for, and
what is done about it: some problems are errors, others are corrected and reported as warnings.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from common.data.check_record import CheckRecord, fingerprint
from common.data.class_table import class_table
from common.data.image_file import look_at_image
from common.data.polygons import mask_to_polygons
from common.errors import UserError, missing_hint, one_line
from common.runtime.distributed import gather_objects, rank, world_size
from object_detection.coco_file import ADDED, is_number

__all__ = ["PROBLEMS", "AnnotationReport", "check_annotations"]

Annotation = dict[str, Any]


class Problem(NamedTuple):
    """A kind of problem: what is wrong, what is done about it, and what the user can do.

    With ``-strict`` every problem is an error.
    """

    what: str
    policy: str
    remedy: str


ERROR = "an error"
PROBLEMS = {
    "IMAGE_MISSING": Problem("images do not exist", ERROR, "restore it, or remove it from the file"),
    "IMAGE_UNREADABLE": Problem("images cannot be read", ERROR, "replace it, or remove it from the file"),
    "IMAGE_SIZE": Problem("images have another size than in the file", ERROR, "correct width, height and the boxes"),
    "IMAGE_DEEP": Problem("images have more than 8 bits per channel", "the upper 8 are used", "convert it to 8 bits"),
    "IMAGE_TURNED": Problem(
        "images are turned or mirrored by their EXIF orientation",
        "applied: boxes and masks must be drawn on the turned image",
        "save the image upright, without the orientation",
    ),
    "CATEGORY_UNUSED": Problem("categories have no object", "kept", "annotate objects of it, or remove it"),
    "IMAGE_UNKNOWN": Problem(
        "annotations belong to an image that is not in the file", "left out", "add the image, or remove the annotation"
    ),
    "CATEGORY_UNKNOWN": Problem(
        "annotations have a category that is not in the file", ERROR, "add the category, or correct the id"
    ),
    "ANNOTATION_ID": Problem(
        "annotations have the id 0, or that of another annotation", "renumbered", "number them from 1"
    ),
    "OBJECT_REPEATED": Problem("objects of one image have the same category and box", "kept", "remove the copies"),
    "BOX_INVALID": Problem("boxes are not four finite numbers", ERROR, "write bbox as [x, y, width, height] in pixels"),
    "BOX_WITHOUT_AREA": Problem(
        "boxes have no area", "left out of training, kept in evaluation", "correct width and height"
    ),
    "BOX_OUTSIDE": Problem(
        "boxes reach more than a pixel out of their image",
        "clipped in training, or left out if nothing of it is inside; kept in evaluation",
        "write bbox as [x, y, width, height] in pixels of the image",
    ),
    "BOX_NORMALIZED": Problem(
        "boxes lie within one pixel", ERROR, "write bbox in pixels, not as shares of the image's width and height"
    ),
    "BOX_BESIDE_MASK": Problem(
        "boxes differ from the extent of their masks", "kept", "correct bbox, [x, y, width, height], or the mask"
    ),
    "BOX_FORMAT": Problem(
        "boxes, the majority, differ from the extent of their masks, or fit masks or image better as two corners",
        ERROR,
        "write bbox as [x, y, width, height], not as two corners, nor with the center in place of the corner, and "
        "masks as polygons x, y, x, y, ... in pixels, or run-length encoded column by column",
    ),
    "AREA_DIFFERS": Problem(
        "areas are larger than the box, or less than half of the mask",
        "kept: results for small, medium and large objects go by them",
        "write area as the number of pixels of the mask, or width * height of the box",
    ),
    "MASK_INVALID": Problem(
        "masks are neither polygons nor the run-length encoding of a mask of the image's size",
        ERROR,
        "write segmentation as [[x, y, x, y, ...], ...], or encode it with pycocotools",
    ),
    "MASK_MISSING": Problem("objects have no mask", ERROR, "draw it, or use a configuration without masks"),
    "POLYGON_OUTSIDE": Problem(
        "polygons reach far out of their image",
        ERROR,
        "write them in pixels of the image (are images and annotations of the same scale?)",
    ),
    "POLYGON_SHORT": Problem(
        "polygons have fewer than three points in their list, x, y, x, y, ...",
        "dropped, with the objects that have no other",
        "write all points of a polygon in one list, or remove it",
    ),
    "RLE_OF_OBJECT": Problem(
        "objects that are not crowds have a run-length encoded mask",
        "converted to polygons in training, which fills holes",
        "outline it by polygons",
    ),
    "OBJECT_IGNORED": Problem(
        "objects have the flag ignore",
        "treated as crowds: not trained on, and not demanded in evaluation",
        "remove the flag, or set iscrowd",
    ),
    "FIELD_MISSING": Problem(
        "annotations have no iscrowd, or no area or a negative one",
        "filled in: not a crowd, the area of the mask or the box",
        "write both into each annotation",
    ),
}

_TOLERANCE = 1.0  # pixels that a box may reach out of its image, on each side: many boxes have rounded corners
_MIN_SIDE = 1e-5  # pixels; PaddleDetection drops smaller boxes
_OVERLAP = 0.5  # IoU of a box and the extent of its mask, below which they differ
_LEAST_AREA = 0.5  # of the mask's
_FARTHEST = 2  # times the longer side of the image: pycocotools follows edges in steps of a fifth of a pixel
_LONGEST = 2**20  # pixels of the edges of a polygon, of which pycocotools takes 100 bytes each
_EXAMPLES = 10  # of each kind, that a report shows
_THREADS = 8
_SMALL, _MEDIUM = 32**2, 96**2  # pixels; COCO's limits between small, medium and large objects


def check_annotations(
    coco: Mapping[str, Any],
    path: str | Path,
    image_dir: str | Path,
    split: str,
    *,
    num_classes: int,
    masks: bool,
    strict: bool = False,
    record: Path | None = None,
    progress: Callable[[], Any] = lambda: None,
    raise_errors: bool = True,
) -> tuple[dict[str, Any], AnnotationReport]:
    """Find problems of annotations and images, and correct or leave out what can be; a collective operation.

    Every rank checks the annotations; the images are divided among the ranks, and checked after the annotations.

    Args:
        coco: from :func:`object_detection.coco_file.read_annotations`; it is not changed.
        path: of its file, for messages.
        image_dir: folder of the images.
        split: ``"train"``; or ``"val"``, for which boxes and masks stay as they are, so that metrics are comparable.
        num_classes: of the model.
        masks: whether the model has masks; if not, those of the file are not checked.
        strict: every problem is an error.
        record: file that remembers which images have passed, and the warnings; they are not checked again until they
            change.
        progress: called after each image that this rank has checked.
        raise_errors: false leaves errors to the report, and checks the images even if annotations have errors.

    Returns:
        The annotations to use, in COCO format, and the report.

    Raises:
        UserError: on all ranks: there is an error or no object, or the record cannot be written.
    """
    categories = coco["categories"]
    if len(categories) > num_classes:
        raise UserError(
            f"{path} has {len(categories)} categories, num_classes is {num_classes}: "
            f"give -num_classes {len(categories)}, or correct the file"
        )
    report = AnnotationReport(split, coco["images"], categories, num_classes, strict)
    report.annotations = _AnnotationCheck(coco, str(path), masks, report).run()
    if raise_errors:
        report.raise_errors()
    _check_images(coco["images"], Path(image_dir), report, record, progress)
    if not report.problems:  # which may be why a category has no object
        for category, counts in zip(categories, report.count_objects(), strict=True):
            if not counts.any() and not category.get(ADDED):
                report.add("CATEGORY_UNUSED", f"{path}: category {category['id']} {category['name']!r}")
    if raise_errors:
        report.raise_errors()
    if not report.problems and not report.count_objects().any():
        remedy = "; add or correct annotations"
        if crowds := len(report.annotations):
            remedy = f": all {crowds:,} are crowds, which are not trained on; write iscrowd 0 for single objects"
        reasons = "".join(f"; {line}" for line in report.warnings())
        raise UserError(f"{path} has no usable object for the {split} split{remedy}{reasons}")
    return {**coco, "annotations": report.annotations}, report


@dataclass
class AnnotationReport:
    """The content and the problems of an annotation file; printed, a table.

    Attributes:
        split: ``"train"`` or ``"val"``.
        images, categories: of the file.
        num_classes: of the model.
        strict: every problem is an error.
        annotations: those that are used.
        counts: how often each kind of problem was found.
        examples: the first of each kind.
        repeated: warnings of an earlier check of the images, which was not repeated.
    """

    split: str
    images: Sequence[Mapping[str, Any]]
    categories: Sequence[Mapping[str, Any]]
    num_classes: int
    strict: bool
    annotations: Sequence[Annotation] = ()
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    repeated: Sequence[str] = ()

    def is_error(self, kind: str) -> bool:
        return self.strict or PROBLEMS[kind].policy == ERROR

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= _EXAMPLES:
            self.examples.setdefault(kind, []).append(example)

    @property
    def errors(self) -> list[str]:
        """The kinds of errors that were found."""
        return [kind for kind in self.counts if self.is_error(kind)]

    @property
    def problems(self) -> list[str]:
        """For each kind of error: how many there are, and the remedy."""
        return [f"{kind}: {self.counts[kind]:,} {PROBLEMS[kind].what}; {self._remedy(kind)}" for kind in self.errors]

    def warnings(self) -> list[str]:
        """What was done about problems that are not errors, and whether the model has more classes than the data."""
        lines = [*self.repeated, *(self.warning(kind) for kind in self.counts if not self.is_error(kind))]
        if self.num_classes > len(self.categories):
            lines.append(
                f"the model has {self.num_classes} classes, but the {self.split} data has {len(self.categories)}; the "
                "other outputs are not trained (num_classes)"
            )
        return lines

    def warning(self, kind: str) -> str:
        """What was done about a kind of problem that was found and is no error."""
        problem = PROBLEMS[kind]
        return f"{kind}: {self.counts[kind]:,} {problem.what} ({problem.policy}), first {self.examples[kind][0]}"

    def raise_errors(self) -> None:
        """Raise the first error with the number of others."""
        if self.errors:
            first = self.errors[0]
            others = sum(self.counts[kind] for kind in self.errors) - 1
            more = f" (and {others:,} more; -check_data shows them)" if others else ""
            raise UserError(f"{self.examples[first][0]}; {self._remedy(first)}{more}")

    def count_objects(self) -> np.ndarray:
        """Objects that are used and are not crowds, per class and size, small, medium and large: int64 [classes, 3]."""
        classes = {category["id"]: number for number, category in enumerate(self.categories)}
        counts = np.zeros((len(classes), 3), np.int64)
        for annotation in self.annotations:
            if not annotation["iscrowd"]:
                area = annotation["area"]
                counts[classes[annotation["category_id"]], (area >= _SMALL) + (area >= _MEDIUM)] += 1
        return counts

    def _remedy(self, kind: str) -> str:
        remedy = PROBLEMS[kind].remedy
        return remedy if PROBLEMS[kind].policy == ERROR else f"{remedy}, or leave out -strict"

    def __str__(self) -> str:
        sizes = np.array([(image["width"], image["height"]) for image in self.images], np.int64)
        (low_width, low_height), (high_width, high_height) = sizes.min(axis=0), sizes.max(axis=0)
        empty = len(self.images) - len({annotation["image_id"] for annotation in self.annotations})
        objects = self.count_objects()
        title = (
            f"{self.split} data: {len(self.images):,} images of {low_width}x{low_height} to {high_width}x{high_height} "
            f"pixels ({empty:,} without objects), {objects.sum():,} objects, "
            f"{len(self.annotations) - objects.sum():,} crowds"
        )
        columns = {"objects": objects.sum(axis=1), **dict(zip(("small", "medium", "large"), objects.T, strict=True))}
        lines = [class_table([category["name"] for category in self.categories], columns, title)]
        lines += [f"  warning: {line}" for line in self.warnings()]
        lines += [f"  {line}" for line in self.problems]
        for kind in self.errors:
            lines += [f"  {example}" for example in self.examples[kind]]
            if self.counts[kind] > _EXAMPLES:
                lines.append(f"  and {self.counts[kind] - _EXAMPLES:,} more {kind}")
        return "\n".join(lines)


# ---- annotations


class _AnnotationCheck:
    """Checks the annotations of a file one by one."""

    def __init__(self, coco: Mapping[str, Any], path: str, masks: bool, report: AnnotationReport):
        self.annotations, self.path, self.masks, self.report = coco["annotations"], path, masks, report
        self.training = report.split == "train"
        self.images = {image["id"]: image for image in coco["images"]}
        self.category_ids = {category["id"] for category in coco["categories"]}
        self.new_ids = itertools.count(max(0, *(annotation["id"] for annotation in coco["annotations"])) + 1)
        self.seen_ids: set[int] = set()
        self.seen_objects: set[tuple[Any, ...]] = set()
        self.with_mask, self.beside_mask = 0, []  # boxes to compare, and examples of those that differ
        self.compared, self.corners = 0, []  # boxes in the format of most, and examples of those that are two corners

    def run(self) -> list[Annotation]:
        """The annotations to use; problems are added to the report."""
        checked = [self._check(annotation) for annotation in self.annotations]
        if 2 * len(self.beside_mask) > self.with_mask or 2 * len(self.corners) > self.compared:
            kind, examples = "BOX_FORMAT", [*dict.fromkeys([*self.beside_mask, *self.corners])]
        else:
            kind, examples = "BOX_BESIDE_MASK", self.beside_mask
        for example in examples:
            self.report.add(kind, example)
        return [annotation for annotation in checked if annotation is not None]

    def _check(self, original: Annotation) -> Annotation | None:
        """The annotation to use in place of one, or None to leave it out."""
        image = self.images.get(original["image_id"])
        file = f" ({image['file_name']})" if image else ""

        name = f"{self.path}: annotation {original['id']} of image {original['image_id']}{file}"

        kinds = []

        def found(kind: str, what: str) -> bool:
            """Report a problem; returns whether it is an error."""
            kinds.append(kind)
            self.report.add(kind, f"{name} has {what}")
            return self.report.is_error(kind)

        annotation = dict(original)
        if image is None:
            found("IMAGE_UNKNOWN", f"the image_id {annotation['image_id']}")
            return None
        if annotation["category_id"] not in self.category_ids:
            found("CATEGORY_UNKNOWN", f"the category_id {annotation['category_id']}")
            return None
        # pycocotools takes the id 0 for "not matched": the object would count as missed, and its detection as wrong.
        if annotation["id"] == 0 or annotation["id"] in self.seen_ids:
            if found("ANNOTATION_ID", f"the id {annotation['id']}"):
                return None
            annotation["id"] = next(self.new_ids)
        self.seen_ids.add(annotation["id"])
        if annotation.pop("ignore", None) and not annotation.get("iscrowd"):
            if found("OBJECT_IGNORED", "the flag ignore"):
                return None
            annotation["iscrowd"] = 1
        height, width = int(image["height"]), int(image["width"])
        mask, area = original.get("segmentation"), original.get("area")
        invalid = _invalid_mask(mask, height, width)
        extent, mask_area = (None, 0.0) if invalid else _measure(mask)
        is_usable = self._check_box(annotation, height, width, found)
        if not set(kinds) - {"BOX_OUTSIDE"}:  # two corners, taken for a corner and a size, often reach out
            self._compare_box(original["bbox"], extent, name, height, width, is_outside=bool(kinds))
        if is_usable:
            key = (annotation["image_id"], annotation["category_id"], *original["bbox"])
            is_usable = key not in self.seen_objects or not found("OBJECT_REPEATED", f"the box {original['bbox']}")
            self.seen_objects.add(key)
        # PaddleDetection does not train on objects of area 0. In evaluation, those of negative area are ignored, and
        # otherwise the area only decides among which sizes an object counts.
        has_area = is_number(area) and (area > 0 if self.training else area >= 0)
        if is_usable and has_area and not kinds:
            _, _, box_width, box_height = original["bbox"]
            is_beyond = area > (box_width + 2 * _TOLERANCE) * (box_height + 2 * _TOLERANCE)
            if is_beyond or area < _LEAST_AREA * mask_area:
                other = f"the box {original['bbox']}" if is_beyond else f"a mask of {mask_area:.1f} pixels"
                is_usable = not found("AREA_DIFFERS", f"the area {area} and {other}")
        if is_usable and self.masks:
            is_usable = self._check_mask(annotation, invalid, mask_area, found)
        if is_usable:
            is_usable = self._fill_fields(annotation, None if has_area else mask_area, found)
        return annotation if is_usable else None

    def _compare_box(
        self, box: list[float], extent: list[float] | None, name: str, height: int, width: int, is_outside: bool
    ) -> None:
        """Compare a box, and the same numbers as two corners, with its mask's extent or, without any, the image."""
        left, top, right, bottom = box
        corners = [left, top, right - left, bottom - top]
        example = f"{name} has the box {box}"
        self.compared += 1
        if extent:
            example += f" and a mask in {extent}"
            overlap = _overlap(box, extent)
            is_corners = min(corners[2:]) > 0 and _overlap(corners, extent) > overlap
            if not is_outside:
                self.with_mask += 1
                if overlap < _OVERLAP:
                    self.beside_mask.append(example)
        else:
            example += f" in {width}x{height} pixels"
            in_image = right <= width + _TOLERANCE and bottom <= height + _TOLERANCE
            is_corners = is_outside and min(left, top) >= 0 and min(corners[2:]) > 0 and in_image
        if is_corners:
            self.corners.append(example)

    def _check_box(self, annotation: Annotation, height: int, width: int, found: Callable[[str, str], bool]) -> bool:
        box = annotation.get("bbox")
        if not (type(box) is list and len(box) == 4 and all(map(is_number, box))):
            found("BOX_INVALID", f"the box {_short(box)}")
            return False
        x, y, box_width, box_height = box
        if min(box_width, box_height) <= _MIN_SIDE:
            return not (found("BOX_WITHOUT_AREA", f"the box {box}") or self.training)
        if min(x, y) >= 0 and max(x + box_width, y + box_height) <= 1:
            found("BOX_NORMALIZED", f"the box {box}")
            return False
        left, right = np.clip([x, x + box_width], 0, width).tolist()
        top, bottom = np.clip([y, y + box_height], 0, height).tolist()
        is_gone = min(right - left, bottom - top) <= _MIN_SIDE
        if is_gone or max(-x, -y, x + box_width - width, y + box_height - height) > _TOLERANCE:
            if found("BOX_OUTSIDE", f"the box {box} in {width}x{height} pixels"):
                return False
            if self.training:
                annotation["bbox"] = [left, top, right - left, bottom - top]
                return not is_gone
        return True

    def _check_mask(
        self, annotation: Annotation, invalid: tuple[str, str] | None, area: float, found: Callable[[str, str], bool]
    ) -> bool:
        mask = annotation.get("segmentation")
        if not mask or (isinstance(mask, list) and not any(mask)):  # annotation tools write [] or [[]]
            found("MASK_MISSING", "no segmentation")
            return False
        if invalid:
            found(*invalid)
            return False
        if isinstance(mask, list):
            short = [polygon for polygon in mask if len(polygon) < 6]
            if short:
                annotation["segmentation"] = [polygon for polygon in mask if len(polygon) >= 6]
                return not found("POLYGON_SHORT", f"the polygon {short[0]}") and len(short) < len(mask)
        elif not annotation.get("iscrowd"):
            if not area:
                found("MASK_MISSING", "an empty mask")
                return False
            if self.training:
                # PaddleDetection draws the targets of its mask head from polygons only.
                annotation["segmentation"] = mask_to_polygons(mask_utils.decode(_compressed(mask)))
                return not found("RLE_OF_OBJECT", "a run-length encoded mask")
        return True

    def _fill_fields(self, annotation: Annotation, new_area: float | None, found: Callable[[str, str], bool]) -> bool:
        """Fill in the fields that PaddleDetection and pycocotools read without asking."""
        area, crowd = annotation.get("area"), annotation.get("iscrowd")
        if new_area is None and crowd is not None:
            return True
        annotation["iscrowd"] = int(crowd or 0)
        if new_area is not None:
            annotation["area"] = new_area or float(np.prod(np.maximum(annotation["bbox"][2:], 0)))
        missing = ["no iscrowd"] * (crowd is None) + [f"the area {area!r}"] * (new_area is not None)
        return not found("FIELD_MISSING", " and ".join(missing))


def _measure(mask: Any) -> tuple[list[float] | None, float]:
    """The box around a valid mask, [x, y, width, height], or None if it is empty; and its area in pixels."""
    if isinstance(mask, dict):
        rle = _compressed(mask)
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


def _invalid_mask(mask: Any, height: int, width: int) -> tuple[str, str] | None:
    """What is wrong with a mask: polygons [[x, y, ...], ...], or {"size": [h, w], "counts": list of int, or str}."""
    farthest = _FARTHEST * max(height, width)
    if isinstance(mask, list):
        for polygon in mask:
            if not _is_polygon(polygon):
                return "MASK_INVALID", f"the polygon {_short(polygon)}"
            if min(polygon, default=0) <= -farthest or max(polygon, default=0) >= farthest:
                return "POLYGON_OUTSIDE", f"the polygon {_short(polygon)} in {width}x{height} pixels"
            may_be_long = len(polygon) > 64 or max(width, height) > 2**12  # others have at most 32 edges across it
            if may_be_long and (length := _length(polygon)) > _LONGEST:
                return "MASK_INVALID", f"the polygon {_short(polygon)}, whose edges have {length:,.0f} pixels,"
        return None
    if not isinstance(mask, dict):
        return "MASK_INVALID", f"the segmentation {_short(mask)}"
    # pycocotools checks neither the text nor the number of pixels.
    size, counts = mask.get("size"), mask.get("counts")
    if size != [height, width]:
        return "MASK_INVALID", f"a mask of size {_short(size)} in an image of {[height, width]}"
    runs = _decode_runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        return "MASK_INVALID", f"the counts {_short(counts)}"
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


def _overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """The intersection over union of two boxes, [x, y, width, height], each enlarged by a pixel on every side."""
    (x, y, width, height), (x2, y2, width2, height2) = box, other
    common = max(0, min(x + width, x2 + width2) - max(x, x2) + 2) * max(
        0, min(y + height, y2 + height2) - max(y, y2) + 2
    )
    union = (width + 2) * (height + 2) + (width2 + 2) * (height2 + 2) - common
    return common / union


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


def _compressed(rle: Mapping[str, Any]) -> dict[str, Any]:
    return mask_utils.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else dict(rle)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---- images


def _check_images(
    images: Sequence[Mapping[str, Any]],
    folder: Path,
    report: AnnotationReport,
    record: Path | None,
    progress: Callable[[], Any],
) -> None:
    """Check this rank's share of the images, unless all have passed before; the report gets those of all ranks."""
    paths = [str(folder / image["file_name"]) for image in images]
    sizes = [(int(image["width"]), int(image["height"])) for image in images]
    rules = f"COCO {sizes} {report.strict}"
    passed = CheckRecord(record, report.split, partial(fingerprint, rules, paths)) if record else None
    if passed and passed.has_passed:
        report.repeated = passed.warnings
        return
    numbers = range(rank(), len(images), world_size())
    problems = []
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda number: _check_image(paths[number], sizes[number], folder), numbers)
        for number, of_image in zip(numbers, found, strict=True):
            problems += [(number, *problem) for problem in of_image]
            progress()
    kinds = {}  # keeps their order
    for _, kind, example in sorted(itertools.chain(*gather_objects(problems))):
        report.add(kind, example)
        kinds[kind] = report.is_error(kind)
    if passed and not any(kinds.values()):
        passed.add(map(report.warning, kinds))


def _check_image(path: str, expected: tuple[int, int], folder: Path) -> list[tuple[str, str]]:
    """The kinds of problems that an image has, and what was found."""
    if not os.path.exists(path):  # noqa: PTH110  (before Python 3.13, Path's raises when the name is too long)
        hint, name = missing_hint(path), Path(path).name
        if not hint and os.path.exists(folder / name):  # noqa: PTH110
            hint = f"; {folder / name} does: write file_name relative to image_dir, {name}"
        return [("IMAGE_MISSING", f"image {path} does not exist{hint}")]
    try:
        width, height, is_deep, orientation = look_at_image(path)
    except UserError as error:
        return [("IMAGE_UNREADABLE", str(error).rpartition("; ")[0])]  # without the remedy
    except Exception as error:  # OpenCV has limits of its own
        return [("IMAGE_UNREADABLE", f"image {path} cannot be read ({one_line(error)})")]
    problems = []
    if (width, height) != expected:
        turned = " (turned by its EXIF orientation)" if orientation > 1 else ""
        said = f"{expected[0]}x{expected[1]}"
        problems.append(("IMAGE_SIZE", f"image {path} has {width}x{height} pixels{turned}, the annotations say {said}"))
    if is_deep:
        problems.append(("IMAGE_DEEP", f"image {path}"))
    if orientation > 1:
        problems.append(("IMAGE_TURNED", f"image {path} (orientation {orientation})"))
    return problems
