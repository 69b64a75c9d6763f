"""Checks every annotation and image of a COCO data set before training.

:mod:`object_detection.coco_file` has checked the structure of the file. ``PROBLEMS`` lists what is searched for, and
what is done about it: some problems are errors, others are corrected and reported as warnings.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from common.data.check_record import CheckRecord, fingerprint
from common.data.image_file import look_at_image
from common.data.polygons import mask_to_polygons
from common.errors import UserError, missing_hint, one_line
from common.runtime.distributed import gather_objects, rank, world_size
from object_detection.annotation_masks import compress, invalid_mask, measure_mask, short
from object_detection.annotation_report import Annotation, AnnotationReport
from object_detection.coco_file import ADDED, is_number

__all__ = ["check_annotations"]


_TOLERANCE = 1.0  # pixels that a box may reach out of its image, on each side: many boxes have rounded corners
_MIN_SIDE = 1e-5  # pixels; PaddleDetection drops smaller boxes
_OVERLAP = 0.5  # IoU of a box and the extent of its mask, below which they differ
_LEAST_AREA = 0.5  # of the mask's
_THREADS = 8


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
        invalid = invalid_mask(mask, height, width)
        extent, mask_area = (None, 0.0) if invalid else measure_mask(mask)
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
            found("BOX_INVALID", f"the box {short(box)}")
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
                annotation["segmentation"] = mask_to_polygons(mask_utils.decode(compress(mask)))
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


def _overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """The intersection over union of two boxes, [x, y, width, height], each enlarged by a pixel on every side."""
    (x, y, width, height), (x2, y2, width2, height2) = box, other
    common = max(0, min(x + width, x2 + width2) - max(x, x2) + 2) * max(
        0, min(y + height, y2 + height2) - max(y, y2) + 2
    )
    union = (width + 2) * (height + 2) + (width2 + 2) * (height2 + 2) - common
    return common / union


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
