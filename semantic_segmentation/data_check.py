"""A look at every image and mask before training, which would otherwise fail after hours or learn from wrong labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from paddleseg.datasets import ADE20K, Dataset
from PIL import Image

from common.data import check_record
from common.data.check_record import CheckRecord
from common.data.class_table import column_width, pad
from common.data.image_file import check_name, is_turned, look_at_image
from common.errors import UserError, one_line
from common.runtime.distributed import gather_lines, gather_rows, rank, sum_over_ranks, world_size

__all__ = ["DataReport", "check_dataset", "check_once", "fingerprint"]

_THREADS = 8
_LISTED = 10  # classes and values that a message names

Progress = Callable[[int, int], None]


@dataclass
class DataReport:
    """What the masks of a data set hold; printed, a table.

    Attributes:
        split: what the data is called: ``"train"`` or ``"val"``.
        class_names: of the classes.
        num_images: pairs of image and mask.
        pixels: of each class: int64 [classes].
        images: that contain each class: int64 [classes].
        ignored: pixels of no class.
        smallest, largest: width and height; either may be those of different images.
        deep_images: with more than 8 bits a channel.
        problems: one line for each pair that cannot be used; empty unless all were asked for.
    """

    split: str
    class_names: list[str]
    num_images: int
    pixels: np.ndarray
    images: np.ndarray
    ignored: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    deep_images: int = 0
    problems: list[str] = field(default_factory=list)

    def warnings(self) -> list[str]:
        """What is suspicious but may be meant."""
        lines = []
        absent = [f"{number} {self.class_names[number]}" for number in np.flatnonzero(self.pixels == 0)]
        if absent:
            more = f" and {len(absent) - _LISTED} more" if len(absent) > _LISTED else ""
            lines.append(f"no pixel of the {self.split} data is of class {', '.join(absent[:_LISTED])}{more}")
        if self.ignored and np.count_nonzero(self.pixels) == 1:
            lines.append(
                f"but for ignored pixels, the {self.split} data has one class only: if the masks are drawn in 0 and "
                "255, write the numbers 0 and 1 instead"
            )
        if self.deep_images:
            lines.append(
                f"{self.deep_images} images of the {self.split} data have 16 bits a channel, of which PaddleSeg "
                "keeps the upper 8: convert them to 8 bits yourself unless they use the whole range"
            )
        return lines

    def __str__(self) -> str:
        total = max(int(self.pixels.sum()) + self.ignored, 1)
        (low_width, low_height), (high_width, high_height) = self.smallest, self.largest
        width = max(5, column_width(self.class_names))
        lines = [
            f"{self.split} data: {self.num_images:,} images of {low_width}x{low_height} to {high_width}x{high_height} "
            f"pixels, {100 * self.ignored / total:.2f} % of the pixels ignored",
            f"  {'class':>5}  {pad('name', width)}  {'pixels':>15}  {'share':>8}  {'images':>8}",
        ]
        lines += [
            f"  {number:>5}  {pad(name, width)}  {pixels:>15,}  {100 * pixels / total:>6.2f} %  {images:>8,}"
            for number, (name, pixels, images) in enumerate(
                zip(self.class_names, self.pixels.tolist(), self.images.tolist(), strict=True)
            )
        ]
        return "\n".join(lines + [f"  warning: {line}" for line in self.warnings()] + self.problems)


def check_dataset(dataset: Dataset, split: str, progress: Progress | None = None, list_all: bool = False) -> DataReport:
    """Look at every pair of image and mask; a collective operation that shares them out among the ranks.

    Masks are decoded, and all their values compared with the classes; images are looked at as
    :func:`common.data.image_file.look_at_image` does.

    Args:
        dataset: from :func:`semantic_segmentation.datasets.build_dataset`.
        split: what to call the data: ``"train"`` or ``"val"``.
        progress: is told after each pair how many this rank has looked at, and how many it has to.
        list_all: return the problems instead of raising.

    Raises:
        UserError: on all ranks, the first problem and the number of others.
    """
    classes = dataset.num_classes
    counts, images = np.zeros(classes + 1, np.int64), np.zeros(classes, np.int64)
    sizes, deep_images, problems = [], 0, []
    numbers = range(rank(), len(dataset.file_list), world_size())
    pairs = [dataset.file_list[number] for number in numbers]
    with ThreadPoolExecutor(_THREADS) as pool:
        for done, found in enumerate(pool.map(partial(_inspect_or_explain, dataset), pairs), 1):
            if isinstance(found, str):
                problems.append(f"{numbers[done - 1]:09d} {found}")
            else:
                counts += found.counts
                images += found.counts[:-1] > 0
                sizes.append(found.size)
                deep_images += found.deep
            if progress:
                progress(done, len(pairs))

    problems = [line.partition(" ")[2] for line in sorted(gather_lines(problems))]
    totals = sum_over_ranks([*counts, *images, deep_images]).astype(np.int64)
    if not problems and not totals[:classes].any():
        problems = [f"every pixel of the {split} data is ignored ({dataset.ignore_index}); correct the masks"]
    if problems and not list_all:
        more = f" (and {len(problems) - 1} more; -check_data lists them all)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    smallest, largest = _size_range(sizes)
    return DataReport(
        split=split,
        class_names=list(getattr(dataset, "class_names", map(str, range(classes)))),
        num_images=len(dataset.file_list),
        pixels=totals[:classes],
        images=totals[classes + 1 : -1],
        ignored=int(totals[classes]),
        smallest=smallest,
        largest=largest,
        deep_images=int(totals[-1]),
        problems=problems,
    )


def check_once(dataset: Dataset, split: str, record: Path, progress: Progress | None = None) -> DataReport | None:
    """:func:`check_dataset`, unless the same files have passed it before; a collective operation.

    Args:
        record: file of what has passed; see :class:`common.data.check_record.CheckRecord`.

    Returns:
        The report, or None where the data has passed before.

    Raises:
        UserError: as :func:`check_dataset`, or the record cannot be written.
    """
    passed = CheckRecord(record, split, partial(fingerprint, dataset))
    if passed.has_passed:
        return None
    report = check_dataset(dataset, split, progress)
    passed.add()
    return report


def fingerprint(dataset: Dataset) -> str:
    """Of all that the outcome of the check depends on: rules, classes and files."""
    rules = f"{type(dataset).__name__} {dataset.num_classes} {dataset.ignore_index}"
    return check_record.fingerprint(rules, (path for pair in dataset.file_list for path in pair))


# ---- one pair


class _Found(NamedTuple):
    counts: np.ndarray  # pixels of each class, then ignored ones: int64 [classes + 1]
    size: tuple[int, int]  # width, height
    deep: bool  # more than 8 bits a channel


def _inspect_or_explain(dataset: Dataset, pair: Sequence[str]) -> _Found | str:
    try:
        return _inspect(dataset, *pair)
    except UserError as error:
        return str(error)
    except Exception as error:
        return f"image {pair[0]} or its mask {pair[1]} cannot be read ({one_line(error)}); replace it"


def _inspect(dataset: Dataset, image: str, mask: str) -> _Found:
    check_name(image)
    size, deep = look_at_image(image)
    values, counts, mask_size = _read_mask(mask, image, isinstance(dataset, ADE20K))
    if size != mask_size:
        (width, height), (mask_width, mask_height) = size, mask_size
        turned = " (turned by its EXIF orientation)" if is_turned(image) else ""
        raise UserError(
            f"image {image} has {width}x{height} pixels{turned}, its mask {mask} {mask_width}x{mask_height}; "
            "make them the same size, pixel on pixel"
        )
    return _Found(_count_classes(dataset, mask, values, counts), size, deep)


def _read_mask(path: str, image: str, from_ade20k: bool) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """The values of a mask, their numbers of pixels, and the mask's width and height."""
    if not Path(path).is_file():
        raise UserError(f"mask {path} of image {image} does not exist; restore it, or take the image out of the data")
    try:
        with Image.open(path) as mask:
            _check_kind(path, mask, from_ade20k)
            if mask.mode in ("L", "P"):
                histogram = np.array(mask.histogram(), np.int64)
                values = np.flatnonzero(histogram)
                return values, histogram[values], mask.size
            values, counts = np.unique(np.asarray(mask), return_counts=True)
            return values.astype(np.int64), counts, mask.size
    except UserError:
        raise
    except Exception as error:  # on broken data Pillow's decoders raise nearly any type
        raise UserError(f"mask {path} is damaged ({one_line(error)}); replace it") from error


