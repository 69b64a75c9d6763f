"""Checks every annotation and image of a COCO data set before training.

:mod:`object_detection.coco_file` has checked the structure of the file. The problems of annotations, and what is done
about each, are in :mod:`object_detection.annotation_problems`; those of images and categories are here.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.data.check_record import CheckRecord, fingerprint
from common.data.class_table import column_width, pad
from common.data.image_file import is_turned, look_at_image
from common.errors import UserError, one_line
from common.runtime.distributed import gather_objects, rank, world_size
from object_detection.annotation_problems import ANNOTATION_PROBLEMS, ERROR, Annotation, Context, Problem

__all__ = ["AnnotationReport", "check_annotations"]

_OTHER_PROBLEMS = {
    kind: Problem(kind, *rest)
    for kind, *rest in (
        ("IMAGE_MISSING", "images do not exist", ERROR, "restore it, or take it out of the file"),
        ("IMAGE_UNREADABLE", "images cannot be read", ERROR, "replace it, or take it out of the file"),
        ("IMAGE_SIZE", "images have another size than in the file", ERROR, "correct width, height and the boxes"),
        ("IMAGE_DEEP", "images have more than 8 bits per channel", "the upper 8 are used", "convert it to 8 bits"),
        ("CATEGORY_UNUSED", "categories have no object", "kept", "annotate objects of it, or remove it"),
    )
}
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
        split: ``"train"``; or ``"val"``, for which boxes and masks stay as they are.
        num_classes: of the model.
        masks: whether the model has masks; if not, those of the file are not checked.
        strict: every problem is an error.
        record: file that remembers which images have passed; they are not checked again until they change.
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
    report.annotations = _check_each_annotation(coco, str(path), masks, report)
    if raise_errors:
        report.raise_errors()
    _check_images(coco["images"], Path(image_dir), report, record, progress)
    if not report.problems:  # which may be why a category has no object
        for category, counts in zip(categories, report.count_objects(), strict=True):
            if not counts.any():
                report.add(
                    _OTHER_PROBLEMS["CATEGORY_UNUSED"], f"{path}: category {category['id']} {category['name']!r}"
                )
    if raise_errors:
        report.raise_errors()
    if not report.problems and not report.count_objects().any():
        reasons = "".join(f"; {line}" for line in report.warnings())
        raise UserError(f"{path} has no object for the {split} data; annotate some{reasons}")
    return {**coco, "annotations": report.annotations}, report


@dataclass
class _Finding:
    """How often a problem was found, and the first examples."""

    problem: Problem
    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class AnnotationReport:
    """The content and the problems of an annotation file; printed, a table.

    Attributes:
        split: ``"train"`` or ``"val"``.
        images, categories: of the file.
        num_classes: of the model.
        strict: every problem is an error.
        annotations: those that are used.
        findings: the problems, by kind.
    """

    split: str
    images: Sequence[Mapping[str, Any]]
    categories: Sequence[Mapping[str, Any]]
    num_classes: int
    strict: bool
    annotations: Sequence[Annotation] = ()
    findings: dict[str, _Finding] = field(default_factory=dict)

    def is_error(self, problem: Problem) -> bool:
        return self.strict or problem.policy == ERROR

    def add(self, problem: Problem, example: str) -> None:
        finding = self.findings.setdefault(problem.kind, _Finding(problem))
        finding.count += 1
        if len(finding.examples) < _EXAMPLES:
            finding.examples.append(example)

    @property
    def problems(self) -> list[str]:
        """For each kind of error: how many there are, and the remedy."""
        return [
            f"{problem.kind}: {finding.count:,} {problem.what}; {self._remedy(problem)}"
            for finding in self.findings.values()
            if self.is_error(problem := finding.problem)
        ]

    def warnings(self) -> list[str]:
        """What was done about problems that are not errors, and whether the model has more classes than the data."""
        lines = [
            f"{problem.kind}: {finding.count:,} {problem.what} ({problem.policy}), first {finding.examples[0]}"
            for finding in self.findings.values()
            if not self.is_error(problem := finding.problem)
        ]
        if self.num_classes > len(self.categories):
            lines.append(
                f"the model has {self.num_classes} classes, the {self.split} data {len(self.categories)}; the others "
                "are never learned (num_classes)"
            )
        return lines

    def raise_errors(self) -> None:
        """Raise the first error with the number of others."""
        errors = [finding for finding in self.findings.values() if self.is_error(finding.problem)]
        if errors:
            others = sum(finding.count for finding in errors) - 1
            more = f" (and {others:,} more; -check_data shows them)" if others else ""
            raise UserError(f"{errors[0].examples[0]}; {self._remedy(errors[0].problem)}{more}")

    def count_objects(self) -> np.ndarray:
        """Objects that are used and are not crowds, per class and size, small, medium and large: int64 [classes, 3]."""
        classes = {category["id"]: number for number, category in enumerate(self.categories)}
        counts = np.zeros((len(classes), 3), np.int64)
        for annotation in self.annotations:
            if not annotation["iscrowd"]:
                area = annotation["area"]
                counts[classes[annotation["category_id"]], (area >= _SMALL) + (area >= _MEDIUM)] += 1
        return counts

    def _remedy(self, problem: Problem) -> str:
        return problem.remedy if problem.policy == ERROR else f"{problem.remedy}, or leave out -strict"

    def __str__(self) -> str:
        sizes = np.array([(image["width"], image["height"]) for image in self.images], np.int64)
        (low_width, low_height), (high_width, high_height) = sizes.min(axis=0), sizes.max(axis=0)
        empty = len(self.images) - len({annotation["image_id"] for annotation in self.annotations})
        objects = self.count_objects()
        names = [category["name"] for category in self.categories]
        width = max(5, column_width(names))
        lines = [
            f"{self.split} data: {len(self.images):,} images of {low_width}x{low_height} to {high_width}x{high_height} "
            f"pixels ({empty:,} without objects), {objects.sum():,} objects, "
            f"{len(self.annotations) - objects.sum():,} crowds",
            f"  {'class':>5}  {pad('name', width)}  {'objects':>9}  {'small':>9}  {'medium':>9}  {'large':>9}",
        ]
        lines += [
            f"  {number:>5}  {pad(name, width)}  {sum(counts):>9,}  " + "  ".join(f"{count:>9,}" for count in counts)
            for number, (name, counts) in enumerate(zip(names, objects.tolist(), strict=True))
        ]
        lines += [f"  warning: {line}" for line in self.warnings()]
        lines += [f"  {line}" for line in self.problems]
        for finding in self.findings.values():
            if self.is_error(finding.problem):
                lines += [f"  {example}" for example in finding.examples]
                if finding.count > len(finding.examples):
                    lines.append(f"  and {finding.count - len(finding.examples):,} more {finding.problem.kind}")
        return "\n".join(lines)


def _check_each_annotation(
    coco: Mapping[str, Any], path: str, masks: bool, report: AnnotationReport
) -> list[Annotation]:
    """Search each annotation for all problems, and return the annotations to use."""
    context = Context(
        training=report.split == "train",
        masks=masks,
        images={image["id"]: image for image in coco["images"]},
        category_ids={category["id"] for category in coco["categories"]},
        new_ids=itertools.count(max(0, *(annotation["id"] for annotation in coco["annotations"])) + 1),
    )
    problems = [problem for problem in ANNOTATION_PROBLEMS if masks or not problem.of_masks]
    used = []
    for annotation in coco["annotations"]:
        checked: Annotation | None = annotation
        for problem in problems:
            if found := problem.find(checked, context):
                what, checked = found
                report.add(problem, f"{path}: {_name(annotation, context)} has {what}")
                if report.is_error(problem):
                    checked = None
            if checked is None:
                break
        else:
            used.append(checked)
    return used


def _name(annotation: Annotation, context: Context) -> str:
    image = context.images.get(annotation["image_id"])
    file = f" ({image['file_name']})" if image else ""
    return f"annotation {annotation['id']} of image {annotation['image_id']}{file}"


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
    passed = CheckRecord(record, report.split, partial(fingerprint, f"COCO {sizes}", paths)) if record else None
    if passed and passed.has_passed:
        return
    numbers = range(rank(), len(images), world_size())
    problems = []
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda number: _check_image(paths[number], sizes[number]), numbers)
        for number, problem in zip(numbers, found, strict=True):
            if problem:
                problems.append((number, *problem))
            progress()
    kinds = set()
    for _, kind, example in sorted(itertools.chain(*gather_objects(problems))):
        report.add(_OTHER_PROBLEMS[kind], example)
        kinds.add(kind)
    if passed and not any(report.is_error(_OTHER_PROBLEMS[kind]) for kind in kinds):
        passed.add()


def _check_image(path: str, expected: tuple[int, int]) -> tuple[str, str] | None:
    """The kind of problem that an image has, and what was found."""
    if not os.path.isfile(path):  # noqa: PTH113  (before Python 3.13, Path's raises when the name is too long)
        return "IMAGE_MISSING", f"image {path} does not exist"
    try:
        (width, height), deep = look_at_image(path)
    except UserError as error:
        return "IMAGE_UNREADABLE", str(error).rpartition("; ")[0]  # without the remedy
    except Exception as error:  # OpenCV has limits of its own
        return "IMAGE_UNREADABLE", f"image {path} cannot be read ({one_line(error)})"
    if (width, height) != expected:
        turned = " (turned by its EXIF orientation)" if is_turned(path) else ""
        said = f"{expected[0]}x{expected[1]}"
        return "IMAGE_SIZE", f"image {path} has {width}x{height} pixels{turned}, the annotations say {said}"
    return ("IMAGE_DEEP", f"image {path}") if deep else None
