"""A look at every annotation and image before training, which would otherwise fail after hours or learn what is wrong.

PaddleDetection drops some of what it cannot use with a warning for each, takes some of it as it is, and stops at the
rest. Here each kind of problem is counted, and what is done about it is the user's choice
(:mod:`object_detection.problems`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.data.check_record import CheckRecord, fingerprint
from common.data.image_file import is_turned, look_at_image
from common.errors import UserError, one_line
from common.runtime.distributed import gather_lines, rank, world_size
from object_detection.annotation_report import AnnotationReport, Findings
from object_detection.annotations import is_number
from object_detection.segmentations import area_of, inspect_segmentation, rle_to_polygons

__all__ = ["check_annotations"]

_THREADS = 8
# Boxes often have their last pixel counted twice or their corners rounded, which harms nothing.
_TOLERANCE = 1.0  # pixels that a box may reach out of its image
_MIN_SIDE = 1e-5  # pixels; PaddleDetection drops boxes that are not larger
_SMALL, _MEDIUM = 32**2, 96**2  # pixels: where COCO has the limits between small, medium and large

Progress = Callable[[int, int], None]


def check_annotations(
    coco: Mapping[str, Any],
    path: str | Path,
    image_dir: str | Path,
    split: str,
    actions: Mapping[str, str],
    *,
    num_classes: int,
    masks: bool,
    for_evaluation: bool = False,
    record: Path | None = None,
    progress: Progress | None = None,
    list_all: bool = False,
) -> tuple[dict[str, Any], AnnotationReport]:
    """Find what is wrong with annotations and their images, and mend or leave out what can be; a collective operation.

    Every rank checks the annotations; the images are shared out among the ranks, and looked at after the annotations.

    Args:
        coco: from :func:`object_detection.annotations.read_annotations`; it is not changed.
        path: of its file, for messages.
        image_dir: folder of the images.
        split: what to call the data: ``"train"`` or ``"val"``.
        actions: what to do about each kind of problem; from :func:`object_detection.problems.resolve_actions`.
        num_classes: of the model.
        masks: whether the model has masks; if not, nobody looks at those of the file.
        for_evaluation: leave boxes and masks as they are wherever evaluation can use them, so that its figures are
            those of the file.
        record: file of what has passed; images that have not changed since are not looked at again. None looks always.
        progress: is told after each image how many this rank has looked at, and how many it has to.
        list_all: return the errors in the report instead of raising, and look at all images.

    Returns:
        The annotations to use, in COCO's form, and the report.

    Raises:
        UserError: on all ranks, the first error and the number of others; or nothing is left; or the record cannot be
            written.
    """
    findings = Findings(actions, for_evaluation, list_all)
    check = _Check(coco, str(path), findings)
    categories = coco["categories"]
    if len(categories) > num_classes:
        raise UserError(
            f"{path} has {len(categories)} categories, num_classes is {num_classes}: "
            f"give -num_classes {len(categories)}, or correct the file"
        )
    check.duplicates()
    check.references()
    check.boxes()
    if masks:
        check.masks()
    check.fields()
    findings.raise_errors()
    check.leave_out_images(_check_images(coco["images"], Path(image_dir), split, findings, record, progress))
    objects = check.objects()
    if not findings.errors():  # which may be why a category has no object
        check.unused(objects)
    findings.raise_errors()

    cleaned = check.cleaned()
    sizes = np.array([(image["width"], image["height"]) for image in cleaned["images"]] or [(0, 0)], np.int64)
    report = AnnotationReport(
        split=split,
        class_names=[category["name"] for category in categories],
        num_images=len(cleaned["images"]),
        num_empty=len(cleaned["images"]) - len({entry["image_id"] for entry in cleaned["annotations"]}),
        smallest=tuple(sizes.min(axis=0).tolist()),
        largest=tuple(sizes.max(axis=0).tolist()),
        objects=objects,
        num_crowds=len(cleaned["annotations"]) - int(objects.sum()),
        findings=findings.all(),
        problems=[line for finding in findings.errors() for line in finding.errors()],
        num_classes=num_classes,
    )
    if not objects.any() and not report.problems:
        reasons = "".join(f"; {line}" for line in report.warnings())
        raise UserError(f"{path} has no object for the {split} data; annotate some{reasons}")
    return cleaned, report


class _Check:
    """The annotations of one file, what is wrong with them, and what of them is used."""

    def __init__(self, coco: Mapping[str, Any], path: str, findings: Findings):
        self._coco, self._path, self._findings = coco, path, findings
        self._annotations: list[dict[str, Any]] = list(coco["annotations"])
        self._images: list[dict[str, Any]] = coco["images"]
        image_numbers = _numbers_by_id(self._images)
        category_numbers = _numbers_by_id(coco["categories"])
        self._image = np.array([image_numbers.get(entry["image_id"], -1) for entry in self._annotations])
        self._category = np.array([category_numbers.get(entry["category_id"], -1) for entry in self._annotations])
        self._used = np.ones(len(self._annotations), bool)
        self._image_used = np.ones(len(self._images), bool)

    # ---- what is wrong

    def duplicates(self) -> None:
        for kind, key, name in (
            ("IMAGE_ID_DUPLICATE", "images", "id"),
            ("FILE_NAME_DUPLICATE", "images", "file_name"),
            ("CATEGORY_ID_DUPLICATE", "categories", "id"),
            ("CATEGORY_NAME_DUPLICATE", "categories", "name"),
            ("ANNOTATION_ID_DUPLICATE", "annotations", "id"),
        ):
            entries = self._coco[key]
            repeated = _repeated([entry[name] for entry in entries])
            action = self._findings.add(
                kind,
                repeated,
                lambda number, key=key, name=name, entries=entries: (
                    f"{self._path}: {key}[{number}] has the {name} {entries[number][name]!r} of another"
                ),
            )
            if action == "renumber":
                self._renumber(repeated)
        zero = [number for number, entry in enumerate(self._annotations) if entry["id"] == 0]
        if self._findings.add("ANNOTATION_ID_ZERO", zero, self._where) == "renumber":
            self._renumber(zero)

    def references(self) -> None:
        for kind, target in (("IMAGE_UNKNOWN", self._image), ("CATEGORY_UNKNOWN", self._category)):
            unknown = np.flatnonzero(target < 0)
            key = "image_id" if target is self._image else "category_id"
            self._findings.add(
                kind,
                unknown,
                lambda number, key=key: (
                    f"{self._path}: annotation {self._annotations[number]['id']} has the {key} "
                    f"{self._annotations[number][key]}"
                ),
            )
            self._used[unknown] = False

    def boxes(self) -> None:
        boxes = [entry.get("bbox") for entry in self._annotations]
        valid = np.array(list(map(_is_box, boxes)))
        self._report_boxes("BOX_INVALID", np.flatnonzero(self._used & ~valid))
        self._used &= valid

        numbers = np.flatnonzero(self._used)
        corner, size = np.array([boxes[number] for number in numbers], np.float64).reshape(-1, 2, 2).swapaxes(0, 1)
        limits = np.array([(image["width"], image["height"]) for image in self._images], np.float64)
        limit = limits[self._image[numbers]]
        flat = (size <= _MIN_SIDE).any(axis=1)
        inner = np.clip(corner, 0, limit)
        extent = np.clip(corner + size, 0, limit) - inner
        gone = (extent <= _MIN_SIDE).any(axis=1)
        reaches_out = ((corner < -_TOLERANCE) | (corner + size > limit + _TOLERANCE)).any(axis=1)
        outside = ~flat & (reaches_out | gone)
        if self._report_boxes("BOX_WITHOUT_AREA", numbers[flat]) == "skip":
            self._used[numbers[flat]] = False
        action = self._report_boxes("BOX_OUTSIDE", numbers[outside])
        if action == "skip":
            self._used[numbers[outside]] = False
        if action == "clip":
            clipped = np.hstack([inner, extent])[outside].tolist()
            for number, box in zip(numbers[outside], clipped, strict=True):
                self._change(number, bbox=box)
            self._used[numbers[outside & gone]] = False

    def masks(self) -> None:
        for number in np.flatnonzero(self._used).tolist():
            entry, image = self._annotations[number], self._images[self._image[number]]
            value = entry.get("segmentation")
            inspection = inspect_segmentation(value, bool(entry.get("iscrowd")), image["height"], image["width"])
            if not inspection:
                continue
            usable = inspection.usable
            for kind, found in inspection.problems:
                action = self._findings.add(kind, [number], lambda number, found=found: self._where(number, found))
                if action == "convert":
                    usable = rle_to_polygons(usable)
                elif action == "skip":
                    usable = None
            if usable is None:
                self._used[number] = False
            elif usable is not value:
                self._change(number, segmentation=usable)

    def fields(self) -> None:
        """See to what PaddleDetection and pycocotools read without asking: ``iscrowd`` and ``area``."""
        areas = [entry.get("area") for entry in self._annotations]
        area = np.array([value if is_number(value) else np.nan for value in areas])
        # PaddleDetection leaves out of the training what has no area, whatever the box. In evaluation it only says
        # among which sizes the object counts.
        bad = np.isnan(area) if self._findings.for_evaluation else ~(area > 0)
        bad |= np.array([entry.get("iscrowd") is None for entry in self._annotations])
        numbers = np.flatnonzero(self._used & bad).tolist()

        def describe(number: int) -> str:
            lacking = ["no iscrowd"] * (self._annotations[number].get("iscrowd") is None)
            area = "no area" if areas[number] is None else f"the area {areas[number]}"
            return self._where(number, " and ".join([*lacking, area]))

        action = self._findings.add("FIELD_MISSING", numbers, describe)
        for number in numbers if action == "fill" else ():
            entry = self._annotations[number]
            usable = areas[number] if is_number(areas[number]) and areas[number] > 0 else self._area(number)
            self._change(number, area=usable, iscrowd=int(entry.get("iscrowd") or 0))

    def unused(self, objects: np.ndarray) -> None:
        categories = self._coco["categories"]
        self._findings.add(
            "CATEGORY_UNUSED",
            np.flatnonzero(objects.sum(axis=1) == 0),
            lambda number: f"{self._path}: category {categories[number]['id']} {categories[number]['name']!r}",
        )

    def leave_out_images(self, numbers: Sequence[int]) -> None:
        """Leave out images with their annotations."""
        self._image_used[list(numbers)] = False
        self._used &= self._image_used[self._image]

    # ---- what is used

    def objects(self) -> np.ndarray:
        """Objects, without crowds, of each class by area: int64 [classes, 3]."""
        numbers = [number for number in np.flatnonzero(self._used) if not self._annotations[number].get("iscrowd")]
        areas = [self._annotations[number].get("area") for number in numbers]
        areas = np.array([area if is_number(area) else 0.0 for area in areas])
        counts = np.zeros((len(self._coco["categories"]), 3), np.int64)
        np.add.at(counts, (self._category[numbers], np.searchsorted([_SMALL, _MEDIUM], areas, side="right")), 1)
        return counts

    def cleaned(self) -> dict[str, Any]:
        return {
            **self._coco,
            "images": [image for image, used in zip(self._images, self._image_used, strict=True) if used],
            "annotations": [entry for entry, used in zip(self._annotations, self._used, strict=True) if used],
        }

    # ---- details

    def _where(self, number: int, found: str = "") -> str:
        entry = self._annotations[number]
        image = f"of image {entry['image_id']}"
        if self._image[number] >= 0:
            image += f" ({self._images[self._image[number]]['file_name']})"
        return f"{self._path}: annotation {entry['id']} {image}" + (f" has {found}" if found else "")

    def _report_boxes(self, kind: str, numbers: np.ndarray) -> str:
        def describe(number: int) -> str:
            image = self._images[self._image[number]]
            box = self._annotations[number].get("bbox")
            return self._where(number, f"the box {box} in {image['width']}x{image['height']} pixels")

        return self._findings.add(kind, numbers, describe)

    def _change(self, number: int, **fields: Any) -> None:
        self._annotations[number] = {**self._annotations[number], **fields}

    def _renumber(self, numbers: Sequence[int]) -> None:
        first = max(max(entry["id"] for entry in self._annotations), 0) + 1
        for new, number in enumerate(numbers, first):
            self._change(number, id=new)

    def _area(self, number: int) -> float:
        """Of the mask if it has one that can be used, else of the box."""
        entry, image = self._annotations[number], self._images[self._image[number]]
        value, (height, width) = entry.get("segmentation"), (image["height"], image["width"])
        inspection = inspect_segmentation(value, bool(entry.get("iscrowd")), height, width)
        usable = inspection.usable if inspection else value
        return area_of(usable, height, width) if usable else float(entry["bbox"][2] * entry["bbox"][3])


def _numbers_by_id(entries: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    return {entry["id"]: number for number, entry in enumerate(entries)}


def _repeated(values: Sequence[Any]) -> list[int]:
    """Numbers of the values that were there before."""
    if len(set(values)) == len(values):
        return []
    seen, repeated = set(), []
    for number, value in enumerate(values):
        if value in seen:
            repeated.append(number)
        seen.add(value)
    return repeated


def _is_box(value: Any) -> bool:
    return type(value) is list and len(value) == 4 and all(map(is_number, value))


# ---- images


def _check_images(
    images: Sequence[Mapping[str, Any]],
    folder: Path,
    split: str,
    findings: Findings,
    record: Path | None,
    progress: Progress | None,
) -> list[int]:
    """Look at the images unless they have passed before, and return the numbers of those to leave out."""
    paths = [str(folder / image["file_name"]) for image in images]
    sizes = [(int(image["width"]), int(image["height"])) for image in images]
    passed = CheckRecord(record, split, partial(fingerprint, f"COCO {sizes}", paths)) if record else None
    if passed and passed.has_passed:
        return []
    numbers = range(rank(), len(images), world_size())
    lines = []
    with ThreadPoolExecutor(_THREADS) as pool:
        looks = pool.map(lambda number: _look(paths[number], sizes[number]), numbers)
        for done, (number, problem) in enumerate(zip(numbers, looks, strict=True), 1):
            if problem:
                lines.append(f"{number:09d} {' '.join(problem)}")
            if progress:
                progress(done, len(numbers))
    skipped, done = [], set()
    for line in sorted(gather_lines(lines)):
        number, kind, found = line.split(" ", 2)
        action = findings.add(kind, [int(number)], lambda _, found=found: found)
        done.add(action)
        if action == "skip":
            skipped.append(int(number))
    if passed and done <= {"keep"}:
        passed.add()
    return skipped


def _look(path: str, expected: tuple[int, int]) -> tuple[str, str] | None:
    """The kind of problem that an image has, and what it is."""
    if not os.path.isfile(path):  # noqa: PTH113  (before Python 3.13, Path's raises when the name is too long)
        return "IMAGE_MISSING", f"image {path} does not exist"
    try:
        (width, height), deep = look_at_image(path)
    except UserError as error:
        return "IMAGE_UNREADABLE", str(error).rpartition("; ")[0]  # the remedy is in the table of kinds
    except Exception as error:  # OpenCV has limits of its own
        return "IMAGE_UNREADABLE", f"image {path} cannot be read ({one_line(error)})"
    if (width, height) != expected:
        turned = " (turned by its EXIF orientation)" if is_turned(path) else ""
        said = f"{expected[0]}x{expected[1]}"
        return "IMAGE_SIZE", f"image {path} has {width}x{height} pixels{turned}, the annotations say {said}"
    return ("IMAGE_DEEP", f"image {path}") if deep else None
