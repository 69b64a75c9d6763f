"""What a data set of labeled images is, and those whose images are in files or in memory."""

from __future__ import annotations

import io
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from common.data.class_names import MAX_CLASSES
from common.data.image_file import deep_image_warning, load_rgb
from common.errors import UserError, missing_hint

__all__ = ["ArrayDataset", "Dataset", "FileDataset", "check_labels", "class_count"]


class Dataset(ABC):
    """Labeled images.

    Attributes:
        labels: int64 [n].
        class_names: list of str, or None if the source has no class names.
        num_classes: at least ``labels.max() + 1``.
        notes: further warnings.
        valid_labels: int64 [n, m], what counts as right in an evaluation instead of ``labels``, see
            :func:`image_classification.valid_labels.read_valid_labels`; or None.
    """

    notes: Sequence[str] = ()
    valid_labels: np.ndarray | None = None

    def __init__(self, labels: np.ndarray, class_names: list[str] | None, num_classes: int):
        self.labels = labels
        self.class_names = class_names
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def load(self, index: int, min_size: int | None = None) -> Image.Image:
        """Decode one image, see :func:`common.data.image_file.load_rgb`.

        Args:
            index: position in the data set.
            min_size: allow a smaller JPEG, for training only.

        Returns:
            An 8-bit RGB image.

        Raises:
            UserError: the image is missing or cannot be decoded.
        """

    @abstractmethod
    def describe(self, index: int) -> str:
        """Return the origin of an image, for messages."""

    @abstractmethod
    def names(self) -> np.ndarray:
        """Return the identity of each image, which does not depend on the place of the data: bytes [n]."""

    def warnings(self) -> list[str]:
        """Return what looks wrong but may be intended."""
        return list(self.notes)


class FileDataset(Dataset):
    """Images in files.

    Args:
        root: folder that ``names`` are relative to.
        names: path of each image.
        labels, class_names, num_classes: see :class:`Dataset`.
        list_name: name of the list file, if there is one.
        lines: int64 [n], line of each image in the list file.
    """

    def __init__(
        self,
        root: Path,
        names: list[str],
        labels: np.ndarray,
        class_names: list[str] | None,
        num_classes: int,
        list_name: str | None = None,
        lines: np.ndarray | None = None,
    ):
        super().__init__(labels, class_names, num_classes)
        self._root = root
        # An array, because reference counts of a million str objects would copy them into every forked worker.
        self._names = np.array([os.fsencode(name) for name in names])
        self._list_name = list_name
        self._lines = lines

    def path(self, index: int) -> Path:
        return self._root / os.fsdecode(bytes(self._names[index]))

    def source(self, index: int) -> Path | io.BytesIO:
        """Return the path of an image, or its content where it is no file of its own.

        Raises:
            UserError: the content cannot be read.
        """
        return self.path(index)

    def describe(self, index: int) -> str:
        if self._list_name is None:
            return str(self.path(index))
        return f"{self.path(index)} ({self._list_name} line {self._lines[index]})"

    def names(self) -> np.ndarray:
        """Return the paths of the images, relative to the root."""
        return self._names

    def load(self, index: int, min_size: int | None = None) -> Image.Image:
        try:
            return load_rgb(self.source(index), min_size)
        except FileNotFoundError as error:
            raise self._missing(index) from error
        except UserError as error:
            raise UserError(f"cannot read image {self.describe(index)}: {error}") from error

    def warnings(self) -> list[str]:
        """Look for images of more than 8 bits per channel among up to 100."""
        warning = deep_image_warning(len(self), self.source, self.describe)
        return [*self.notes, *([warning] if warning else [])]

    def check_exist(self) -> None:
        """Check that the first, the last and some random files exist; to check all takes long on network disks.

        Raises:
            UserError: one of these files is missing.
        """
        indices = np.arange(len(self))
        sample = np.random.default_rng(0).choice(indices, min(len(self), 1000), replace=False)
        for index in np.unique(np.concatenate([indices[:100], indices[-100:], sample])):
            if not self.path(index).is_file():
                raise self._missing(index)

    def _missing(self, index: int) -> UserError:
        return UserError(
            f"image file missing: {self.describe(index)}; restore it, or check -data_path and the list of images"
            f"{missing_hint(self.path(index))}"
        )


class ArrayDataset(Dataset):
    """Images held in memory.

    Args:
        images: uint8 [n, height, width], gray.
        labels, class_names, num_classes: see :class:`Dataset`.
        source: origin of the images, for ``describe``.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, class_names: list[str] | None, num_classes: int, source: str
    ):
        super().__init__(labels, class_names, num_classes)
        self._images = images
        self._source = source

    def describe(self, index: int) -> str:
        return f"{self._source} image {index}"

    def names(self) -> np.ndarray:
        """Return the number and the CRC-32 of the pixels of each image."""
        return np.array([b"%d-%08x" % (index, zlib.crc32(image)) for index, image in enumerate(self._images)])

    def load(self, index: int, min_size: int | None = None) -> Image.Image:
        return Image.fromarray(self._images[index]).convert("RGB")


def class_count(num_classes: int | None, class_names: list[str] | None, labels: np.ndarray, source: str | Path) -> int:
    """Decide the number of classes: that of the class names, else of the model, else of the labels."""
    if class_names is None:
        count = int(labels.max()) + 1 if num_classes is None else num_classes
        if count > MAX_CLASSES:
            what = "the largest label" if num_classes is None else "MODEL.NUM_CLASSES"
            raise UserError(f"{source}: {count:,} classes, more than {MAX_CLASSES:,}; correct {what}")
        return count
    if num_classes not in (None, len(class_names)):
        raise UserError(
            f"{source} names {len(class_names)} classes but the model has {num_classes}: "
            f"use data of the model's classes, or train with MODEL.NUM_CLASSES {len(class_names)}"
        )
    return len(class_names)


def check_labels(labels: np.ndarray, num_classes: int, where: Callable[[int], str]) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        first = wrong[0]
        raise UserError(
            f"{where(first)}: label {labels[first]} is outside 0..{num_classes - 1} for {num_classes} classes: "
            "correct the label or MODEL.NUM_CLASSES"
        )