def _check_kind(path: str, mask: Image.Image, from_ade20k: bool) -> None:
    remedy = "save it as an 8-bit PNG with one class number a pixel (grey or palette)"
    if mask.format == "JPEG":
        raise UserError(f"mask {path} is a JPEG, which does not keep the class numbers; {remedy}")
    if mask.mode == "1":
        raise UserError(f"mask {path} has 1 bit a pixel, which PaddleSeg pads with class 1; {remedy}")
    # ADE20K's 0 becomes the ignored 255 in 8 bits only.
    if mask.mode not in (("L", "P") if from_ade20k else ("L", "P", "I;16", "I")):
        kind = {"I;16": "16-bit", "I": "32-bit", "F": "floating-point"}.get(mask.mode, f"colour ({mask.mode})")
        raise UserError(f"mask {path} is a {kind} image, not class numbers; {remedy}")


def _count_classes(dataset: Dataset, path: str, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    classes, ignored = dataset.num_classes, dataset.ignore_index
    labels = (values - 1) % 256 if isinstance(dataset, ADE20K) else values
    wrong = (labels != ignored) & ((labels < 0) | (labels >= classes))
    if wrong.any():
        found = [f"{value} ({count:,} pixels)" for value, count in zip(values[wrong], counts[wrong], strict=True)]
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        rule = f"classes are 0 to {classes - 1}, and {ignored} is ignored"
        remedy = "correct the mask, num_classes or ignore_index"
        if isinstance(dataset, ADE20K):
            rule, remedy = f"ADE20K's classes are 1 to {classes}, and 0 is ignored", "take the original annotations"
        raise UserError(f"mask {path} holds the value {', '.join(found[:_LISTED])}{more}, but {rule}; {remedy}")
    totals = np.zeros(classes + 1, np.int64)
    np.add.at(totals, np.where(labels == ignored, classes, labels), counts)
    return totals


def _size_range(sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Smallest and largest width and height over all ranks; 0 where no image could be looked at."""
    own = np.array(sizes or [(0, 0)])
    rows = gather_rows([len(sizes), *own.min(axis=0), *own.max(axis=0)])
    rows = rows[rows[:, 0] > 0, 1:].astype(int)
    if not len(rows):
        return (0, 0), (0, 0)
    return tuple(rows[:, :2].min(axis=0).tolist()), tuple(rows[:, 2:].max(axis=0).tolist())
