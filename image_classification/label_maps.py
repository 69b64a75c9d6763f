"""Label maps of a data set in files: for each cell of an image, its most probable classes.

A folder contains ``n`` maps of ``height x width`` cells with ``top`` classes each, readable with NumPy alone:

    label_maps.json  the fields of :class:`LabelMapInfo`
    images.npy       bytes [n], the identity of each image (``Dataset.names``)
    classes.npy      uint16 [n, height, width, top]
    scores.npy       float16 [n, height, width, top], the probabilities of these classes

The cells divide the whole image evenly, in row-major order from its top left corner. The rest of the probability, 1
minus the scores, is spread evenly over the other classes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from common.data.class_names import check_class_order, renamed_classes
from common.errors import UserError, one_line
from common.runtime.regular_file import open_regular
from common.schema import Count, Range, Text, check_value, read_json
from common.training.config import MAX_SIDE
from image_classification.dataset_types import Dataset
from image_classification.label_map_alignment import TOKEN_STRIDE

__all__ = ["LabelMapInfo", "LabelMaps", "create_label_maps"]

FORMAT = 1
_ARRAYS = {"classes": np.uint16, "scores": np.float16}
_Count = Annotated[int, Range(1, 2**24)]  # looking names up takes 26 bytes of memory for each
_Size = Annotated[int, Range(1, 2**53)]
_Side = Annotated[int, Range(1, MAX_SIDE // TOKEN_STRIDE)]  # of a map
_LONGEST_NAME = 4096  # bytes; each image of the data set takes as many while its map is looked for
_ROUNDING = 2.0**-10  # by which the float16 probabilities of a cell may exceed 1
_AGAIN = "make the label maps again with tools/make_label_maps.py"


@dataclass(frozen=True)
class LabelMapInfo:
    """Metadata of a folder of label maps.

    Attributes:
        images, height, width, top: sizes of the arrays.
        num_classes: classes of the data set.
        class_names: their names, or None.
        model, weights, sha256: of the annotator: its variant, the file of its weights, and the SHA-256 of the file.
        image_size: side in pixels of the square that the annotator's images were resized to.
        format: version of this format.
    """

    images: _Count
    height: _Side
    width: _Side
    top: _Size
    num_classes: Count
    class_names: list[str] | None
    model: str
    weights: Text
    sha256: str
    image_size: Count
    format: Count = FORMAT

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of ``classes`` and ``scores``."""
        return self.images, self.height, self.width, self.top

    def __str__(self) -> str:
        return (
            f"{self.images} maps of {self.height}x{self.width} cells, top {self.top} of {self.num_classes} classes, by "
            f"{self.model} ({self.weights}, SHA-256 {self.sha256[:12]}...) at {self.image_size}x{self.image_size}"
        )


