"""The problems that annotations and images of a COCO data set can have, and the report of those that were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from common.data.class_table import class_table
from common.errors import UserError

__all__ = ["ERROR", "PROBLEMS", "Annotation", "AnnotationReport"]

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

_EXAMPLES = 10  # of each kind, that a report shows
_SMALL, _MEDIUM = 32**2, 96**2  # pixels; COCO's limits between small, medium and large objects


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
