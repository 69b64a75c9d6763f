"""Dense labels of a data set in files: for each cell of an image's map, its most probable classes.

A folder holds ``n`` maps of ``height x width`` cells with ``top`` classes each, all readable with NumPy alone:

    label_maps.json  what is described by :class:`LabelMapInfo`
    images.npy       bytes [n], what identifies each image (``Dataset.names``)
    classes.npy      uint16 [n, height, width, top]
    scores.npy       float16 [n, height, width, top], the probabilities of these classes

The cells divide the whole image evenly, row by row from its top left corner. What the probabilities of a cell leave of
1 belongs to the other classes, to each the same.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from common.data.class_names import check_class_order
from common.errors import UserError, one_line
from image_classification.datasets import Dataset

__all__ = ["LabelMapInfo", "LabelMapWriter", "LabelMaps"]

FORMAT = 1
_ARRAYS = {"classes": np.uint16, "scores": np.float16}
_ROUNDING = 2.0**-10  # by which the float16 probabilities of a cell may exceed 1


@dataclass(frozen=True)
class LabelMapInfo:
    """What the maps of a folder have in common.

    Attributes:
        images, height, width, top: sizes of the arrays.
        num_classes: classes of the data set.
        class_names: their names, or None.
        model, weights, sha256: what made the maps: the name of the variant, the file of its weights, and its SHA-256.
        image_size: side in pixels of what the model saw, the whole image resized to a square.
        format: version of this format.
    """

    images: int
    height: int
    width: int
    top: int
    num_classes: int
    class_names: list[str] | None
    model: str
    weights: str
    sha256: str
    image_size: int
    format: int = FORMAT

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the two arrays."""
        return self.images, self.height, self.width, self.top

    def __str__(self) -> str:
        return (
            f"{self.images} maps of {self.height}x{self.width} cells, top {self.top} of {self.num_classes} classes, by "
            f"{self.model} ({self.weights}, SHA-256 {self.sha256[:12]}...) at {self.image_size}x{self.image_size}"
        )


class LabelMapWriter:
    """Writes a folder of label maps; it has its name when all is written, and until then another beside it.

    Args:
        folder: to be made.
        info: what the maps have in common.
        names: of the images, see ``Dataset.names``.

    Raises:
        UserError: the folder exists, or there are more classes than the format can count.
    """

    def __init__(self, folder: Path, info: LabelMapInfo, names: np.ndarray):
        if folder.exists():
            raise UserError(f"{folder} exists; remove it, or give another -out")
        if info.num_classes > np.iinfo(np.uint16).max + 1:
            raise UserError(f"label maps count up to {np.iinfo(np.uint16).max + 1} classes, not {info.num_classes}")
        self._folder, self.info = folder, info
        self._partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        np.save(self._partial / "images.npy", names)
        self._arrays = {
            name: np.lib.format.open_memmap(self._partial / f"{name}.npy", "w+", dtype, info.shape)
            for name, dtype in _ARRAYS.items()
        }

    def write(self, first: int, classes: np.ndarray, scores: np.ndarray) -> None:
        """Write the maps of consecutive images, from number ``first`` on, each ``[images, height, width, top]``."""
        for name, values in (("classes", classes), ("scores", scores)):
            self._arrays[name][first : first + len(values)] = values

    def close(self) -> None:
        """Write what is left, and give the folder its name."""
        for array in self._arrays.values():
            array.flush()
        text = json.dumps(asdict(self.info), indent=2)
        (self._partial / "label_maps.json").write_text(f"{text}\n", encoding="utf-8")
        self._partial.rename(self._folder)


class LabelMaps:
    """The label maps of a data set, for its images in their order.

    Everything that can be known without reading all maps is checked at once; a map itself when it is asked for.

    Args:
        folder: where they are.
        dataset: the images, all of which must have a map; the folder may hold more.
        num_classes: classes of the model.

    Attributes:
        info: what the maps have in common.

    Raises:
        UserError: a file is missing, damaged or none of ours; an image has no map; the classes are others.
    """

    def __init__(self, folder: str | Path, dataset: Dataset, num_classes: int):
        self._folder, self._dataset = Path(folder).expanduser(), dataset
        self.info = _read_info(self._folder)
        _compare_classes(self._folder, self.info, dataset, num_classes)
        names = _read_array(self._folder, "images", np.dtype("S"), (self.info.images,))
        self._rows = self._find(names, dataset.names())
        self._classes, self._scores = (
            _read_array(self._folder, name, np.dtype(dtype), self.info.shape) for name, dtype in _ARRAYS.items()
        )

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The map of one image of the data set.

        Returns:
            classes, int64 [height * width, top], and their probabilities, float32 of the same shape.

        Raises:
            UserError: it is damaged.
        """
        row, shape = self._rows[index], (-1, self.info.top)
        classes = self._classes[row].astype(np.int64).reshape(shape)
        scores = self._scores[row].astype(np.float32).reshape(shape)
        if classes.max() >= self.info.num_classes:
            raise self._damaged(index, f"it has class {classes.max()} of {self.info.num_classes}")
        if not (scores.min() >= 0 and scores.sum(-1).max() <= 1 + _ROUNDING):  # so that NaN is caught, too
            raise self._damaged(index, "its scores are no probabilities")
        return classes, scores

    def _damaged(self, index: int, why: str) -> UserError:
        return UserError(
            f"{self._folder}: the label map of {self._dataset.describe(index)} is damaged: {why}; make the maps again"
        )

    def _find(self, names: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The row of each image."""
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
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}); give a folder that tools/make_label_maps.py made as -label_maps"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {one_line(error)}; make the label maps again") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise UserError(f"{path} has the format {found!r}, not {FORMAT}; make the label maps again")
    for field in fields(LabelMapInfo):
        value = values.get(field.name)
        if field.type == "int":
            valid = type(value) is int and value > 0
        elif field.type == "str":
            valid = isinstance(value, str)
        else:
            valid = value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))
        if not valid:
            raise UserError(f"{path}: {field.name} is {value!r}; make the label maps again")
    return LabelMapInfo(**{field.name: values[field.name] for field in fields(LabelMapInfo)})


def _read_array(folder: Path, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Map a file into memory, which the reading processes of a machine then share."""
    path = folder / f"{name}.npy"
    try:
        array = np.lib.format.open_memmap(path, "r")  # which refuses pickled objects
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); make the label maps again") from error
    except Exception as error:  # on broken headers NumPy raises nearly any type
        raise UserError(f"{path} is damaged: {one_line(error)}; make the label maps again") from error
    alike = array.dtype.kind == dtype.kind and dtype.itemsize in (0, array.dtype.itemsize)
    if not alike or array.shape != shape:
        raise UserError(
            f"{path} holds {array.dtype} {list(array.shape)}, not {dtype.name} {list(shape)} as label_maps.json says; "
            "make the label maps again"
        )
    return array


def _compare_classes(folder: Path, info: LabelMapInfo, dataset: Dataset, num_classes: int) -> None:
    if info.num_classes != num_classes:
        raise UserError(
            f"{folder} has labels of {info.num_classes} classes, the model has {num_classes}; make them with a model "
            "of the same classes"
        )
    check_class_order(dataset.class_names, info.class_names, "the training data", str(folder))