@contextmanager
def create_label_maps(folder: Path, info: LabelMapInfo, names: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Create a folder of label maps under a temporary name, which is renamed when the ``with`` block ends.

    After an error, nothing is left. The space on the disk is reserved at once.

    Args:
        folder: to create.
        info: the metadata.
        names: ``Dataset.names`` of the images.

    Yields:
        The arrays ``classes`` and ``scores``, which the block fills.

    Raises:
        UserError: the folder or the temporary one exists, or there are more than 65536 classes.
        OSError: it cannot be written.
    """
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists; remove it, or give another -out")
    if info.num_classes > np.iinfo(np.uint16).max + 1:
        raise UserError(f"label maps can have {np.iinfo(np.uint16).max + 1} classes, not {info.num_classes}")
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        partial.mkdir(parents=True)
    except FileExistsError as error:
        raise UserError(
            f"{partial} exists; another process may be writing it. Remove it if it is left of a killed one"
        ) from error
    try:
        np.save(partial / "images.npy", names)
        arrays = {name: _create_array(partial / f"{name}.npy", dtype, info.shape) for name, dtype in _ARRAYS.items()}
        yield arrays
        for array in arrays.values():
            array.flush()
        (partial / "label_maps.json").write_text(f"{json.dumps(asdict(info), indent=2)}\n", encoding="utf-8")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(folder)


def _create_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """Create a file of zeros that is mapped into memory."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # else a disk that becomes full kills the process, by SIGBUS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


class LabelMaps:
    """The label maps of the images of a data set.

    The files are checked at once, as far as possible without reading all maps; a map is checked when it is read.

    Args:
        folder: of the maps.
        dataset: the images; each must have a map, and the folder may have more.
        num_classes: of the model.

    Attributes:
        info: the metadata.
        renamed: from :func:`common.data.class_names.renamed_classes`.

    Raises:
        UserError: a file is missing or damaged, an image has no map, or the classes differ.
    """

    def __init__(self, folder: str | Path, dataset: Dataset, num_classes: int):
        self._folder, self._dataset = Path(folder), dataset
        self.info = _read_info(self._folder)
        if self.info.num_classes != num_classes:
            raise UserError(
                f"{self._folder} has labels of {self.info.num_classes} classes, but the model has {num_classes}; make "
                "them with a model for the same classes"
            )
        check_class_order(dataset.class_names, self.info.class_names, "the training data", str(self._folder))
        self.renamed = renamed_classes(dataset.class_names, self.info.class_names, "the label maps")
        names = _read_array(self._folder, "images", np.dtype("S"), (self.info.images,))
        if names.dtype.itemsize > _LONGEST_NAME:
            raise UserError(f"{self._folder}: images.npy has names of {names.dtype.itemsize} bytes; {_AGAIN}")
        self._rows = self._find(names, dataset.names())
        self._classes, self._scores = (
            _read_array(self._folder, name, np.dtype(dtype), self.info.shape) for name, dtype in _ARRAYS.items()
        )

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the map of an image of the data set.

        Returns:
            classes, int64 [height * width, top], and their probabilities, float32 of the same shape.

        Raises:
            UserError: the map is damaged.
        """
        row, shape = self._rows[index], (-1, self.info.top)
        classes = self._classes[row].astype(np.int64).reshape(shape)
        scores = self._scores[row].astype(np.float32).reshape(shape)
        # Written so that NaN is damaged, too.
        if not (classes.max() < self.info.num_classes and scores.min() >= 0 and scores.sum(-1).max() <= 1 + _ROUNDING):
            raise UserError(f"{self._folder}: the label map of {self._dataset.describe(index)} is damaged; {_AGAIN}")
        return classes, scores

    def _find(self, names: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Find the row of each image."""
        order = np.argsort(names, kind="stable")
        rows = order[np.searchsorted(names, wanted, sorter=order).clip(max=len(names) - 1)]
        missing = np.flatnonzero(names[rows] != wanted)
        if len(missing):
            raise UserError(
                f"{self._folder} has no label map of {self._dataset.describe(missing[0])}"
                f"{f' and {len(missing) - 1} others' if len(missing) > 1 else ''}; make maps of this data set with "
                "tools/make_label_maps.py"
            )
        return rows


def _read_info(folder: Path) -> LabelMapInfo:
    path = folder / "label_maps.json"
    try:
        info: LabelMapInfo = check_value(read_json(path, str(path)), LabelMapInfo, str(path))
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}); give a folder that tools/make_label_maps.py made as -label_maps"
        ) from error
    except UserError as error:
        raise UserError(f"{error}; {_AGAIN}") from error
    if info.format != FORMAT:
        raise UserError(f"{path} has format {info.format!r}, not {FORMAT}; {_AGAIN}")
    return info


def _read_array(folder: Path, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Map a file into memory, which the reading processes of a machine share."""
    path = folder / f"{name}.npy"
    try:
        with open_regular(path, "rb"):
            array = np.lib.format.open_memmap(path, "r")  # refuses pickled objects
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); {_AGAIN}") from error
    except Exception as error:  # NumPy raises nearly any type on damaged headers
        raise UserError(f"{path} is damaged: {one_line(error)}; {_AGAIN}") from error
    same_type = array.dtype.kind == dtype.kind and dtype.itemsize in (0, array.dtype.itemsize)
    if not same_type or array.shape != shape:
        raise UserError(
            f"{path} has {array.dtype} {list(array.shape)}, not {dtype.name} {list(shape)} as label_maps.json says; "
            f"{_AGAIN}"
        )
    return array
