"""A check of every image and mask before training, so that it neither fails after hours nor learns wrong labels."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from paddleseg.datasets import ADE20K, Dataset

from common.data import check_record
from common.data.channel_image import look_at_channels
from common.data.check_record import CheckRecord
from common.data.class_table import class_table
from common.data.exif_orientation import exif_orientation
from common.data.image_file import check_header, open_image
from common.errors import UserError, one_line
from common.runtime.distributed import gather_objects, gather_rows, rank, sum_over_ranks, world_size
from semantic_segmentation.images import EIGHT_BIT_TRANSFORMS

__all__ = ["DataReport", "check_dataset", "check_once", "check_pair", "far_warning", "farthest", "fingerprint"]

_THREADS = 8
_FAR = 50  # of normalized pixels, which are usually between -5 and 5
_LISTED = 10  # classes and values that a message names

Progress = Callable[[int, int], None]


@dataclass
class DataReport:
    """The result of a check; ``str`` gives a table of the classes, warnings and problems.

    Attributes:
        split: ``"train"`` or ``"val"``.
        class_names: of all classes.
        num_images: pairs of image and mask.
        sizes: smallest and largest width and height, such as ``30x10 to 50x20``; empty if no pair is usable.
        pixels: of each class: int64 [classes].
        images: that contain each class: int64 [classes].
        ignored: ignored pixels.
        deep_images: images with 16 bits per channel.
        turned_images: images with an EXIF orientation other than 1.
        rounding: names of transforms that round to 8 bits.
        farthest: magnitude of normalized floating-point pixels.
        problems: one line for each pair that cannot be used.
    """

    split: str
    class_names: list[str]
    num_images: int
    sizes: str
    pixels: np.ndarray
    images: np.ndarray
    ignored: int
    deep_images: int = 0
    turned_images: int = 0
    rounding: list[str] = field(default_factory=list)
    farthest: float = 0.0
    problems: list[str] = field(default_factory=list)

    def warnings(self) -> list[str]:
        """Return what looks wrong but may be intended."""
        lines = []
        absent = [f"{number} {self.class_names[number]}" for number in np.flatnonzero(self.pixels == 0)]
        if absent and self.pixels.any():  # otherwise no mask could be read, which is a problem of its own
            lines.append(f"no pixel of the {self.split} data is of class {_first(absent)}")
        if self.ignored and np.count_nonzero(self.pixels) == 1 < len(self.pixels):
            lines.append(
                f"except for ignored pixels, the {self.split} data has only one class: if the masks are drawn in 0 and "
                "255, write the class numbers 0 and 1 instead"
            )
        if self.deep_images:
            lines.append(
                f"{self.deep_images} images of the {self.split} data have 16 bits per channel, of which 65535 is 1 for "
                "Normalize: if they use less of the range, set mean and std to theirs"
            )
        if self.deep_images and self.rounding:
            names = ", ".join(self.rounding)
            lines.append(f"these transforms of the {self.split} data round 16 bits to 8: {names}; remove them")
        lines += far_warning(self.farthest, f"images of the {self.split} data")
        if self.turned_images:
            lines.append(
                f"{self.turned_images} images of the {self.split} data are turned or mirrored by their EXIF "
                "orientation: their masks must be drawn on the turned image"
            )
        return lines

    def __str__(self) -> str:
        sizes = f"of {self.sizes} pixels" if self.sizes else "of which none can be used"
        total = max(int(self.pixels.sum()) + self.ignored, 1)
        table = class_table(
            [f"{number} {name}" for number, name in enumerate(self.class_names)],
            {"pixels": self.pixels, "share, %": 100.0 * self.pixels / total, "images": self.images},
            f"{self.split} data: {self.num_images:,} images {sizes}, "
            f"{100 * self.ignored / total:.2f} % of the pixels ignored",
        )
        return "\n".join([table, *(f"warning: {line}" for line in self.warnings()), *self.problems])


def far_warning(distance: float, images: str) -> list[str]:
    """A warning if normalized floating-point pixels are far from those that a model is trained on.

    Args:
        distance: from :func:`farthest`.
        images: which ones, for the message.
    """
    if distance <= _FAR:
        return []
    return [
        f"floating-point {images} differ from the mean of Normalize by up to {distance:,.0f} times its std: they are "
        "not divided by 255, so set mean and std to theirs"
    ]


def check_dataset(dataset: Dataset, split: str, progress: Progress | None = None, list_all: bool = False) -> DataReport:
    """Check every pair of image and mask; a collective operation, in which each rank checks a share of them.

    Masks are decoded and all their values compared with the classes; images are checked by
    :func:`common.data.channel_image.look_at_channels`.

    Args:
        dataset: from :func:`semantic_segmentation.datasets.build_dataset`.
        split: ``"train"`` or ``"val"``, for messages.
        progress: called after each pair with the numbers of pairs that this rank has checked and has to check.
        list_all: return the problems instead of raising.

    Raises:
        UserError: on all ranks, the first problem and the number of others.
    """
    classes = dataset.num_classes
    problems, found = [], []
    numbers = range(rank(), len(dataset.file_list), world_size())
    with ThreadPoolExecutor(_THREADS) as pool:
        checked = pool.map(partial(check_pair, dataset), [dataset.file_list[number] for number in numbers])
        for done, (number, result) in enumerate(zip(numbers, checked, strict=True), 1):
            if isinstance(result, str):
                problems.append((number, result))
            else:
                found.append(result)
            if progress:
                progress(done, len(numbers))

    problems = [problem for _, problem in sorted(itertools.chain(*gather_objects(problems)))]
    found = np.array(found, np.float64).reshape(-1, classes + 6)
    counts, sizes, marks = found[:, : classes + 1], found[:, classes + 1 : -2], found[:, -2:]
    sums = [*counts.sum(axis=0), *(counts[:, :-1] > 0).sum(axis=0), *marks.sum(axis=0)]
    totals = sum_over_ranks(sums).astype(np.int64)
    lows = gather_rows(sizes.min(axis=0, initial=2**31)).min(axis=0)
    highs = gather_rows(sizes.max(axis=0, initial=0)).max(axis=0)
    if not problems and not totals[:classes].any():
        problems = [f"every pixel of the {split} data is ignored ({dataset.ignore_index}); correct the masks"]
    if problems and not list_all:
        more = f" (and {len(problems) - 1} more; -check_data lists them all)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    return DataReport(
        split=split,
        class_names=dataset.class_names,
        num_images=len(dataset.file_list),
        sizes="{:.0f}x{:.0f} to {:.0f}x{:.0f}".format(*lows[:2], *highs[:2]) if highs.any() else "",
        pixels=totals[:classes],
        images=totals[classes + 1 : -2],
        ignored=int(totals[classes]),
        deep_images=int(totals[-2]),
        turned_images=int(totals[-1]),
        farthest=float(highs[2]),
        rounding=[name for name in _transform_names(dataset) if name in EIGHT_BIT_TRANSFORMS],
        problems=problems,
    )


def check_once(dataset: Dataset, split: str, record: Path, progress: Progress | None = None) -> list[str]:
    """Run :func:`check_dataset` unless the same files have passed it before; a collective operation.

    Args:
        dataset, split, progress: see :func:`check_dataset`.
        record: file of :class:`common.data.check_record.CheckRecord`.

    Returns:
        The warnings; if the check was skipped, those of the check before.

    Raises:
        UserError: as :func:`check_dataset`, or the record cannot be written.
    """
    passed = CheckRecord(record, split, partial(fingerprint, dataset))
    if passed.has_passed:
        return passed.warnings
    warnings = check_dataset(dataset, split, progress).warnings()
    passed.add(warnings)
    return warnings


def fingerprint(dataset: Dataset) -> str:
    """Hash everything that the result of the check depends on: settings, paths, sizes and times of the files."""
    names = f"{_transform_names(dataset)} {_normalization(dataset.transforms.transforms)}"
    rules = f"{type(dataset).__name__} {dataset.num_classes} {dataset.ignore_index} {dataset.img_channels} {names}"
    return check_record.fingerprint(rules, (path for pair in dataset.file_list for path in pair))


def _normalization(transforms: Sequence) -> tuple[list[float], list[float]]:
    """Mean and std of Normalize; of none, 0 and 1."""
    for transform in transforms:
        if hasattr(transform, "mean") and hasattr(transform, "std"):
            return np.ravel(transform.mean).tolist(), np.ravel(transform.std).tolist()
    return [0.0], [1.0]


def farthest(transforms: Sequence, extremes: np.ndarray | None) -> float:
    """The magnitude of normalized floating-point pixels; 0 of others.

    Args:
        transforms: of PaddleSeg.
        extremes: see :func:`common.data.channel_image.look_at_channels`.
    """
    mean, std = _normalization(transforms)
    return 0.0 if extremes is None else float(np.abs((extremes - mean) / std).max())


def _transform_names(dataset: Dataset) -> list[str]:
    return [type(transform).__name__ for transform in dataset.transforms.transforms]


# ---- one pair


def check_pair(dataset: Dataset, pair: Sequence[str]) -> list[float] | str:
    """Check an image and its mask.

    Returns:
        The result of :func:`_count_classes`, width, height, :func:`farthest`, and whether the image has more than 8
        bits per channel, and is turned by its EXIF orientation; or the reason why the pair cannot be used.
    """
    image, mask = pair
    try:
        if os.path.realpath(image) == os.path.realpath(mask):
            raise UserError(f"{image} is listed as an image and as its own mask; correct the list")
        (width, height, is_deep, orientation), extremes = look_at_channels(image, dataset.img_channels)
        check_header(mask)
        pixels = _read_mask(mask, isinstance(dataset, ADE20K))
        if pixels.shape != (height, width):
            turned = " (turned by its EXIF orientation)" if orientation > 1 else ""
            raise UserError(
                f"image {image} has {width}x{height} pixels{turned}, its mask {mask} {pixels.shape[1]}x"
                f"{pixels.shape[0]}; make them the same size"
            )
        distance = farthest(dataset.transforms.transforms, extremes)
        return [*_count_classes(dataset, mask, pixels), width, height, distance, is_deep, orientation > 1]
    except UserError as error:
        return str(error)
    except Exception as error:  # Pillow's decoders raise nearly any type on damaged files
        return (
            f"mask {mask} of image {image} cannot be read ({one_line(error)}); replace it, or remove the image from "
            "the data"
        )


def _read_mask(path: str, from_ade20k: bool) -> np.ndarray:
    with open_image(path) as mask:
        # ADE20K's 0 becomes the ignored 255 in 8 bits only. PaddleSeg pads masks of 1 bit with class 1.
        modes = ("L", "P") if from_ade20k else ("L", "P", "I;16", "I")
        if mask.mode not in modes or mask.format == "JPEG":  # a JPEG does not keep the class numbers
            raise UserError(
                f"mask {path} is a {mask.format} image of mode {mask.mode}; save it as an 8-bit PNG with one class "
                "number per pixel (gray or palette)"
            )
        if mask.format != "TIFF" and exif_orientation(mask) > 1:  # of TIFF files, Pillow applies it
            raise UserError(
                f"mask {path} has an EXIF orientation, which is not applied to masks; save it without, drawn on the "
                "turned image"
            )
        return np.asarray(mask)


def _count_classes(dataset: Dataset, path: str, pixels: np.ndarray) -> np.ndarray:
    """Count the pixels of each class and, last, the ignored ones: int64 [classes + 1]."""
    classes, ignored = dataset.num_classes, dataset.ignore_index
    values, counts = np.unique(pixels, return_counts=True)
    values = values.astype(np.int64)
    labels = (values - 1) % 256 if isinstance(dataset, ADE20K) else values
    wrong = (labels != ignored) & ((labels < 0) | (labels >= classes))
    if wrong.any():
        found = [f"{value} ({count:,} pixels)" for value, count in zip(values[wrong], counts[wrong], strict=True)]
        rule = (
            f"classes are 0 to {classes - 1}, and {ignored} is ignored; correct the mask, num_classes or ignore_index"
        )
        if isinstance(dataset, ADE20K):
            rule = f"ADE20K's classes are 1 to {classes}, and 0 is ignored; take the original annotations"
        raise UserError(f"mask {path} has the value {_first(found)}, but {rule}")
    totals = np.zeros(classes + 1, np.int64)
    np.add.at(totals, np.where(labels == ignored, classes, labels), counts)
    return totals


def _first(items: Sequence[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
